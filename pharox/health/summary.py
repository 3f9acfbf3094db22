"""Count the results of a sweep by status, protocol, country, source and failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from uuid import UUID

from ..models import LEASABLE, Proxy, ProxyStatus
from ..storage.requests import HealthOutcome
from .streaming import each_of

DIMENSIONS = ("protocol", "country", "source")


@dataclass
class SweepSummary:
    """Counts the results of a sweep.

    ``by`` maps each dimension to the counts of statuses for each of its values; None
    stands for a missing value. A proxy is forgotten once its result is in.

    Examples
    --------
    >>> summary = SweepSummary()
    >>> async for outcome in orchestrator.sweep(summary.watch(orchestrator.due())):
    ...     summary.add(outcome)
    """

    checked: int = 0
    unknown: int = 0
    recovered: int = 0
    dropped: int = 0
    dropped_leases: int = 0
    statuses: Counter[ProxyStatus] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    by: dict[str, dict[str | None, Counter[ProxyStatus]]] = field(
        default_factory=lambda: {dimension: {} for dimension in DIMENSIONS}
    )
    _watched: dict[UUID, tuple[str | None, ...]] = field(default_factory=dict)

    async def watch(self, proxies: Iterable[Proxy] | AsyncIterable[Proxy]) -> AsyncIterator[Proxy]:
        """Yield the proxies, and remember their attributes until their results are in."""
        async for proxy in each_of(proxies):
            self._watched[proxy.id] = (proxy.protocol.value, proxy.country, proxy.source)
            yield proxy

    def add(self, outcome: HealthOutcome) -> None:
        """Count one result."""
        result, before, after = outcome.result, outcome.status_before, outcome.status_after
        attributes = self._watched.pop(result.proxy_id, (result.protocol.value, None, None))
        self.checked += 1
        if not outcome.known:
            self.unknown += 1
            return
        self.statuses[result.status] += 1
        if result.failure is not None:
            self.failures[result.failure.value] += 1
        for dimension, value in zip(DIMENSIONS, attributes, strict=True):
            self.by[dimension].setdefault(value, Counter())[result.status] += 1
        if before in LEASABLE and after not in LEASABLE:
            self.dropped += 1
            self.dropped_leases += outcome.leases
        elif before not in LEASABLE and after in LEASABLE:
            self.recovered += 1
