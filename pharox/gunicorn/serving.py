"""The process that serves a server's metrics; a thread of the master starts it.

It is a process of its own, so that no worker inherits its socket, nothing it does
delays the master, and no lock of it is held while the master forks. It lives as
long as the master that started it: it looks at its parent ten times a second, and
ends at once when that has gone, however it went.

Of a folder one such process is the leader, which alone adds up and serves; during
an upgrade that of the new master waits until the old one's has gone.
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
from ..scraping import MetricsServer
from .aggregate import Aggregate
from .environment import EnvironmentManager, MetricsSettings
from .family import Family, locked

logger = logging.getLogger("pharox.gunicorn")

LEADER = "leader.lock"
LONGEST_PAUSE_S = 30.0
_LOOK_S = 0.1
_SWEEP_S = 1.0


class Notices(logging.Handler):
    """Hands what this process has to say to the master, which writes it into gunicorn's log."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Append a line; to standard error where that cannot be done."""
        line = json.dumps([record.levelno, record.getMessage()]) + "\n"
        try:
            with self._path.open("a") as file:
                file.write(line)
        except OSError:
            print(record.getMessage(), file=sys.stderr)


def serve(family: Family, settings: MetricsSettings) -> None:
    """Serve the metrics of a server until this process is ended."""
    with locked(family.folder / LEADER) as is_leader:
        if not is_leader:
            return
        aggregate = Aggregate(family)
        registry = CollectorRegistry()
        if settings.redis is None:
            registry.register(aggregate)
        else:
            from .sharing import SharedMetrics  # noqa: PLC0415 - it needs an extra

            shared = SharedMetrics(family, aggregate.collect, settings.redis)
            registry.register(shared)
            never = threading.Event()
            threading.Thread(target=shared.run, args=(never,), daemon=True).start()
        threading.Thread(target=_listen, args=(registry, settings), daemon=True).start()
        while True:
            try:
                aggregate.sweep()
            except Exception:
                logger.exception("what ended workers counted cannot be merged")
            time.sleep(_SWEEP_S)


def _listen(registry: CollectorRegistry, settings: MetricsSettings) -> None:
    """Listen as soon as that can be done, trying for ever, with growing pauses."""
    pause = _LOOK_S
    where = f"{settings.address} port {settings.port}"
    last = None
    while True:
        try:
            MetricsServer(registry, settings.port, settings.address, settings.certificates)
        except InvalidInputError as error:
            if str(error) != last:
                logger.warning("metrics are not served yet: %s", error)
            last = str(error)
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_S)
        else:
            logger.info("metrics are served: %s, %s", settings.certificates.scheme, where)
            return


def _end_with(parent: int) -> None:
    """End this process as soon as its parent has gone."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(0)


def main(folder: str, parent: str, notices: str, uid: str, gid: str) -> None:
    """Serve the metrics of the server whose folder it is, for a master, as the workers' user."""
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
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(Notices(Path(notices)))
    family, settings = Family(Path(folder)), EnvironmentManager().settings()
    while True:
        serve(family, settings)
        time.sleep(_LOOK_S)
