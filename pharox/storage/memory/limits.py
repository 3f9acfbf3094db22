"""Bound the leases of a pool: what consumers and targets have room for, and what is paced."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from projections import PoolRow

from ...models import LimitReached, Pace, PoolLimits
from .budgets import UNBOUNDED, Bound, budgets, has_budget, is_budget, next_day
from .state import State


def limits_of(state: State, pool_id: UUID) -> PoolLimits | None:
    """Return the limits of a pool, if it has some."""
    row: PoolRow = state.rows["pools"][(pool_id,)]
    return None if row.limits is None else PoolLimits.model_validate(row.limits)


def recorded(state: State, pool_id: UUID) -> dict[str, Any]:
    """Return the fields of a lease's event that say how it is limited."""
    limits = limits_of(state, pool_id)
    if limits is None:
        return {}
    seconds = max((pace.seconds for pace in limits.paces), default=None)
    return {"limited": True, "paced_seconds": seconds}


def bounds(
    state: State, pool_id: UUID, consumer: str, target: str | None, needed: int, now: datetime
) -> list[Bound]:
    """Return the limits of a consumer, and of a target, for so many leases more."""
    limits = limits_of(state, pool_id)
    if limits is None:
        return []
    row = state.rows["consumers"].get((consumer,))
    consumer_id = pool_id if row is None else row.id  # Nobody's leases are under a pool's id.
    found = []
    for name, per, most, key in (
        ("leases_per_consumer", "consumer", limits.leases_per_consumer, consumer_id),
        ("leases_per_target", "target", limits.leases_per_target, target),
    ):
        if most is not None and key is not None:
            ends = sorted(state.lease_row(i).expires_at for i in state.limits.held(pool_id, key))
            limit = LimitReached(name=name, per=per, most=most, used=len(ends))
            found.append(Bound(limit, most - len(ends), _freed(ends, most, needed)))
    for pace in limits.paces:
        if pace.per == "consumer":
            starts = state.limits.starts(pool_id, consumer_id, now, pace.seconds)
            freed = _freed(starts, pace.starts, needed)
            frees_at = None if freed is None else freed + timedelta(seconds=pace.seconds)
            found.append(Bound(_pace(pace, len(starts)), pace.starts - len(starts), frees_at))
    return found + budgets(state, pool_id, limits, consumer, now)


def room(state: State, pool_id: UUID, consumer: str, target: str | None, now: datetime) -> int:
    """Return how many more leases a consumer may have for a target."""
    known = bounds(state, pool_id, consumer, target, 1, now)
    return min((each.room for each in known), default=UNBOUNDED)


def most(state: State, pool_id: UUID, consumer: str, target: str | None, now: datetime) -> float:
    """Return how many leases a consumer could have at once for a target, if nobody had any."""
    known = [each.limit for each in bounds(state, pool_id, consumer, target, 1, now)]
    return min((each.most for each in known if not is_budget(each)), default=UNBOUNDED)


def is_paced(
    state: State, pool_id: UUID, target: str | None, now: datetime
) -> Callable[[UUID], bool] | None:
    """Return the function that says whether a proxy is passed over for a pace, if there is one."""
    paces = _paces_of_proxies(state, pool_id, target)
    if not paces:
        return None
    return lambda proxy_id: any(
        len(_starts(state, pool_id, proxy_id, pace, target, now)) >= pace.starts for pace in paces
    )


def has_paced_proxies(state: State, pool_id: UUID) -> bool:
    """Return whether proxies of a pool are paced, so that a set has each of them once."""
    return bool(_paces_of_proxies(state, pool_id, ""))


def reached(
    state: State,
    pool_id: UUID,
    consumer: str,
    target: str | None,
    needed: int,
    now: datetime,
    *,
    is_free: Callable[[UUID], bool],
) -> Bound | None:
    """Return the limit that a request has reached: of several the one that is freed last.

    If none of consumer and target is, that of the proxy which may begin a lease first, of those
    that are free for the request but for their paces.
    """
    full = [
        each for each in bounds(state, pool_id, consumer, target, needed, now) if each.room < needed
    ]
    if full:
        return min(full, key=_last_freed)
    backs: list[tuple[datetime, UUID, Bound]] = []
    by_proxy: dict[UUID, list[Bound]] = {}
    for pace in _paces_of_proxies(state, pool_id, target):
        for proxy_id in state.limits.proxies(pool_id, now, pace.seconds):
            starts = _starts(state, pool_id, proxy_id, pace, target, now)
            is_member = proxy_id in state.pools[pool_id].members
            if len(starts) >= pace.starts and is_member and is_free(proxy_id):
                frees_at = starts[-pace.starts] + timedelta(seconds=pace.seconds)
                bound = Bound(_pace(pace, len(starts)), 0, frees_at)
                by_proxy.setdefault(proxy_id, []).append(bound)
    for proxy_id, known in by_proxy.items():
        last = min(known, key=_last_freed)
        if last.frees_at is not None:
            backs.append((last.frees_at, proxy_id, last))
    return min(backs, key=lambda each: each[:2])[2] if backs else None


def next_start(state: State, pool_id: UUID, now: datetime) -> datetime | None:
    """Return when a start counts no more for the next time, by any pace of a pool."""
    limits = limits_of(state, pool_id)
    moments = []
    for pace in () if limits is None else limits.paces:
        span = timedelta(seconds=pace.seconds)
        first = state.limits.first(pool_id, now - span)
        if first is not None:
            moments.append(first + span)
    if limits is not None and has_budget(limits):
        moments.append(next_day(now))
    return min(moments, default=None)


def _paces_of_proxies(state: State, pool_id: UUID, target: str | None) -> list[Pace]:
    limits = limits_of(state, pool_id)
    paces = () if limits is None else limits.paces
    return [
        pace for pace in paces if pace.per == "proxy" or (pace.per == "pair" and target is not None)
    ]


def _starts(
    state: State, pool_id: UUID, proxy_id: UUID, pace: Pace, target: str | None, now: datetime
) -> list[datetime]:
    """Return the starts of a proxy, or of it for a target, that a pace counts now."""
    wanted = target if pace.per == "pair" else None
    return state.limits.starts(pool_id, proxy_id, now, pace.seconds, wanted)


def _freed(moments: list[datetime], most: int, needed: int) -> datetime | None:
    """Return when so many of what is used have ended that there is room for what is needed."""
    place = len(moments) - most + needed - 1
    return moments[place] if 0 <= place < len(moments) else None


def _pace(pace: Pace, used: int) -> LimitReached:
    return LimitReached(
        name="pace", per=pace.per, most=pace.starts, used=used, seconds=pace.seconds
    )


def _last_freed(bound: Bound) -> tuple[Any, ...]:
    """Return the key by which the limit that is freed last, or never, comes first."""
    limit, at = bound.limit, bound.frees_at
    seconds = float("inf") if limit.seconds is None else limit.seconds
    return at is not None, -at.timestamp() if at else 0, limit.name, limit.per, seconds
