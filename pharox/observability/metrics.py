"""Prometheus metrics of what a manager does.

A process counts what it does through its managers. What the whole fleet does is in
the log, and :mod:`.fleet` counts that. Labels that callers control are bounded: the
first names are distinguished, all later ones are "other".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    values,
)

from .. import models
from ..errors import InvalidInputError
from ..manager.leasing import Leasing
from ..scraping.bounded_label import OTHER, BoundedLabel
from .registering import register_once

M = TypeVar("M")

DEFAULT_LATENCY_BUCKETS: Sequence[float] = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Upper bounds for acquisitions and health checks, in seconds."""

DEFAULT_LEASE_BUCKETS: Sequence[float] = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Upper bounds for the lengths of leases, in seconds."""

DEFAULT_WAIT_BUCKETS: Sequence[float] = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds for waits in a queue, in seconds."""

WAITED = ("pool", "outcome")
"""Labels of a wait; ``outcome`` is "granted" or "missed"."""

FELL_BACK = ("pool", "fallback_from", "reason")
"""Labels of a lease of a pool that was asked after another one, which had nothing."""

DEFAULT_QUANTILES: Sequence[float] = (0.5, 0.95, 0.99)
"""Kept for 0.11.0. The client library computes no quantiles; ``histogram_quantile`` does."""

CHECKED = ("pool", "protocol", "source")
"""Labels of a check; ``source`` is empty for a proxy without one, as ``failure`` of a good one."""

POOL_GAUGES = {
    "total_proxies": "Proxies of the pool.",
    "active_proxies": "Proxies of the pool that are healthy.",
    "available_proxies": "Proxies of the pool that could be leased now.",
    "leased_proxies": "Proxies of the pool with at least one lease.",
    "leases": "Active leases of the pool.",
}
_COUNT_OF_GAUGE = {name: "total_leases" if name == "leases" else name for name in POOL_GAUGES}


class PrometheusMetricsRecorder:
    """Counts the payloads of callbacks as metrics.

    Recorders of one registry and namespace share their metrics, so each manager
    of a process may have one.

    Parameters
    ----------
    registry:
        The registry of the metrics; the client library's default if None.
    namespace:
        The prefix of their names.
    acquire_buckets, lease_buckets:
        Upper bounds of the histograms, in seconds.
    enable_summaries:
        Whether to count acquisitions and leases in summaries too, as 0.11.0
        intended. They have a count and a sum, which the histograms have as well.
    quantiles:
        Not used; see :data:`DEFAULT_QUANTILES`.
    max_consumers, max_pools, max_sources:
        How many consumers, pools and sources of proxies to distinguish.

    Raises
    ------
    InvalidInputError
        If the registry has these metrics with other buckets, or from another library.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None = None,
        namespace: str = "pharox",
        acquire_buckets: Sequence[float] | None = None,
        lease_buckets: Sequence[float] | None = None,
        enable_summaries: bool = False,
        quantiles: Sequence[float] | None = None,
        max_consumers: int = 100,
        max_pools: int = 1000,
        max_sources: int = 100,
    ) -> None:
        shape = _Shape(
            namespace,
            tuple(acquire_buckets or DEFAULT_LATENCY_BUCKETS),
            tuple(lease_buckets or DEFAULT_LEASE_BUCKETS),
            enable_summaries,
            max_consumers,
            max_pools,
            max_sources,
        )
        self._metrics = _metrics_of(registry or REGISTRY, shape)

    def register(self, manager: Leasing[Any]) -> PrometheusMetricsRecorder:
        """Register this recorder with a manager of either kind, and return it.

        A manager that has a recorder of these metrics is left as it is: otherwise
        everything would be counted twice.
        """
        register_once(manager, (type(self), self._metrics), self)
        return self

    def handle_acquire(self, payload: models.AcquireEventPayload) -> None:
        """Count an attempt to lease, and how long it took."""
        metrics = self._metrics
        known = payload.miss_reason is not models.MissReason.UNKNOWN_POOL
        # A misspelled name must not take the place of a pool.
        pool = metrics.pool(payload.pool_name if known else None)
        consumer = metrics.consumer(payload.consumer_name)
        selector, status = payload.selector.value, "hit" if payload.lease else "miss"
        seconds = max(payload.duration_ms, 0) / 1000
        metrics.acquire_total[pool, consumer, selector, status].inc()
        metrics.acquire_seconds[pool, consumer, selector, status].observe(seconds)
        if payload.lease is None:
            reason = payload.miss_reason.value if payload.miss_reason else "unknown"
            metrics.misses[pool, consumer, selector, reason].inc()
        for missed in payload.fallback_from:
            others = metrics.pool(missed.pool_name), missed.reason.value
            metrics.fallbacks[pool, *others].inc()
        if metrics.acquire_summary is not None:
            metrics.acquire_summary[pool, status].observe(seconds)
        if payload.waited_ms is not None:
            outcome = "granted" if payload.lease else "missed"
            metrics.wait_seconds[pool, outcome].observe(payload.waited_ms / 1000)
        self._set_gauges(payload.pool_stats)

    def handle_release(self, payload: models.ReleaseEventPayload) -> None:
        """Count a release, and how long the lease was held."""
        pool = self._metrics.pool(payload.pool_name)
        self._metrics.release_total[pool,].inc()
        self._ended(pool, "released", payload)

    def handle_expire(self, payload: models.ExpireEventPayload) -> None:
        """Count a lease that expired, and how long it was held."""
        pool = self._metrics.pool(payload.pool_name)
        self._metrics.expired_total[pool,].inc()
        self._ended(pool, "expired", payload)

    def handle_revoke(self, payload: models.RevokeEventPayload) -> None:
        """Count a lease that was revoked, and how long it was held."""
        pool = self._metrics.pool(payload.pool_name)
        self._metrics.revoked_total[pool,].inc()
        self._ended(pool, "revoked", payload)

    def handle_health(self, payload: models.HealthEventPayload) -> None:
        """Count a health check by its result, and how long it took."""
        pool, result = self._metrics.pool(payload.pool_name), payload.result
        checked = pool, result.protocol.value, self._metrics.source.or_none(payload.source)
        failure = result.failure.value if result.failure else ""
        self._metrics.health_total[*checked, result.status.value, failure].inc()
        self._metrics.health_seconds[checked].observe(result.latency_ms / 1000)
        self._set_gauges(payload.pool_stats)

    def handle_lost(self, payload: models.LostEventPayload) -> None:
        """Count a lease that could not be kept alive."""
        self._metrics.lost_total[self._metrics.pool(payload.pool_name),].inc()

    def handle_outcome(self, payload: models.OutcomeEventPayload) -> None:
        """Count requests by who is to blame for what became of them."""
        pool, outcome = self._metrics.pool(payload.pool_name), payload.outcome
        self._metrics.outcomes_total[pool, outcome.kind.value].inc(outcome.count)

    def handle_failure(self, payload: models.CallbackFailurePayload) -> None:
        """Count a callback that raised."""
        self._metrics.callback_failures[payload.told,].inc()

    def _ended(
        self,
        pool: str,
        how: str,
        payload: models.ReleaseEventPayload | models.ExpireEventPayload | models.RevokeEventPayload,
    ) -> None:
        seconds = max(payload.lease_duration_ms or 0, 0) / 1000
        self._metrics.lease_seconds[pool, how].observe(seconds)
        if self._metrics.lease_summary is not None:
            self._metrics.lease_summary[pool,].observe(seconds)
        self._set_gauges(payload.pool_stats)

    def _set_gauges(self, stats: models.PoolStatsSnapshot | None) -> None:
        if stats is None or (pool := self._metrics.pool(stats.pool_name)) == OTHER:
            return  # Statistics of several pools do not fit into one gauge.
        for name, number in pool_figures(stats).items():
            self._metrics.gauges[name][pool,].set(number)


def register_prometheus_metrics(manager: Leasing[Any], **options: Any) -> PrometheusMetricsRecorder:
    """Count what a manager of either kind does, and return the recorder.

    Options are those of :class:`PrometheusMetricsRecorder`.

    Raises
    ------
    TypeError
        If it is not a manager.
    """
    if not isinstance(manager, Leasing):
        raise TypeError("manager must be a ProxyManager or an AsyncProxyManager.")
    return PrometheusMetricsRecorder(**options).register(manager)


def pool_figures(stats: models.PoolStatsSnapshot) -> dict[str, int]:
    """Return a pool's statistics by the names of :data:`POOL_GAUGES`."""
    return {name: getattr(stats, count) for name, count in _COUNT_OF_GAUGE.items()}


class _Shape(NamedTuple):
    """What two recorders must have in common to share their metrics."""

    namespace: str
    acquire_buckets: tuple[float, ...]
    lease_buckets: tuple[float, ...]
    summaries: bool
    max_consumers: int
    max_pools: int
    max_sources: int


class _Series(dict[tuple[str, ...], M]):
    """The series of a metric by the values of their labels, each made when it is first used.

    The client library's lookup takes longer than the increment. This cache has as many
    entries as the library, so bounded labels bound it too.
    """

    def __init__(self, kind: Callable[..., M], *description: Any, **options: Any) -> None:
        self._metric: Any = kind(*description, **options)

    def __missing__(self, labels: tuple[str, ...]) -> M:
        series: M = self._metric.labels(*labels)
        self[labels] = series
        return series


class _Metrics:
    """The metrics of one registry and namespace."""

    def __init__(self, registry: CollectorRegistry, shape: _Shape) -> None:
        self.shape = shape
        self.pool = BoundedLabel(shape.max_pools, shared=_shared(shape.namespace, "pools"))
        self.consumer = BoundedLabel(
            shape.max_consumers, shared=_shared(shape.namespace, "consumers")
        )
        self.source = BoundedLabel(shape.max_sources, shared=_shared(shape.namespace, "sources"))
        own: dict[str, Any] = {"namespace": shape.namespace, "registry": registry}
        asked = ("pool", "consumer", "selector")
        self.acquire_total = _Series(
            Counter, "acquire_total", "Attempts to lease.", (*asked, "status"), **own
        )
        self.acquire_seconds = _Series(
            Histogram,
            "acquire_duration_seconds",
            "How long attempts to lease took.",
            (*asked, "status"),
            buckets=shape.acquire_buckets,
            **own,
        )
        self.wait_seconds = _Series(
            Histogram,
            "wait_seconds",
            "How long attempts to lease waited in the pool's queue.",
            WAITED,
            buckets=DEFAULT_WAIT_BUCKETS,
            **own,
        )
        self.misses = _Series(
            Counter,
            "acquire_misses_total",
            "Attempts to lease that found no proxy.",
            (*asked, "reason"),
            **own,
        )
        self.fallbacks = _Series(
            Counter,
            "fallbacks_total",
            "Leases granted by a pool as another one, which was asked before, had nothing.",
            FELL_BACK,
            **own,
        )
        self.release_total = _Series(
            Counter, "release_total", "Leases given back.", ("pool",), **own
        )
        self.expired_total = _Series(
            Counter, "expired_total", "Leases that ran out.", ("pool",), **own
        )
        self.revoked_total = _Series(
            Counter, "revoked_total", "Leases that were revoked.", ("pool",), **own
        )
        self.lost_total = _Series(
            Counter, "lost_total", "Kept leases that were lost.", ("pool",), **own
        )
        self.outcomes_total = _Series(
            Counter,
            "outcomes_total",
            "Requests whose outcome was recorded, by who is to blame.",
            ("pool", "outcome"),
            **own,
        )
        self.lease_seconds = _Series(
            Histogram,
            "lease_duration_seconds",
            "How long leases were held.",
            ("pool", "ended"),
            buckets=shape.lease_buckets,
            **own,
        )
        self.health_total = _Series(
            Counter,
            "health_checks_total",
            "Health checks.",
            (*CHECKED, "status", "failure"),
            **own,
        )
        self.health_seconds = _Series(
            Histogram,
            "health_check_duration_seconds",
            "How long health checks took.",
            CHECKED,
            buckets=shape.acquire_buckets,
            **own,
        )
        self.callback_failures = _Series(
            Counter, "callback_failures_total", "Callbacks that raised.", ("told",), **own
        )
        for kind in ("acquire", "release", "expire", "revoke", "health", "lost", "outcome"):
            self.callback_failures[kind,]  # start at 0, so that the first one is an increase
        self.gauges = {
            name: _Series(
                Gauge, f"pool_{name}", text, ("pool",), multiprocess_mode="mostrecent", **own
            )
            for name, text in POOL_GAUGES.items()
        }
        self.acquire_summary = self.lease_summary = None
        if shape.summaries:
            self.acquire_summary = _Series(
                Summary,
                "acquire_duration_summary_seconds",
                "How long attempts to lease took.",
                ("pool", "status"),
                **own,
            )
            self.lease_summary = _Series(
                Summary,
                "lease_duration_summary_seconds",
                "How long leases were held.",
                ("pool",),
                **own,
            )


def _shared(namespace: str, what: str) -> Path | None:
    """Return the folder where processes agree on names; None for a single process."""
    folder: Path | None = getattr(values.ValueClass, "folder", None)  # set by pharox.gunicorn
    return None if folder is None else folder / f"names.{namespace}.{what}"


_known: WeakKeyDictionary[CollectorRegistry, dict[str, _Metrics]] = WeakKeyDictionary()
_lock = threading.Lock()


def _metrics_of(registry: CollectorRegistry, shape: _Shape) -> _Metrics:
    """Return the metrics of a registry, created on first use."""
    with _lock:
        known = _known.setdefault(registry, {}).get(shape.namespace)
        if known is None:
            trial = CollectorRegistry()
            try:
                _Metrics(trial, shape)
            except ValueError as error:
                raise InvalidInputError(f"these metrics are not valid: {error}") from error
            try:
                known = _known[registry][shape.namespace] = _Metrics(registry, shape)
            except ValueError as error:
                raise InvalidInputError(
                    f"the registry already has metrics with these names: {error}"
                ) from error
    if known.shape != shape:
        raise InvalidInputError(
            f"the registry already has these metrics with other options: {known.shape}",
            known=known.shape,
        )
    return known
