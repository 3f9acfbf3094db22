"""Metrics of a fleet: those of each ledger, with its name as the label ``ledger``.

Each ledger's counts are kept in that ledger, as if it were alone. One that does not answer has
``pharox_fleet_up`` 0 and nothing else, and is tried again at the next scrape. One that hangs keeps
a thread and no scrape: after :data:`SCRAPE_S` it is as one that is down, until the thread is done.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..effects.limiting import answers_within
from ..errors import PharoxError
from ..observability.counting import FleetCounter
from ..observability.fleet import FleetCollector, up_metric
from ..scraping.server import Certificates, MetricsServer
from .merging import MOST_AT_ONCE

if TYPE_CHECKING:
    from ..ledger.subscriptions import Running
    from .fleets import Fleet

LABEL = "ledger"
SCRAPE_S = 5.0
"""How long a scrape waits for a ledger. Prometheus waits ten seconds for all of them."""

logger = logging.getLogger("pharox")


class LedgerCounts:
    """The counter and the collector of one ledger; it counts while the ledger answers.

    Parameters
    ----------
    storage:
        The ledger's storage.
    options:
        Those of :class:`pharox.observability.counting.FleetCounter`.
    """

    def __init__(self, storage: Any, options: Mapping[str, Any]) -> None:
        self._storage = storage
        self._counter = FleetCounter(storage, **options)
        self._counting: Running | None = None
        self._collector = FleetCollector(storage, self._counter, lambda: self.is_counting)

    @property
    def is_counting(self) -> bool:
        """Whether the log is being read."""
        return self._counting is not None and self._counting.is_alive

    def ensure_counting(self) -> None:
        """Begin to read the log, or again after the ledger was down."""
        if not self.is_counting:
            try:
                with answers_within(SCRAPE_S):
                    self._counting = self._counter.subscription().running(self._storage)
            except PharoxError as error:
                logger.warning("pharox.metrics.failed: %s", error)

    def collect(self) -> list[Metric]:
        """Return the current values of the ledger's metrics."""
        self.ensure_counting()
        with answers_within(SCRAPE_S):
            return [*self._collector.collect()]

    def stop(self) -> None:
        """Stop to read the log."""
        if self._counting is not None:
            with suppress(PharoxError):  # It is down: there is nothing left to stop.
                self._counting.stop()


class LedgersCollector(Collector):
    """Collects the metrics of all ledgers side by side when it is scraped.

    Several servers may scrape it at the same time: they share one reading of each ledger.
    """

    def __init__(self, ledgers: Mapping[str, LedgerCounts]) -> None:
        self._ledgers = ledgers
        self._threads = ThreadPoolExecutor(MOST_AT_ONCE, "pharox-metrics")
        self._lock = threading.Lock()
        self._readings: dict[str, Future[list[Metric]]] = {}
        self._late: set[Future[list[Metric]]] = set()

    def start(self) -> None:
        """Begin to read the logs of the ledgers that answer, as the first scrape does."""
        self._read_ledgers()

    def stop(self) -> None:
        """Use no more threads."""
        self._threads.shutdown(wait=False)

    def describe(self) -> list[Metric]:
        """Describe nothing: otherwise a registry queries the databases when it registers this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all ledgers."""
        found = self._read_ledgers()
        yield from labelled(
            {name: found.get(name) or [up_metric(is_up=False)] for name in self._ledgers}
        )

    def _read_ledgers(self) -> dict[str, list[Metric]]:
        """Read the ledgers. Return the metrics of those that answer in time."""
        readings = self._begin_readings()
        done, pending = wait(readings.values(), SCRAPE_S)
        with self._lock:
            late = pending - self._late
            self._late |= late
        for name in (name for name, each in readings.items() if each in late):
            logger.warning("pharox.metrics.late: the ledger %r does not answer", name)
        return {name: each.result() for name, each in readings.items() if each in done}

    def _begin_readings(self) -> dict[str, Future[list[Metric]]]:
        """Return the reading of each ledger, begun now or by another scrape, but no late one."""
        with self._lock:
            self._late = {each for each in self._late if not each.done()}
            for name, ledger in self._ledgers.items():
                if name not in self._readings or self._readings[name].done():
                    self._readings[name] = self._threads.submit(ledger.collect)
            return {name: each for name, each in self._readings.items() if each not in self._late}


class LedgersServer:
    """Serves the metrics of a fleet, and counts the events of all its logs.

    Parameters
    ----------
    fleet:
        The fleet.
    port, address, certfile, keyfile, options:
        As for :class:`pharox.observability.fleet.FleetServer`.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        port: int = 9464,
        address: str = "127.0.0.1",
        certfile: str | None = None,
        keyfile: str | None = None,
        **options: Any,
    ) -> None:
        self._ledgers = {
            name: LedgerCounts(ledger.storage, options) for name, ledger in fleet.ledgers.items()
        }
        registry = CollectorRegistry()
        self._collector = LedgersCollector(self._ledgers)
        registry.register(self._collector)
        self._server = MetricsServer(registry, port, address, Certificates(certfile, keyfile))
        self.port = self._server.port
        self._collector.start()

    is_counting = True
    """It goes on as long as it is served: a ledger that fails is tried again."""

    def __enter__(self) -> LedgersServer:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for ledger in self._ledgers.values():
                ledger.stop()
        finally:
            self._server.close()
            self._collector.stop()


def labelled(found: Mapping[str, list[Metric]]) -> list[Metric]:
    """Return each metric once, with the samples of all ledgers and their names as a label."""
    families: dict[str, Metric] = {}
    for ledger, metrics in found.items():
        for metric in metrics:
            known = families.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type, metric.unit)
            )
            known.samples += [
                sample._replace(labels={LABEL: ledger, **sample.labels})
                for sample in metric.samples
            ]
    return [*families.values()]
