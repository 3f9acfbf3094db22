"""Keep the process that serves metrics running; the master does this.

A thread of the master starts the process, restarts it when it has ended or when a reload has
changed the settings, and writes its messages to gunicorn's log. New settings are tried by a new
process. The former process serves until the new one reports that it can. The thread takes no lock
of ours, so a worker that is forked meanwhile inherits no held lock.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry

from ..errors import InvalidInputError
from .environment import VARIABLES, EnvironmentManager, gunicorn_log
from .family import Family
from .process import store
from .serving import ANSWER, LONGEST_PAUSE_S

_LOOK_S = 0.25
_PATIENCE_S = 2.0
_FIRST_WORKER_S = 5.0
# It finds all modules where this process does, in that order.
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from pharox.gunicorn.serving import main
main(*sys.argv[1:])
"""


class ProcessManager:
    """Starts a child process of the master, and ends it.

    Parameters
    ----------
    logger:
        Where to log; gunicorn's log if None.
    """

    def __init__(self, logger: Any = None) -> None:
        self.logger = logger or gunicorn_log()
        self.pid: int | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        if self.pid is None:
            return False
        with contextlib.suppress(ChildProcessError):  # Gunicorn has taken note of its end.
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        return False

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        """Start Python with these arguments.

        Raises
        ------
        OSError
            If the process cannot be started.
        """
        # Not subprocess: while a thread starts one, a worker that is forked inherits the pipe
        # that it waits on.
        self.pid = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment)

    def terminate(self) -> None:
        """Terminate the process, and kill it if it does not end soon."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + _PATIENCE_S
            while self.pid is not None and self.is_alive and time.monotonic() < until:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)
                time.sleep(0.02)
        self.pid = None

    def cleanup_processes(self) -> None:
        """End the process that was started here. Gunicorn ends its workers."""
        self.terminate()


class MetricsServerManager:
    """Keeps a process running that serves a server's metrics.

    Parameters
    ----------
    logger:
        Where to log; gunicorn's log if None.
    """

    def __init__(self, logger: Any = None) -> None:
        self.logger = logger or gunicorn_log()
        self._user = (os.geteuid(), os.getegid())
        self._process = ProcessManager(self.logger)
        self._next: ProcessManager | None = None
        self._stop: Any = threading.Event()
        self._thread: Any = None
        self._read = 0
        self._asked: dict[str, str] | None = None
        self._tried: dict[str, str] = {}
        self._pause, self._next_at = _LOOK_S, 0.0
        self._complaint = ""

    def setup_server(self) -> tuple[int, CollectorRegistry]:
        """Return the port for the metrics, and their registry.

        Raises
        ------
        InvalidInputError
            If a setting is not valid.
        """
        settings = EnvironmentManager().settings()
        settings.certificates.check()
        return settings.port, REGISTRY

    def start_server(self, port: int, registry: CollectorRegistry = REGISTRY) -> bool:
        """Start to serve on a port, in the background; return True.

        All metrics are served, whatever their registry.
        """
        os.environ["PROMETHEUS_METRICS_PORT"] = str(port)
        self.start(store().family)
        return True

    def stop_server(self) -> None:
        """End the process that serves, and wait for its end."""
        self.stop()

    def start(self, family: Family, user: tuple[int, int] | None = None) -> None:
        """Start, in the background.

        Parameters
        ----------
        family:
            The processes whose metrics to serve.
        user:
            The uid and gid to serve as, if this process may choose.
        """
        if self._thread is not None and self._thread.is_alive():
            return
        self._family = family
        self._user = user or self._user
        self._master = os.getpid()
        self._notices = family.folder / f"notices.{os.getpid()}"
        self._watched_until: float | None = time.monotonic() + _FIRST_WORKER_S
        native = _native_threading()
        self._stop = native.Event()
        self._thread = native.Thread(target=self._keep, name="pharox-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the process that serves, and wait for its end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(3 * _PATIENCE_S)

    def _keep(self) -> None:
        # A thread that is a greenlet of gevent's goes on in a worker that is forked.
        while os.getpid() == self._master and not self._stop.wait(_LOOK_S):
            try:
                self._look()
            except Exception as error:
                self._complain(f"the metrics process could not be checked: {type(error).__name__}")
        if os.getpid() == self._master:
            self._give_up_next()
            self._process.terminate()
            self._warn()

    def _look(self) -> None:
        """Check the process and the settings once, and act on changes."""
        self._warn()
        self._look_for_workers()
        asked = _asked()
        if asked != self._tried:
            self._tried = asked
            self._try(asked)
        if self._next is not None and not self._next.is_alive:
            self._next.pid = None
        is_needed = self._asked is not None and not self._process.is_alive
        is_next_needed = self._next is not None and self._next.pid is None
        if not (is_needed or is_next_needed) or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S)
        try:
            if is_needed:
                self._start(self._process, self._asked or {}, "starts")
            elif self._next is not None:
                self._start(self._next, self._tried, "replaces")
        except OSError as error:
            self._complain(f"metrics are not served yet: {error.strerror}")

    def _try(self, asked: dict[str, str]) -> None:
        """Try new settings in a new process; the current one serves until then."""
        self._give_up_next()
        if asked == self._asked:
            return
        try:
            EnvironmentManager(environment=asked).settings()
        except InvalidInputError as error:
            self._complain(f"metrics are still served with the former settings: {error}")
            return
        self._pause, self._next_at = _LOOK_S, 0.0
        if self._asked is None:
            self._asked = asked
        else:
            self._next = ProcessManager(self.logger)

    def _give_up_next(self) -> None:
        if self._next is not None:
            self._next.terminate()
        self._next = None

    def _take(self, pid: int, refusal: str) -> None:
        """Switch to the new process if it can serve; keep the current one if not."""
        if self._next is None or pid != self._next.pid:
            return
        if refusal:
            message = f"metrics are still served with the former settings: {refusal}"
            self._complain(message, logging.ERROR)
            return
        former, self._process, self._next = self._process, self._next, None
        self._asked, self._complaint = self._tried, ""
        self._pause, self._next_at = _LOOK_S, 0.0
        former.terminate()

    def _look_for_workers(self) -> None:
        """Log a warning if workers run uncounted, because the user's hook may not call ours."""
        if self._watched_until is None:
            return
        members = [one for one, is_alive in self._family.members() if is_alive]
        others = [one for one in members if "master" not in one.marks]
        if any(one.is_worker for one in members):
            self._watched_until = None
        elif others and time.monotonic() > self._watched_until:
            self._watched_until = None
            self.logger.warning(
                "gunicorn's workers are not counted: the post_fork hook of its configuration does "
                "not call pharox.gunicorn.default_post_fork"
            )

    def expect_no_workers(self) -> None:
        """Skip that warning, because a warning with the cause was already logged."""
        self._watched_until = None

    def _complain(self, message: str, level: int = logging.WARNING) -> None:
        if message != self._complaint:
            self.logger.log(level, "%s", message)
        self._complaint = message

    def _start(self, process: ProcessManager, asked: dict[str, str], how: str) -> None:
        own = [str(self._family.folder), str(self._master), str(self._notices)]
        user = [str(number) for number in self._user]
        # -P: what lies in the working folder is no module of Python's.
        arguments = ["-P", "-c", _START, json.dumps(sys.path), *own, *user, how]
        environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)  # It counts nothing itself.
        process.start(arguments, {**environment, **asked})

    def _warn(self) -> None:
        """Write the process's messages to gunicorn's log."""
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
                        number, message, *more = json.loads(line)
                        if more == [ANSWER]:
                            self._take(int(number), str(message))
                        else:
                            self.logger.log(int(number), "%s", message)


def _native_threading() -> Any:
    """Return the module of real threads.

    Eventlet patches it in the master, whose main loop runs no greenlets.
    """
    if "eventlet" not in sys.modules:
        return threading
    patcher = importlib.import_module("eventlet.patcher")
    return patcher.original("threading")


def _asked() -> dict[str, str]:
    """Return the settings in the environment as they are now."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}
