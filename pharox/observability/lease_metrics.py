"""OpenTelemetry metrics of leases, modelled on the conventions for connection pools.

A proxy is to its pool what a connection is to a connection pool, so names, units and
meanings are those of ``db.client.connection.*``, with ``pharox.lease`` in front. There
is no ``create_time``, as nothing is created.

The count and the maximum are gauges here, not sums: a pool is shared by processes, and each
of them tells of the whole of it. Attributes are named as those of the spans. The number of
pools that are told apart is bounded.

Without opentelemetry-api there are no metrics and no errors. Without a meter provider
nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from .. import models
from ..errors import InvalidInputError
from ..manager.leasing import Leasing
from ..scraping.bounded_label import OTHER, BoundedLabel
from .registering import register_once

try:
    from opentelemetry import metrics
except ModuleNotFoundError:  # an optional dependency
    metrics = None  # type: ignore[assignment]

WAIT_BUCKETS: Sequence[float] = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
"""Advice for the upper bounds of waits, in seconds; a view of the SDK can set others."""

USE_BUCKETS: Sequence[float] = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Advice for the upper bounds of the lengths of leases, in seconds."""

_POOL, _STATE = "pharox.pool", "pharox.lease_state"


class OpenTelemetryMetricsRecorder:
    """Records the payloads of callbacks as ``pharox.lease.*``.

    Recorders of one meter share its instruments, so each manager of a process may have one.

    Parameters
    ----------
    meter_name:
        The instrumentation scope's name, for the global provider.
    meter:
        A meter of another provider.
    max_pools:
        How many pools to distinguish; all others are "other".

    Raises
    ------
    InvalidInputError
        If the meter has these metrics with another ``max_pools``.
    """

    def __init__(
        self, meter_name: str = "pharox", meter: Any = None, *, max_pools: int = 1000
    ) -> None:
        self._metrics = None
        if metrics is not None:
            self._metrics = _metrics_of(meter_name, meter, max_pools)

    def register(self, manager: Leasing[Any]) -> OpenTelemetryMetricsRecorder:
        """Register this recorder with a manager of either kind, and return it.

        A manager that has one of the same meter is left as it is: otherwise everything
        would be recorded twice.
        """
        if self._metrics is not None and register_once(manager, (type(self), self._metrics), self):
            manager.watch_requests(self._metrics.begin_request)
        return self

    def handle_acquire(self, payload: models.AcquireEventPayload) -> None:
        """Record how long an attempt to lease took, or why it got nothing."""
        if self._metrics is None:
            return
        known = payload.miss_reason is not models.MissReason.UNKNOWN_POOL
        # A misspelled name must not take the place of a pool.
        pool = {_POOL: self._metrics.pool(payload.pool_name if known else None)}
        if payload.lease is not None:
            seconds = (payload.completed_at - payload.started_at).total_seconds()
            self._metrics.wait_time.record(max(seconds, 0), pool)
        else:
            reason = payload.miss_reason.value if payload.miss_reason else "unknown"
            self._metrics.misses.add(1, {**pool, "pharox.miss_reason": reason})
            if payload.waited_ms is not None:
                self._metrics.timeouts.add(1, pool)
        self._metrics.note(payload.pool_stats)

    def handle_release(self, payload: models.ReleaseEventPayload) -> None:
        """Record how long a lease was held that was given back."""
        self._ended("released", payload)

    def handle_expire(self, payload: models.ExpireEventPayload) -> None:
        """Record how long a lease was held that expired."""
        self._ended("expired", payload)

    def handle_revoke(self, payload: models.RevokeEventPayload) -> None:
        """Record how long a lease was held that was revoked."""
        self._ended("revoked", payload)

    def handle_lost(self, payload: models.LostEventPayload) -> None:
        """Count a lease that could not be kept alive."""
        if self._metrics is not None:
            self._metrics.lost.add(1, {_POOL: self._metrics.pool(payload.pool_name)})

    def handle_outcome(self, payload: models.OutcomeEventPayload) -> None:
        """Count requests by who is to blame for what became of them."""
        if self._metrics is not None:
            pool, outcome = self._metrics.pool(payload.pool_name), payload.outcome
            attributes = {_POOL: pool, "pharox.outcome": outcome.kind.value}
            self._metrics.outcomes.add(outcome.count, attributes)

    def _ended(
        self,
        how: str,
        payload: models.ReleaseEventPayload | models.ExpireEventPayload | models.RevokeEventPayload,
    ) -> None:
        if self._metrics is None:
            return
        attributes = {_POOL: self._metrics.pool(payload.pool_name), "pharox.ended": how}
        self._metrics.use_time.record(max(payload.lease_duration_ms or 0, 0) / 1000, attributes)
        self._metrics.note(payload.pool_stats)


def register_opentelemetry_metrics(
    manager: Leasing[Any], **options: Any
) -> OpenTelemetryMetricsRecorder:
    """Record what a manager of either kind does; options as for OpenTelemetryMetricsRecorder."""
    return OpenTelemetryMetricsRecorder(**options).register(manager)


class _Metrics:
    """The instruments of a meter, and what pools were like at the last event."""

    def __init__(self, meter: Any, max_pools: int) -> None:
        self.max_pools = max_pools
        self.pool = BoundedLabel(max_pools)
        # Who asks may misspell a name. Then it takes no place among those of pools.
        self._asked = BoundedLabel(max_pools)
        self._stats: dict[str, models.PoolStatsSnapshot] = {}
        self._lock = Lock()
        self.wait_time = meter.create_histogram(
            "pharox.lease.wait_time",
            "s",
            "The time it took to obtain a lease.",
            explicit_bucket_boundaries_advisory=WAIT_BUCKETS,
        )
        self.use_time = meter.create_histogram(
            "pharox.lease.use_time",
            "s",
            "The time between obtaining a lease and its end.",
            explicit_bucket_boundaries_advisory=USE_BUCKETS,
        )
        self._pending = meter.create_up_down_counter(
            "pharox.lease.pending_requests",
            "{request}",
            "The number of requests of this process for a lease that are not answered yet.",
        )
        self.timeouts = meter.create_counter(
            "pharox.lease.timeouts",
            "{timeout}",
            "The number of requests that waited for a lease in vain.",
        )
        self.misses = meter.create_counter(
            "pharox.lease.misses", "{request}", "The number of requests that got no lease."
        )
        self.lost = meter.create_counter(
            "pharox.lease.lost", "{lease}", "The number of kept leases that were lost."
        )
        self.outcomes = meter.create_counter(
            "pharox.lease.outcomes",
            "{request}",
            "The number of requests through leases, by who is to blame for what became of them.",
        )
        meter.create_observable_gauge(
            "pharox.lease.count",
            [self._counts],
            "{lease}",
            "The number of leases of the pool in use, and of proxies that could be leased now.",
        )
        meter.create_observable_gauge(
            "pharox.lease.max",
            [self._maxima],
            "{lease}",
            "The number of proxies of the pool that can be leased at all.",
        )

    def begin_request(self, pool_name: str) -> Callable[[], None]:
        """Count a pending request, and return the function to call at its end."""
        attributes = {_POOL: self._asked(pool_name)}
        self._pending.add(1, attributes)
        return partial(self._pending.add, -1, attributes)

    def note(self, stats: models.PoolStatsSnapshot | None) -> None:
        """Keep the statistics of a pool for the next observation."""
        if stats is not None and (pool := self.pool(stats.pool_name)) != OTHER:
            with self._lock:
                self._stats[pool] = stats

    def _counts(self, _: Any) -> Iterable[Any]:
        for pool, stats in self._pools():
            for state, count in (("used", stats.total_leases), ("idle", stats.available_proxies)):
                yield metrics.Observation(count, {_POOL: pool, _STATE: state})

    def _maxima(self, _: Any) -> Iterable[Any]:
        for pool, stats in self._pools():
            yield metrics.Observation(stats.active_proxies, {_POOL: pool})

    def _pools(self) -> list[tuple[str, models.PoolStatsSnapshot]]:
        with self._lock:
            return list(self._stats.items())


_by_name: dict[str, _Metrics] = {}
_by_meter: WeakKeyDictionary[Any, _Metrics] = WeakKeyDictionary()
_known_lock = Lock()


def _metrics_of(meter_name: str, meter: Any, max_pools: int) -> _Metrics:
    """Return the instruments of a meter, created on first use."""
    with _known_lock:
        known = _by_name.get(meter_name) if meter is None else _by_meter.get(meter)
        if known is None and meter is None:
            known = _by_name[meter_name] = _Metrics(metrics.get_meter(meter_name), max_pools)
        elif known is None:
            known = _by_meter[meter] = _Metrics(meter, max_pools)
    if known.max_pools != max_pools:
        raise InvalidInputError(
            f"the meter already has these metrics with max_pools={known.max_pools}"
        )
    return known
