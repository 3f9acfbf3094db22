"""The folder that the processes of one server share, and which of them are alive.

Each start of a server has its own folder. It has no counts of an earlier start, and is not shared
with another server that has the same pids, even if containers share a volume. A master that takes
over (USR2) joins the folder of the master that started it. Each process holds a lock on a file in
the folder while it lives, however it ends. Empty files beside it mark its role and how it ended:

    {host}.{pid namespace}.{boot id}/
        {identity}.lock                 held by the process
        {identity}.worker               or .master
        {identity}.seat3                the worker's seat
        {identity}.interrupted          how the worker ended
        seat.3                          held by the worker that has the seat
        started                         when the server was started
        counter_{identity}.db           the process's counts, one file per type

Locks are POSIX locks: a forked child does not inherit them. A pid is checked only if the file was
removed, because the pid may belong to another process by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InvalidInputError

ROLES = ("master", "worker")
EXITS = ("aborted", "ended", "interrupted", "killed", "max_requests")
"""How workers end: by SIGABRT (a time-out), orderly, by SIGINT, at once, at their limit."""

_FOLDER = re.compile(r"(?P<here>.+\.\d+)\.(?P<boot_id>[0-9a-f]{12})")
_MARK = re.compile(r"(?P<identity>\d+-[0-9a-f]{8})\.(?P<mark>\w+)")
_LOCK, _SEAT = "lock", "seat"
NO_SEAT = "other"
_STARTED = "started"
_SEATS = 1000
_YOUNG_S, _OLD_S, _DYING_S = 60.0, 86_400.0, 2.0


class Member(NamedTuple):
    """A process of a server: its name in the folder, its role, and how it ended."""

    identity: str
    marks: frozenset[str] = frozenset()

    @property
    def is_worker(self) -> bool:
        """Whether this is a worker."""
        return "worker" in self.marks

    @property
    def exit(self) -> str:
        """How the process ended, if it did; "killed" if it left no mark."""
        return next((mark for mark in EXITS if mark in self.marks), "killed")

    @property
    def pid(self) -> int:
        """The pid of the process while it lives."""
        return int(self.identity.partition("-")[0])

    @property
    def seat(self) -> str:
        """The number of the worker's seat, which a later worker may take, or "other"."""
        seats = (mark.removeprefix(_SEAT) for mark in self.marks if mark.startswith(_SEAT))
        return next(seats, NO_SEAT)

    @property
    def files(self) -> list[str]:
        """The names of the process's files; the lock is the last one."""
        return [f"{self.identity}.{mark}" for mark in (*sorted(self.marks), _LOCK)]


class Family:
    """The processes of one server, read from their folder.

    Parameters
    ----------
    folder:
        A folder that :meth:`enter` created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        match = _FOLDER.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            raise InvalidInputError(f"{folder} is not a server's metrics folder")
        self.host, self.boot_id = match["here"].rpartition(".")[0], match["boot_id"]
        self.own: str | None = None
        self._held: int | None = None
        self._seat: int | None = None

    @classmethod
    def enter(cls, given: str | None, started_by: int | None = None) -> Family:
        """Return the family of this server, with its folder.

        Parameters
        ----------
        given:
            The folder to create it in; one for temporary files if None.
        started_by:
            The pid of the master that this one takes over from.

        Raises
        ------
        InvalidInputError
            If the folder cannot be created there.
        """
        try:
            root = _root(given)
            _sweep(root)
            family = _joined(root, started_by) if started_by else None
            if family is None:
                name = f"{_here()}.{secrets.token_hex(6)}"
                (root / name).mkdir(mode=0o700)
                family = cls(root / name)
                with contextlib.suppress(OSError):  # A full disk is no reason not to start.
                    (family.folder / _STARTED).write_text(repr(time.time()))
            family.hold()
        except OSError as error:
            raise InvalidInputError(
                "PROMETHEUS_MULTIPROC_DIR: the folder for metrics cannot be created: "
                f"{error.strerror}"
            ) from error
        return family

    @property
    def begun(self) -> float:
        """When the server was started; 0 if this could not be written."""
        try:
            return float((self.folder / _STARTED).read_text())
        except (OSError, ValueError):
            return 0.0

    def hold(self) -> str:
        """Add this process to the folder until it ends; return its name there.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        if self.own is not None:
            return self.own
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        new = self.folder / f".{own}.new"
        held = os.open(new, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR, 0o600)
        try:
            os.fchmod(held, 0o644)  # The process that serves may have another user.
            # It is locked before others see it: they would take the process for dead.
            fcntl.lockf(held, fcntl.LOCK_EX)
            new.rename(self.folder / f"{own}.{_LOCK}")
        except OSError:
            os.close(held)
            raise
        self._held, self.own = held, own
        return own

    def mark(self, mark: str) -> None:
        """Mark this process's role, or how it is about to end."""
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_WRONLY
        os.close(os.open(self.folder / f"{self.hold()}.{mark}", flags, 0o600))

    def sit_down(self) -> str:
        """Take the first free seat for as long as this process lives; return its number.

        Counts per worker are kept per seat. There are as many seats as workers that live at the
        same time, however many workers there are over time.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        flags = os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR
        for number in range(1, _SEATS + 1):
            seat = os.open(self.folder / f"{_SEAT}.{number}", flags, 0o600)
            try:
                fcntl.lockf(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.mark(f"{_SEAT}{number}")
            except BlockingIOError:
                os.close(seat)
            except OSError:
                os.close(seat)
                raise
            else:
                self._seat = seat
                return str(number)
        return NO_SEAT

    def forked(self) -> None:
        """Add a forked process to the folder; called in the new process."""
        for held in (self._held, self._seat):
            if held is not None:
                os.close(held)
        self._held = self.own = self._seat = None
        with contextlib.suppress(OSError):  # What counts in it asks again.
            self.hold()

    def members(self) -> list[tuple[Member, bool]]:
        """Return the processes of the folder, and whether each is alive."""
        locks = (one[0] for one in self._marks() if one[1] == _LOCK)
        alive = {identity: self._is_alive(identity) for identity in locks}
        # Listed after that: whoever is dead has marked all that it ever will.
        marks: dict[str, set[str]] = {identity: set() for identity in alive}
        for identity, mark in self._marks():
            if identity in marks and mark != _LOCK:
                marks[identity].add(mark)
        return [(Member(one, frozenset(marks[one])), is_alive) for one, is_alive in alive.items()]

    def _marks(self) -> list[tuple[str, str]]:
        found = filter(None, map(_MARK.fullmatch, os.listdir(self.folder)))
        return [(match["identity"], match["mark"]) for match in found]

    def _is_alive(self, identity: str) -> bool:
        """Return whether a process lives. It never opens its own lock, which would release it."""
        return identity == self.own or _is_held(self.folder / f"{identity}.{_LOCK}")

    def is_alive(self, owner: str) -> bool:
        """Return whether the process that wrote a file of values is alive.

        If the lock was removed (by a cleaner of old files) or never existed (another program's
        process), the pid is checked: a process that may be alive is left alone.
        """
        if (self.folder / f"{owner}.{_LOCK}").exists():
            return self._is_alive(owner)
        pid = owner.partition("-")[0]
        return _runs(int(pid)) if pid.isdigit() else False

    def touch(self) -> None:
        """Update the times of files in use, so that no cleaner of old files removes them."""
        for path in (self.folder, *self.folder.iterdir()):
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def leave(self) -> None:
        """Remove the folder, unless another process of it lives.

        Gunicorn does not wait for workers that it kills after its timeout, so this waits a moment,
        unless another master has taken over.
        """
        patience = time.monotonic() + _DYING_S
        while others := self._others():
            if any("master" in one.marks for one in others) or time.monotonic() > patience:
                return
            time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _others(self) -> list[Member]:
        return [one for one, is_alive in self.members() if is_alive and one.identity != self.own]

    def give_to(self, uid: int, gid: int) -> None:
        """Give the folder to the workers' user. No worker runs yet."""
        if (uid, gid) != (os.geteuid(), os.getegid()):
            for path in (*self.folder.rglob("*"), self.folder):
                os.chown(path, uid, gid, follow_symlinks=False)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Lock a file for a block; yield False if another process holds the lock."""
    with path.open("ab") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _is_held(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _root(given: str | None) -> Path:
    """Return the folder in which families are created."""
    if given:
        root = Path(given).absolute()
        # A master that read its configuration again finds what it has set itself.
        if _FOLDER.fullmatch(root.name) and any(root.glob(f"*.{_LOCK}")):
            root = root.parent
        root.mkdir(parents=True, exist_ok=True)
        return root
    root = Path(tempfile.gettempdir()) / f"pharox-gunicorn-{os.getuid()}"
    root.mkdir(mode=0o711, exist_ok=True)
    found = root.lstat()
    if root.is_symlink() or found.st_uid != os.getuid():
        raise PermissionError(0, f"{root} belongs to another user")
    return root


def _here() -> str:
    """Return an identifier of this host and its pid namespace."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    return f"{socket.gethostname().replace('/', '-')}.{namespace}"


def _joined(root: Path, master: int) -> Family | None:
    """Return the family of a master that runs on this host."""
    for folder in root.glob(f"{glob.escape(_here())}.*"):
        for file in folder.glob(f"{master}-*.master"):
            if _is_held(file.with_suffix(f".{_LOCK}")):
                return Family(folder)
    return None


def _sweep(root: Path) -> None:
    """Remove the folders of killed servers, except those created a moment ago.

    Locks of another host may not be visible here, so its folders stay for a day after their last
    change.
    """
    for folder in root.iterdir():
        match = _FOLDER.fullmatch(folder.name)
        if match is None:
            continue
        with contextlib.suppress(OSError, InvalidInputError):
            wait = _YOUNG_S if match["here"] == _here() else _OLD_S
            if time.time() - folder.stat().st_mtime < wait:
                continue
            if not any(is_alive for _, is_alive in Family(folder).members()):
                shutil.rmtree(folder, ignore_errors=True)
