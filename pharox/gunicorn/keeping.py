"""Keep the process that serves metrics running, from the master.

A thread of the master starts it, starts it again when it has ended or when the
environment asks for something else (a reload may have changed that), and writes
what it has to say into gunicorn's log. The thread takes no lock of ours, so a
worker that is forked meanwhile inherits none that is held.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from typing import Any

from ..errors import InvalidInputError
from .environment import VARIABLES, EnvironmentManager
from .family import Family
from .serving import LONGEST_PAUSE_S

_LOOK_S = 0.25
_PATIENCE_S = 2.0
# It finds all modules where this process does, in that order.
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from pharox.gunicorn.serving import main
main(*sys.argv[1:])
"""


class ProcessManager:
    """Starts a process of the master, and ends it."""

    def __init__(self) -> None:
        self._pid: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        if self._pid is None:
            return False
        with contextlib.suppress(ChildProcessError):  # Gunicorn has taken note of its end.
            return os.waitpid(self._pid, os.WNOHANG)[0] == 0
        return False

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start a Python with these arguments.

        Raises
        ------
        OSError
            If that cannot be done.
        """
        # Not subprocess: while a thread starts one, a worker that is forked inherits the pipe
        # that it waits on.
        self._pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment)

    def terminate(self) -> None:
        """End the process, the hard way if it does not end at once."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + _PATIENCE_S
            while self._pid is not None and self.is_alive and time.monotonic() < until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, number)
                time.sleep(0.02)
        self._pid = None


class MetricsServerManager:
    """Keeps the metrics of a server served.

    Parameters
    ----------
    family:
        Whose metrics.
    log:
        Gunicorn's log.
    user:
        The uid and gid that it serves as, if this process may choose.
    """

    def __init__(self, family: Family, log: Any, user: tuple[int, int] | None = None) -> None:
        self._family = family
        self._log = log
        self._user = user or (os.geteuid(), os.getegid())
        self._master = os.getpid()
        self._process = ProcessManager()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._notices = family.folder / f"notices.{os.getpid()}"
        self._read = 0
        self._asked: dict[str, str] | None = None
        self._pause, self._next_at = _LOOK_S, 0.0
        self._complaint = ""

    def start(self) -> None:
        """Start, in the background."""
        self._thread = threading.Thread(target=self._keep, name="pharox-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the process that serves, and wait for that."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3 * _PATIENCE_S)

    def _keep(self) -> None:
        # A thread that is a greenlet of gevent's goes on in a worker that is forked.
        while os.getpid() == self._master and not self._stop.wait(_LOOK_S):
            try:
                self._look()
            except Exception as error:
                self._complain(f"metrics are not kept served: {type(error).__name__}")
        if os.getpid() == self._master:
            self._process.terminate()
            self._tell()

    def _look(self) -> None:
        """Do what there is to do now."""
        self._tell()
        asked = _asked()
        if asked != self._asked:
            try:
                EnvironmentManager(asked).settings()
            except InvalidInputError as error:
                self._complain(f"metrics are served as before: {error}")
            else:
                self._process.terminate()
                self._asked, self._pause, self._next_at = asked, _LOOK_S, 0.0
        if self._asked is None or self._process.is_alive or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        try:
            self._process.start(self._arguments(), self._environment(self._asked))
        except OSError as error:
            self._complain(f"metrics are not served yet: {error.strerror}")

    def _complain(self, message: str) -> None:
        if message != self._complaint:
            self._log.warning("%s", message)
        self._complaint = message

    def _arguments(self) -> list[str]:
        own = [str(self._family.folder), str(self._master), str(self._notices)]
        user = [str(number) for number in self._user]
        # -P: what lies in the working folder is no module of Python's.
        return ["-P", "-c", _START, json.dumps(sys.path), *own, *user]

    def _environment(self, asked: dict[str, str]) -> dict[str, str]:
        """Return the environment of the process."""
        own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        own.pop("PROMETHEUS_MULTIPROC_DIR", None)  # It counts nothing itself.
        return {**own, **asked}

    def _tell(self) -> None:
        """Write what the process had to say into gunicorn's log."""
        with contextlib.suppress(FileNotFoundError):
            # The folder is that of the workers' user: it is not to lead elsewhere, or to wait.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(self._notices, flags), "rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._read += len(line)
                    with contextlib.suppress(ValueError, TypeError):  # The disk was full.
                        level, message = json.loads(line)
                        self._log.log(int(level), "%s", message)


def _asked() -> dict[str, str]:
    """Return what the environment asks for, as it is now."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
