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
from pathlib import Path
from typing import Any

from ..errors import InvalidInputError
from .environment import VARIABLES, EnvironmentManager
from .family import Family
from .serving import LONGEST_PAUSE_S

_LOOK_S = 0.25
_PATIENCE_S = 2.0


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
    """

    def __init__(self, family: Family, log: Any) -> None:
        self._family = family
        self._log = log
        self._process = ProcessManager()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._notices = family.folder / f"notices.{os.getpid()}"
        self._read = 0

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
        asked: dict[str, str] | None = None
        pause, next_at, complained = _LOOK_S, 0.0, None
        while not self._stop.wait(_LOOK_S):
            self._tell()
            now = _asked()
            if now != asked:
                try:
                    EnvironmentManager(now).settings()
                except InvalidInputError as error:
                    if now != complained:
                        self._log.warning("metrics are served as before: %s", error)
                    complained = now
                else:
                    self._process.terminate()
                    asked, pause, next_at = now, _LOOK_S, 0.0
            if asked is None or self._process.is_alive or time.monotonic() < next_at:
                continue
            try:
                self._process.start(self._arguments(), self._environment(asked))
            except OSError as error:
                self._log.warning("metrics are not served yet: %s", error.strerror)
            next_at, pause = time.monotonic() + pause, min(pause * 2, LONGEST_PAUSE_S)
        self._process.terminate()
        self._tell()

    def _arguments(self) -> list[str]:
        # -P: what lies in the working folder is no module of ours.
        start = ["-P", "-m", str(__package__)]
        return [*start, str(self._family.folder), str(os.getpid()), str(self._notices)]

    def _environment(self, asked: dict[str, str]) -> dict[str, str]:
        """Return the environment of the process: it finds pharox where this one did."""
        own = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        own.pop("PROMETHEUS_MULTIPROC_DIR", None)  # It counts nothing itself.
        path = [str(Path(__file__).parents[2]), *filter(None, [own.get("PYTHONPATH")])]
        return {**own, **asked, "PYTHONPATH": os.pathsep.join(path)}

    def _tell(self) -> None:
        """Write what the process had to say into gunicorn's log."""
        with contextlib.suppress(FileNotFoundError), self._notices.open() as file:
            file.seek(self._read)
            for line in file:
                if line.endswith("\n"):
                    self._read += len(line.encode())
                    level, message = json.loads(line)
                    self._log.log(level, message)


def _asked() -> dict[str, str]:
    """Return what the environment asks for, as it is now."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
