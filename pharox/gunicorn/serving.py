"""The process that serves a server's metrics; a thread of the master starts it.

It is a separate process, so no worker inherits its socket, it never delays the master, and the
master never forks while one of its locks is held. It lives as long as the master that started it:
it checks its parent ten times a second, and ends at once when the parent is gone, for any reason.

One such process per folder is the leader; only the leader adds up and serves. During an upgrade,
the process of the new master waits until the old one has gone.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from ..errors import InvalidInputError
from ..scraping.server import MetricsServer
from .aggregate import Aggregate
from .environment import EnvironmentManager, MetricsSettings
from .family import Family, locked

logger = logging.getLogger("pharox.gunicorn")

LEADER = "leader.lock"
ANSWER = "answer"
"""With which a line of the notices ends that is for the master itself."""
LONGEST_PAUSE_S = 30.0
_LOOK_S = 0.1
_SWEEP_S = 1.0


class Notices(logging.Handler):
    """Passes this process's messages to the master, which writes them to gunicorn's log."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line, or write it to standard error if that fails."""
        if not self._append([record.levelno, record.getMessage()]):
            print(record.getMessage(), file=sys.stderr)

    def answer(self, refusal: str) -> bool:
        """Report why this process cannot serve, or "" if it can; return whether it was written."""
        return self._append([os.getpid(), refusal, ANSWER])

    def _append(self, line: list[object]) -> bool:
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError:
            return False
        return True


def serve(family: Family, settings: MetricsSettings) -> None:
    """Serve the metrics of a server until this process is ended."""
    with locked(family.folder / LEADER) as is_leader:
        if not is_leader:
            return
        aggregate = Aggregate(family, legacy_names=settings.requests.legacy_names)
        registry = CollectorRegistry()
        if settings.redis is None:
            registry.register(aggregate)
        else:
            from .sharing import SharedMetrics  # noqa: PLC0415 - it needs an extra

            shared = SharedMetrics(
                family,
                aggregate.collect,
                settings.redis,
                settings.instance or f"{family.host}:{settings.port}",
            )
            registry.register(shared)
            never = threading.Event()
            threading.Thread(target=shared.run, args=(never,), daemon=True).start()
        threading.Thread(target=_listen, args=(registry, settings), daemon=True).start()
        while True:
            try:
                aggregate.sweep()
            except Exception:
                logger.exception("counts of ended workers cannot be merged")
            time.sleep(_SWEEP_S)


def _listen(registry: CollectorRegistry, settings: MetricsSettings) -> None:
    """Listen as soon as possible, retrying for ever, and keep the certificates current."""
    server = _listening(registry, settings)
    where = f"{settings.address} port {settings.port}"
    logger.info("metrics are served: %s, %s", settings.certificates.scheme, where)
    while True:
        time.sleep(_SWEEP_S)
        server.renew()


def _listening(registry: CollectorRegistry, settings: MetricsSettings) -> MetricsServer:
    """Return a listening server; retry until it can listen, with growing pauses."""
    pause = _LOOK_S
    last = None
    while True:
        try:
            return MetricsServer(registry, settings.port, settings.address, settings.certificates)
        except Exception as error:  # Whatever it is, it may be mended while this runs.
            message = str(error) if isinstance(error, InvalidInputError) else repr(error)
        if message != last:
            logger.warning("metrics are not served yet: %s", message)
        last = message
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


def _is_usable(settings: MetricsSettings, notices: Notices) -> bool:
    """Return whether this process can replace the one that serves; otherwise that one stays.

    It is checked here, as the user who serves: the master may read files that this user may not.
    """
    try:
        settings.certificates.check()
    except InvalidInputError as error:
        notices.answer(str(error))
        return False
    while not notices.answer(""):
        time.sleep(_SWEEP_S)  # There is no room to say so: the former one serves on.
    return True


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(0)


def main(folder: str, parent: str, notices: str, uid: str, gid: str, replaces: str) -> None:
    """Serve the metrics of the server with this folder, as the workers' user.

    If another process already serves, this one first reports whether it can.
    """
    if os.geteuid() == 0 and (int(uid), int(gid)) != (0, 0):
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    os.closerange(3, 1 << 20)  # above all gunicorn's listening sockets
    # What a terminal or a process manager sends to all processes is for the master to act on.
    for name in ("SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=_end_with, args=(int(parent),), daemon=True).start()
    handler = Notices(Path(notices))
    for log in (logger, logging.getLogger("pharox.scraping")):
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(handler)
    family, settings = Family(Path(folder)), EnvironmentManager().settings()
    if replaces == "replaces" and not _is_usable(settings, handler):
        os._exit(1)
    while True:
        serve(family, settings)
        time.sleep(_LOOK_S)
