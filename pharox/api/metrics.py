"""Count requests by operation and status, how long they take, and who waits.

An operation is one of a few, and what no operation is counts as "none", so clients cannot make
series.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram, in seconds. A request may wait for a minute."""


class Counts:
    """The metrics of one registry, shared by the applications that count into it."""

    _known: ClassVar[WeakKeyDictionary[CollectorRegistry, Counts]] = WeakKeyDictionary()

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter(
            "pharox_api_requests",
            "Requests to the API; status 499 is of clients that were gone before the answer.",
            ("operation", "status"),
            registry=registry,
        )
        seconds = Histogram(
            "pharox_api_request_seconds",
            "Seconds from a request to its answer, waiting included.",
            ("operation",),
            buckets=BUCKETS,
            registry=registry,
        )
        waiting = Gauge(
            "pharox_api_waiting_requests",
            "Requests that may wait for a proxy and are not answered yet.",
            ("operation",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Looking a series up by its labels costs more than counting.
        self._requests = cache(requests.labels)
        self._seconds = cache(seconds.labels)
        self._waiting = cache(waiting.labels)

    @classmethod
    def of(cls, registry: CollectorRegistry) -> Counts:
        """Return the metrics of a registry."""
        known = cls._known.get(registry)
        if known is None:
            known = cls._known[registry] = cls(registry)
        return known

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests(operation, str(status)).inc()
        self._seconds(operation).observe(seconds)

    def waits(self, operation: str, by: int) -> None:
        """Count a request that begins (1) or ends (-1) to wait."""
        self._waiting(operation).inc(by)
