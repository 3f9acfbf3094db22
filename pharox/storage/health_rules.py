"""Decide the effect of a health check; ``postgres/health_statements.py`` does the same in SQL.

There are three rules. A result is applied only if it is newer than the newest one, and
its time is at most the storage's own clock. A ban is a person's decision: no result
lifts it. A status changes once the policy's number of consecutive results agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from projections.available_proxies import Availability

from ..events import ProxiesChecked
from ..models import LEASABLE, HealthCheckResult, HealthPolicy, ProxyStatus


class Observation(NamedTuple):
    """A result, and whether it may change the proxy's status.

    If it may not, the status and the streak stay unchanged.
    """

    result: HealthCheckResult
    reachable: bool
    counts: bool = True


class Judgement(NamedTuple):
    """The effect of a result on its proxy."""

    applied: bool
    status: ProxyStatus
    streak: int
    mean_latency_ms: int | None


def judge(
    row: Availability, seen: Observation, checked_at: datetime, policy: HealthPolicy
) -> Judgement:
    """Return the effect of an observation made at ``checked_at`` on a proxy in this state."""
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
    """Yield the indexes of observations in the order in which they are recorded, in batches.

    The first observation of each proxy is in the first round, the second in the second
    round, and so on. A round is ordered by pool and proxy, the order of locking. A batch
    is of one pool and fits into one event; leasing waits for its proxies while it is
    recorded. Proxies that are not in ``pools`` are skipped.
    """
    earlier: Counter[UUID] = Counter()
    rounds: dict[tuple[int, UUID], list[int]] = {}
    for place, (result, *_) in enumerate(seen):
        if (pool_id := pools.get(result.proxy_id)) is not None:
            rounds.setdefault((earlier[result.proxy_id], pool_id), []).append(place)
            earlier[result.proxy_id] += 1
    for (_, pool_id), places in sorted(rounds.items()):
        places.sort(key=lambda place: seen[place].result.proxy_id)
        for start in range(0, len(places), ProxiesChecked.MOST):
            yield pool_id, places[start : start + ProxiesChecked.MOST]


def moving_average(mean_ms: int | None, latency_ms: int, window: int) -> int:
    """Return the exponential moving average with a span of ``window`` results, in milliseconds.

    It is an integer, rounded away from the old mean, so that it reaches a latency
    that stays constant.
    """
    if mean_ms is None:
        return latency_ms
    distance = latency_ms - mean_ms
    step = (2 * abs(distance) + window) // (window + 1)
    return mean_ms + (step if distance > 0 else -step)
