"""Metrics of the whole fleet, from the ledger, for Prometheus to scrape.

Counters come from the counts of the log, gauges from the read models at the time of
the scrape. Any number of servers may show them. A scrape queries the database, and
shows ``pharox_fleet_up 0`` if the database cannot be reached.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ..errors import PharoxError, ReadOnlyDatabaseError
from ..ledger.subscriptions import Running, subscriptions
from ..ledger.subscriptions.fleet import UNNAMED
from ..models import MoveStage, QueueStats, utc_now
from ..scraping.server import Certificates, MetricsServer
from ..storage.postgres import PostgresStorage
from .counting import (
    HISTOGRAMS,
    LABELS,
    NAME,
    Count,
    FleetCounter,
    bound_label,
    cooling_statement,
    held_statement,
    moves_statement,
    sessions_statement,
)
from .metrics import POOL_GAUGES, pool_figures

NAMESPACE = "pharox_fleet"

COUNTERS = {
    "events": "Events in the log, by type.",
    "leases_acquired": "Leases granted.",
    "acquire_misses": "Attempts to lease that found no proxy.",
    "fallbacks": "Leases granted by a pool as another one, which was asked before, had nothing.",
    "health_checks": "Health checks that were recorded.",
    "outcomes": "Requests whose outcome was reported, by who is to blame.",
    "bytes": "Bytes that outcomes reported.",
    "money": "What leases and bytes cost, in the currency of the pool's prices.",
    "cool_downs": "How often a proxy began to rest for a target, by what was reported, or asked.",
    "troubled_targets": "How often most proxies failed at a target within a minute.",
    "sessions_bound": "How often keys of sticky sessions were bound to proxies.",
    "rotations": "How often links of mobile proxies were called for another exit, by outcome.",
}
DURATIONS = {
    "lease_duration_seconds": "How long leases were held.",
    "health_check_duration_seconds": "How long health checks took.",
    "wait_seconds": "How long attempts to lease waited in the pool's queue.",
}
GAUGES = {
    "oldest_lease_age_seconds": "How long the oldest active lease has been held.",
    "overdue_leases": "Leases that have run out and were not yet taken back.",
}
COOLING = "cooling_pairs"
SESSIONS = "sessions"
QUEUE_GAUGES = {
    "waiting": "Requests that wait for a proxy.",
    "longest_wait_seconds": "How long the oldest of them has waited.",
}
SOURCE_GAUGES = {
    "source_age_seconds": "How long ago the list of the source was last fetched well, if ever.",
    "source_interval_seconds": "How often the list of the source is to be fetched.",
    "source_failures": "How many refreshes of the source in a row have failed.",
    "source_proxies": "Proxies in the list of the source when it last changed.",
}
SUBSCRIPTION_GAUGES = {
    "subscription_lag_events": "Events that the subscription has not read yet.",
    "subscription_lag_seconds": "Age of the oldest event that the subscription has not read.",
    "subscription_parked_events": "Events that the subscription's handler failed on.",
}
OLDEST_MOVE = "oldest_move_seconds"
logger = logging.getLogger("pharox")


class FleetCollector(Collector):
    """Collects the metrics of a ledger when it is scraped.

    Parameters
    ----------
    storage:
        The storage of the ledger.
    counter:
        The counter of its log.
    is_counting:
        Returns whether the counter still runs.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        counter: FleetCounter,
        is_counting: Callable[[], bool] = lambda: True,
    ) -> None:
        self._storage = storage
        self._counter = counter
        self._is_counting = is_counting

    def describe(self) -> list[Metric]:
        """Describe nothing: otherwise a registry queries the database when it registers this."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the current values of all metrics."""
        try:
            found = [
                *_counters(self._counter.counts()),
                *self._pool_gauges(),
                *self._queue_gauges(),
                *self._source_gauges(),
                *self._subscription_gauges(),
                self._moves_gauge(),
            ]
        except PharoxError as error:
            logger.warning("pharox.metrics.failed: %s", error)
            found = []
        yield up_metric(is_up=bool(found))
        counting = GaugeMetricFamily(f"{NAMESPACE}_counting", "Whether this server reads the log.")
        counting.add_metric([], float(self._is_counting()))
        yield counting
        yield from found

    def _pool_gauges(self) -> Iterator[Metric]:
        families = {
            name: GaugeMetricFamily(f"{NAMESPACE}_pool_{name}", text, labels=["pool"])
            for name, text in POOL_GAUGES.items()
        }
        for stats in self._storage.list_pool_stats():
            for name, number in pool_figures(stats).items():
                families[name].add_metric([stats.pool_name], number)
        yield from families.values()
        oldest, overdue = (
            GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["pool"])
            for name, text in GAUGES.items()
        )
        with self._storage.session() as session:
            rows = session.rows(held_statement(self._storage.schema))
            pairs = session.rows(cooling_statement(self._storage.schema))
            bound = session.rows(sessions_statement(self._storage.schema))
        for row in rows:
            oldest.add_metric([row["pool_name"]], max(0.0, row["oldest_s"]))
            overdue.add_metric([row["pool_name"]], row["overdue"])
        cooling = GaugeMetricFamily(
            f"{NAMESPACE}_{COOLING}", "Proxies that rest for a target, by pair.", labels=["pool"]
        )
        for row in pairs:
            cooling.add_metric([row["name"]], row["cooling"])
        sessions = GaugeMetricFamily(
            f"{NAMESPACE}_{SESSIONS}", "Keys of sticky sessions that are bound.", labels=["pool"]
        )
        for row in bound:
            sessions.add_metric([row["name"]], row["bound"])
        yield from (oldest, overdue, cooling, sessions)

    def _queue_gauges(self) -> Iterator[Metric]:
        waiting, longest = (
            GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["pool"])
            for name, text in QUEUE_GAUGES.items()
        )
        queues = {queue.pool_name: queue for queue in self._storage.queue_stats()}
        for pool in self._storage.list_pools():
            queue = queues.get(pool.name, QueueStats(pool_name=pool.name))
            waiting.add_metric([pool.name], queue.waiting)
            longest.add_metric([pool.name], queue.longest_wait_seconds)
        yield from (waiting, longest)

    def _source_gauges(self) -> Iterator[Metric]:
        """Yield the gauges of the sources that are not paused."""
        families = [
            GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["source", "pool"])
            for name, text in SOURCE_GAUGES.items()
        ]
        for source in (each for each in self._storage.list_sources() if each.enabled):
            age = utc_now() - (source.succeeded_at or source.saved_at)
            numbers = (
                max(0.0, age.total_seconds()),
                source.every_seconds,
                source.failures,
                source.counts.listed if source.counts else 0,
            )
            for family, number in zip(families, numbers, strict=True):
                family.add_metric([source.name, source.pool_name], number)
        yield from families

    def _moves_gauge(self) -> Metric:
        """Return for how long the pool that moves longest has stood at each stage."""
        gauge = GaugeMetricFamily(
            f"{NAMESPACE}_{OLDEST_MOVE}",
            "How long ago the pool that has been moving longest came to this stage; 0 if none is.",
            labels=["stage"],
        )
        with self._storage.session() as session:
            rows = session.rows(moves_statement(self._storage.schema))
        ages = {row["stage"]: row["oldest_s"] for row in rows}
        for stage in (each for each in MoveStage if each.is_under_way):
            gauge.add_metric([stage.value], max(0.0, ages.get(stage.value, 0.0)))
        return gauge

    def _subscription_gauges(self) -> Iterator[Metric]:
        families = [
            GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["subscription"])
            for name, text in SUBSCRIPTION_GAUGES.items()
        ]
        for status in subscriptions(self._storage):
            if not status.active and status.name.startswith(UNNAMED):
                continue  # A temporary subscription whose process was killed: nobody continues it.
            numbers = (status.lag_events, status.lag_seconds, status.parked)
            for family, number in zip(families, numbers, strict=True):
                family.add_metric([status.name], number)
        yield from families


def up_metric(*, is_up: bool) -> Metric:
    """Return the metric that says whether the ledger could be read."""
    up = GaugeMetricFamily(f"{NAMESPACE}_up", "Whether the ledger could be read.")
    up.add_metric([], float(is_up))
    return up


def _counters(counts: dict[Count, float]) -> Iterator[Metric]:
    families = {
        name: CounterMetricFamily(f"{NAMESPACE}_{name}", text, labels=LABELS[name])
        for name, text in COUNTERS.items()
    }
    for (name, labels), value in counts.items():
        if name in families:
            families[name].add_metric(labels, value)
    yield from families.values()
    for name, text in DURATIONS.items():
        yield _histogram(name, text, counts)


def _histogram(name: str, text: str, counts: dict[Count, float]) -> Metric:
    labels, bounds = HISTOGRAMS[name]
    family = HistogramMetricFamily(f"{NAMESPACE}_{name}", text, labels=labels)
    empty = dict.fromkeys((*map(bound_label, bounds), "+Inf"), 0.0)
    buckets: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(empty.copy)
    for (counted, values), value in counts.items():
        if counted == f"{name}_bucket":
            buckets[values[:-1]][values[-1]] = value
    for values, found in buckets.items():
        total = counts.get((f"{name}_sum", values), 0.0)
        family.add_metric(values, _cumulated(found), total)
    return family


def _cumulated(buckets: dict[str, float]) -> list[tuple[str, float]]:
    total, cumulated = 0.0, []
    for bound in sorted(buckets, key=float):
        total += buckets[bound]
        cumulated.append((bound, total))
    return cumulated


class FleetServer(AbstractContextManager["FleetServer"]):
    """Counts the log of a ledger and serves ``/metrics``, for a block.

    On a standby it counts nothing and shows what a server of the same name counts at the primary.

    Parameters
    ----------
    storage:
        The storage of the ledger.
    port:
        The port; a free one if 0.
    address:
        The address to bind; only this machine by default.
    name, max_consumers, max_pools, max_sources:
        As for :class:`FleetCounter`.
    certfile, keyfile:
        For HTTPS.

    Raises
    ------
    InvalidInputError
        If the port cannot be bound, or the certificate cannot be used.
    """

    def __init__(
        self,
        storage: PostgresStorage,
        *,
        port: int = 9464,
        address: str = "127.0.0.1",
        name: str = NAME,
        max_consumers: int = 100,
        max_pools: int = 1000,
        max_sources: int = 100,
        certfile: str | None = None,
        keyfile: str | None = None,
    ) -> None:
        counter = FleetCounter(
            storage,
            name=name,
            max_consumers=max_consumers,
            max_pools=max_pools,
            max_sources=max_sources,
        )
        registry = CollectorRegistry()
        self._counting: Running | None = None
        registry.register(FleetCollector(storage, counter, lambda: self.is_counting))
        self._server = MetricsServer(registry, port, address, Certificates(certfile, keyfile))
        self.port = self._server.port
        try:
            self._counting = counter.subscription().running(storage)
        except ReadOnlyDatabaseError as error:
            # A standby has what a server at the primary has counted, and may show it.
            if not error.data["is_standby"]:
                self._server.close()
                raise
            logger.info("pharox.metrics.standby: a server at the primary counts")
        except BaseException:
            self._server.close()
            raise

    @property
    def is_counting(self) -> bool:
        """Whether the log is still being read."""
        return self._counting is not None and self._counting.is_alive

    def __exit__(self, *_: object) -> None:
        try:
            if self._counting is not None:
                self._counting.stop()
        finally:
            self._server.close()
