"""Where a selector looks, and the lock that makes its choice true.

The first pass skips what others have locked, so that callers do not queue on
one proxy. The second waits for them, in the order of ids (all who wait do, so
none can wait in a circle), before anybody is told that nothing was free.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    Integer,
    Uuid,
    and_,
    func,
    literal_column,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY

from projections.selector_cursors import ROUND_ROBIN, selector_cursors

from ...models import SelectorStrategy
from .filtering import Shape, condition
from .reading import a, d
from .sql import POOL_ID, parameter, word

ORDERS: dict[SelectorStrategy, tuple[ColumnElement[Any], ...]] = {
    SelectorStrategy.FIRST_AVAILABLE: (a.c.lease_rank, a.c.checked_at.desc(), a.c.proxy_id),
    SelectorStrategy.LEAST_USED: (
        a.c.lease_rank,
        a.c.current_leases,
        a.c.checked_at,
        a.c.proxy_id,
    ),
    SelectorStrategy.LOWEST_LATENCY: (a.c.lease_rank, a.c.latency_ms, a.c.proxy_id),
}
_CHOICE = (a.c.proxy_id, a.c.status, a.c.current_leases, a.c.max_concurrency)


def leasable(shape: Shape | None, highest_rank: ColumnElement[Any]) -> Select[Any]:
    """Return the query of the pool's free proxies that match filters of this shape."""
    return matching(shape, _CHOICE).where(a.c.lease_rank <= highest_rank)


def matching(shape: Shape | None, columns: tuple[Any, ...]) -> Select[Any]:
    """Return the query of the pool's proxies that match filters of this shape, free or not."""
    found = select(*columns).select_from(a).where(a.c.pool_id == POOL_ID)
    if shape is None:
        return found
    joined = and_(d.c.pool_id == POOL_ID, d.c.id == a.c.proxy_id)
    return (
        select(*columns)
        .select_from(a.join(d, joined))
        .where(a.c.pool_id == POOL_ID, condition(shape, d))
    )


def highest_rank(rule: FromClause) -> ColumnElement[Any]:
    """Return the highest rank that the pool leases: 1 if it leases SLOW proxies, else 0."""
    return select(rule.c.lease_slow.cast(Integer)).scalar_subquery()


def candidate(
    selector: SelectorStrategy,
    shape: Shape | None,
    rule: FromClause,
    *,
    wait: bool,
    among: bool = False,
) -> CTE:
    """Return the CTE that locks the proxy to lease: one row, or none.

    Parameters
    ----------
    rule:
        One row with the pool's ``lease_slow``, or no row, and then nothing is locked.
    wait:
        Whether to wait for locked rows, in the order of ids.
    among:
        Whether to look at the proxies of the parameter ``among`` only, in its order.
    """
    free = leasable(shape, highest_rank(rule))
    if among:
        ids = parameter("among", ARRAY(Uuid))
        place = func.array_position(ids, a.c.proxy_id)
        free = free.where(a.c.proxy_id == func.any(ids))
        return _locked(free.order_by(a.c.proxy_id if wait else place), wait=wait)
    if wait:
        return _locked(free.order_by(a.c.proxy_id), wait=True)
    if selector is SelectorStrategy.ROUND_ROBIN:
        return _after_cursor(free, rule)
    return _locked(free.order_by(*ORDERS[selector]), wait=False)


def cursor(rule: FromClause) -> CTE:
    """Return the CTE that locks the pool's round-robin cursor, so that callers take turns."""
    return (
        select(selector_cursors.c.proxy_id)
        .where(
            selector_cursors.c.pool_id == POOL_ID,
            selector_cursors.c.selector == word(ROUND_ROBIN),
            select(literal_column("1")).select_from(rule).exists(),
        )
        .with_for_update()
        .cte("cursor")
    )


def _locked(free: Select[Any], *, wait: bool, name: str = "candidate") -> CTE:
    return free.limit(literal_column("1")).with_for_update(of=a, skip_locked=not wait).cte(name)


def _after_cursor(free: Select[Any], rule: FromClause, *, lock: bool = True) -> CTE:
    """The next id after the cursor, else from the start; ACTIVE ones before SLOW ones."""
    turn = select(cursor(rule).c.proxy_id).scalar_subquery()
    probes: list[CTE] = []
    for rank in (0, 1):
        for ahead in (True, False):
            probe = free.where(a.c.lease_rank == literal_column(str(rank)))
            # Without a turn yet the comparison is null, and the probe from the start answers.
            probe = probe.where(a.c.proxy_id > turn) if ahead else probe
            for earlier in probes:
                probe = probe.where(~select(literal_column("1")).select_from(earlier).exists())
            probe = probe.order_by(a.c.proxy_id).limit(literal_column("1"))
            probe = probe.with_for_update(of=a, skip_locked=True) if lock else probe
            name = f"rank_{rank}_{'ahead' if ahead else 'wrapped'}"
            probes.append(probe.cte(name).prefix_with("MATERIALIZED"))
    return union_all(*(select(probe) for probe in probes)).cte("candidate")


def next_turn(shape: Shape | None, rule: FromClause) -> CTE:
    """Return the CTE of the proxy whose turn it is, without locking it."""
    return _after_cursor(leasable(shape, highest_rank(rule)), rule, lock=False)
