"""Find the proxies that consecutive acquisitions would be granted, without leasing them.

A set is granted as a whole or not at all, so its proxies must be known before
the first lease is recorded. The order is that of single acquisitions, one after
another: each lease changes what the selector offers next. Candidates are
found lazily.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from hashlib import md5
from heapq import heappop, heappush
from itertools import groupby, islice, repeat
from typing import Any
from uuid import UUID

from ...models import (
    ProxyFilters,
    SelectorStrategy,
    drawn,
    explores,
    seed_of,
    step_of,
    success_score,
    turns_after,
)
from . import limits
from .outcomes import is_tried, is_troubled, rests_for
from .pool_index import PoolIndex
from .state import State

Matches = Callable[[UUID], bool]

RECORDS, BEST, OTHERS = 1024, 32, 32
"""How many records MOST_SUCCESSFUL looks at, how many of the best it takes, and of the others."""

FRONT, FRONT_EACH = 8, 2
"""How many of an order are looked at for a target, and how many more for each lease wanted."""


def candidates(
    state: State,
    pool: PoolIndex,
    selector: SelectorStrategy,
    filters: ProxyFilters | None,
    target: str | None = None,
    *,
    distinct: bool,
    count: int = 1,
    also: Matches | None = None,
    is_unpaced: bool = False,
    now: datetime | None = None,
) -> Iterator[UUID]:
    """Yield the proxies that consecutive acquisitions would be granted.

    Filters are evaluated once for each proxy, on its state before the first acquisition.

    Parameters
    ----------
    distinct:
        Yield each proxy once, else once for each lease it has capacity for: endlessly
        if its capacity is unlimited.
    count:
        How many are wanted.
    also:
        What a proxy must meet as well, which most of those in front may not.
    is_unpaced:
        Whether to pass over no proxy for a pace of the pool.
    now:
        The time of the events that record the leases, which MOST_SUCCESSFUL draws by.
    """
    if selector is SelectorStrategy.MOST_SUCCESSFUL and target is None:
        selector = SelectorStrategy.FIRST_AVAILABLE  # There is no record to go by.
    if target is not None and is_tried(state, pool.pool_id, target):
        return iter(())
    if not is_unpaced:
        also = _unless_paced(state, pool, target, also)
    matches = _matching(state, pool, filters, target, also)
    if selector is SelectorStrategy.ROUND_ROBIN:
        turn = state.rows["selector_cursors"][pool.pool_id, selector.value].proxy_id
        return _in_turns(state, pool, turn, matches, distinct=distinct)
    # One tries a target in trouble, and not the first in the order, which may be what fails.
    is_try = target is not None and is_troubled(state, pool.pool_id, target)
    offered: Iterator[UUID] = filter(matches, pool.offered(selector))
    if selector is SelectorStrategy.MOST_SUCCESSFUL and target and matches and not is_try:
        offered = _by_success(state, pool, target, matches, count, now or state.clock())
    elif matches is not None and (target is not None or also is not None):
        start = _start(state, target or "")
        offered = _past_resting(pool, selector, matches, 0 if is_try else count, start)
    if is_try or distinct:
        return islice(offered, 1) if is_try else offered
    return _AFTER_EACH_LEASE.get(selector, _each_drained)(state, pool, offered)


def is_free(
    state: State,
    pool: PoolIndex,
    proxy_id: UUID,
    filters: ProxyFilters | None,
    target: str | None = None,
    *,
    is_unpaced: bool = False,
) -> bool:
    """Return whether a proxy is one that an acquisition could be granted."""
    if target is not None and is_tried(state, pool.pool_id, target):
        return False
    also = None if is_unpaced else _unless_paced(state, pool, target, None)
    matches = _matching(state, pool, filters, target, also)
    return pool.is_leasable(proxy_id) and (matches is None or matches(proxy_id))


def without_kept(
    state: State,
    pool: PoolIndex,
    found: Iterator[UUID],
    kept: Mapping[UUID, int],
    *,
    distinct: bool,
) -> Iterator[UUID]:
    """Yield candidates, but for the room that is kept for who waits."""
    room: dict[UUID, float] = {}
    for proxy_id in found:
        if proxy_id not in room:
            room[proxy_id] = _room(state, pool, proxy_id) - kept.get(proxy_id, 0)
        room[proxy_id] -= 1
        if room[proxy_id] >= 0:
            yield proxy_id
        elif not distinct and all(left < 0 for left in room.values()):
            return  # What is left is kept.


def _matching(
    state: State,
    pool: PoolIndex,
    filters: ProxyFilters | None,
    target: str | None,
    also: Matches | None = None,
) -> Matches | None:
    """Return what a proxy must meet beside being leasable: the filters, and not to rest."""
    meets = None if filters is None else _meeting(state, filters)
    if also is not None:
        meets = also if meets is None else _both(meets, also)
    if not pool.may_rest and target is None:
        return meets
    now = state.clock()
    rests = _no if target is None else rests_for(state, pool.pool_id, target, now)
    return lambda proxy_id: (
        pool.rests_until(proxy_id, now) is None
        and not rests(proxy_id)
        and (meets is None or meets(proxy_id))
    )


def _unless_paced(
    state: State, pool: PoolIndex, target: str | None, also: Matches | None
) -> Matches | None:
    """Return what a proxy must meet, and that no pace passes over it."""
    paced = limits.is_paced(state, pool.pool_id, target, state.clock())
    if paced is None:
        return also
    within: Matches = lambda proxy_id: not paced(proxy_id)  # noqa: E731
    return within if also is None else _both(within, also)


def _both(one: Matches, other: Matches) -> Matches:
    return lambda proxy_id: one(proxy_id) and other(proxy_id)


def _no(_proxy_id: UUID) -> bool:
    return False


def _past_resting(
    pool: PoolIndex, selector: SelectorStrategy, matches: Matches, count: int, start: UUID
) -> Iterator[UUID]:
    """Yield the proxies that match: those in front of a selector's order, and then all others.

    The others come in the order of their ids after ``start``, so finding one costs the same
    however many rest for a target (``free_for_target_v1``).
    """
    size = FRONT + FRONT_EACH * count if count else 0
    front = list(islice(pool.offered(selector), size))
    yield from filter(matches, front)
    if len(front) < size:
        return
    known = set(front)
    for rank in pool.ranks():
        others = pool.from_turn(rank, start)
        yield from (each for each in others if each not in known and matches(each))


def _by_success(
    state: State, pool: PoolIndex, target: str, matches: Matches, count: int, now: datetime
) -> Iterator[UUID]:
    """Yield the most successful proxies at a target, or any if it explores.

    They are looked for as ``most_successful_v1`` does.
    """
    seed, rows, size = seed_of(target, now), state.rows["target_outcomes"], BEST + 2 * count
    start = UUID(drawn(seed))

    def place(proxy_id: UUID) -> tuple[float, str]:
        row = rows.get((pool.pool_id, proxy_id, target))
        score = success_score(0, 0) if row is None else success_score(row.successes, row.failures)
        return 0 if explores(seed) else -score, drawn(f"{seed}:{proxy_id}")

    for rank in pool.ranks():
        found = set(islice(filter(matches, pool.from_turn(rank, start)), OTHERS))
        if not explores(seed):
            pairs = state.targets.best(pool.pool_id, target)
            known = (each for each in pairs if (pool.pool_id, each, target) in rows)
            free = (
                each
                for each in islice(known, RECORDS)
                if pool.is_leasable(each) and pool.rank_of(each) == rank and matches(each)
            )
            found |= set(islice(free, size))
        yield from sorted(found, key=place)[:size]


def _meeting(state: State, filters: ProxyFilters) -> Matches:
    """Return whether a proxy meets filters, by its id first: that needs no model of it."""
    wanted = filters.proxy_id
    return lambda proxy_id: wanted in (None, proxy_id) and filters.matches(state.proxy(proxy_id))


def _start(state: State, target: str) -> UUID:
    """Return where to begin among the others for a target: another place each second."""
    second = f"{int(state.clock().timestamp())}.000000"
    return UUID(md5(f"{target}{second}".encode(), usedforsecurity=False).hexdigest())


def _room(state: State, pool: PoolIndex, proxy_id: UUID) -> float:
    row = state.availability(pool.pool_id, proxy_id)
    capacity = float("inf") if row.max_concurrency is None else row.max_concurrency
    return capacity - row.current_leases


def _each_drained(state: State, pool: PoolIndex, offered: Iterator[UUID]) -> Iterator[UUID]:
    return (proxy_id for each in offered for proxy_id in _drained(state, pool, each))


def _drained(state: State, pool: PoolIndex, proxy_id: UUID) -> Iterator[UUID]:
    """Yield a proxy once for each free lease: it keeps its place in the order until it is full."""
    room = _room(state, pool, proxy_id)
    return repeat(proxy_id) if room == float("inf") else repeat(proxy_id, int(room))


def _by_use(state: State, pool: PoolIndex, offered: Iterator[UUID]) -> Iterator[UUID]:
    """Merge the proxies not yet taken with those taken, whose lease count grows each time."""
    taken: list[tuple[Any, ...]] = []
    fresh = next(offered, None)
    while fresh is not None or taken:
        if fresh is not None and (not taken or pool.use_of(fresh) < taken[0][:-1]):
            key, room, proxy_id = pool.use_of(fresh), _room(state, pool, fresh), fresh
            fresh = next(offered, None)
        else:
            *key_of_taken, (room, proxy_id) = heappop(taken)
            key = tuple(key_of_taken)
        yield proxy_id
        if room > 1:
            rank, leases, *rest = key
            heappush(taken, (rank, leases + 1, *rest, (room - 1, proxy_id)))


def _by_turn(state: State, pool: PoolIndex, offered: Iterator[UUID]) -> Iterator[UUID]:
    """Merge the proxies not yet taken with those taken, whose next turn is later each time."""
    taken: list[tuple[Any, ...]] = []
    reached = pool.turns_reached()
    fresh = next(offered, None)
    while fresh is not None or taken:
        if fresh is not None and (not taken or pool.turn_of(fresh) < taken[0][:3]):
            (rank, _, number), proxy_id = pool.turn_of(fresh), fresh
            room, step = _room(state, pool, fresh), step_of(state.proxy_row(fresh).weight)
            row = state.availability(pool.pool_id, fresh)
            _, turn = turns_after(fresh, row.next_turn, step, reached.get(row.status))
            fresh = next(offered, None)
        else:
            rank, turn, number, room, step, proxy_id = heappop(taken)
            turn += step
        yield proxy_id
        if room > 1:
            heappush(taken, (rank, turn, number, room - 1, step, proxy_id))


def _last_after_each_lease(
    state: State, pool: PoolIndex, offered: Iterator[UUID]
) -> Iterator[UUID]:
    """Cycle through the proxies of each rank, as a lease makes a proxy the last of its rank."""
    for _, of_rank in groupby(offered, key=pool.rank_of):
        yield from _around(state, pool, of_rank)


def _in_turns(
    state: State, pool: PoolIndex, turn: UUID | None, matches: Matches | None, *, distinct: bool
) -> Iterator[UUID]:
    """Cycle through each rank, starting after the last turn, until all its proxies are full."""
    for rank in pool.ranks():
        offered = filter(matches, pool.from_turn(rank, turn))
        for proxy_id in _around(state, pool, offered, distinct=distinct):
            turn = proxy_id
            yield proxy_id


def _around(
    state: State, pool: PoolIndex, offered: Iterator[UUID], *, distinct: bool = False
) -> Iterator[UUID]:
    """Yield proxies in their order, again and again, until each is full; once if ``distinct``."""
    left: dict[UUID, float] = {}
    for proxy_id in offered:
        left[proxy_id] = 1 if distinct else _room(state, pool, proxy_id)
        yield proxy_id
    while left := {proxy_id: room - 1 for proxy_id, room in left.items() if room > 1}:
        yield from left


_AFTER_EACH_LEASE: dict[
    SelectorStrategy, Callable[[State, PoolIndex, Iterator[UUID]], Iterator[UUID]]
] = {
    SelectorStrategy.LEAST_USED: _by_use,
    SelectorStrategy.WEIGHTED: _by_turn,
    SelectorStrategy.LEAST_RECENTLY_USED: _last_after_each_lease,
}
"""Where a lease moves a proxy in the order: else it keeps its place until it is full."""
