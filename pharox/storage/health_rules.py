"""What a health check's result comes to; ``postgres/health_statements.py`` says the same in SQL.

Three rules. A result counts only if it is newer than the newest, and none is
newer than the storage's own clock. A ban is a person's decision: no result
lifts it. A status follows what was found, once as many results in a row as the
policy asks for have found it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from projections.available_proxies import Availability

from ..models import LEASABLE, HealthCheckResult, HealthPolicy, ProxyStatus


class Observation(NamedTuple):
    """A result and what to make of it.

    One that does not count leaves the status and the streak as they are.
    """

    result: HealthCheckResult
    reachable: bool
    counts: bool = True


class Judgement(NamedTuple):
    """What a result comes to, for the proxy it is about."""

    applied: bool
    status: ProxyStatus
    streak: int
    mean_latency_ms: int | None


def judge(
    row: Availability, seen: Observation, checked_at: datetime, policy: HealthPolicy
) -> Judgement:
    """Return what an observation made at ``checked_at`` comes to, for a proxy that stands so."""
    status, streak = ProxyStatus(row.status), row.streak
    if row.probed_at is not None and checked_at <= row.probed_at:
        return Judgement(False, status, streak, None)
    if seen.counts:
        streak = max(streak, 0) + 1 if seen.reachable else min(streak, 0) - 1
        if _follows(status, streak, seen, policy):
            status = seen.result.status
    mean = None
    if seen.reachable:
        mean = moving_average(row.latency_ms, seen.result.latency_ms, policy.latency_window)
    return Judgement(True, status, streak, mean)


def _follows(status: ProxyStatus, streak: int, seen: Observation, policy: HealthPolicy) -> bool:
    if status is ProxyStatus.BANNED:
        return False
    if seen.result.status is ProxyStatus.BANNED:
        return True
    if seen.reachable:
        return status in LEASABLE or streak >= policy.successes_before_active
    return status not in LEASABLE or -streak >= policy.failures_before_inactive


def in_rounds(
    seen: Sequence[Observation], pools: Mapping[UUID, UUID]
) -> Iterator[tuple[UUID, list[int]]]:
    """Yield the places of observations in the order in which they are recorded.

    The first of each proxy come first, then the second ones, and so on, and in each
    round they go by pool and proxy, as locks do. Proxies that are in none of ``pools``
    are left out.
    """
    earlier: Counter[UUID] = Counter()
    rounds: dict[tuple[int, UUID], list[int]] = {}
    for place, (result, *_) in enumerate(seen):
        if (pool_id := pools.get(result.proxy_id)) is not None:
            rounds.setdefault((earlier[result.proxy_id], pool_id), []).append(place)
            earlier[result.proxy_id] += 1
    for (_, pool_id), places in sorted(rounds.items()):
        yield pool_id, sorted(places, key=lambda place: seen[place].result.proxy_id)


def moving_average(mean_ms: int | None, latency_ms: int, window: int) -> int:
    """Return the exponential moving average with a span of ``window`` results, in milliseconds.

    In whole numbers, rounded away from the old mean, so that it gets to where
    the latencies stay.
    """
    if mean_ms is None:
        return latency_ms
    distance = latency_ms - mean_ms
    step = (2 * abs(distance) + window) // (window + 1)
    return mean_ms + (step if distance > 0 else -step)
