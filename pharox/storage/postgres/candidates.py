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
from .reading import availability, description
from .sql import ONE, POOL_ID, parameter, text_literal

ORDERS: dict[SelectorStrategy, tuple[ColumnElement[Any], ...]] = {
    SelectorStrategy.FIRST_AVAILABLE: (
        availability.c.lease_rank,
        availability.c.checked_at.desc(),
        availability.c.proxy_id,
    ),
    SelectorStrategy.LEAST_USED: (
        availability.c.lease_rank,
        availability.c.current_leases,
        availability.c.checked_at,
        availability.c.proxy_id,
    ),
    SelectorStrategy.LOWEST_LATENCY: (
        availability.c.lease_rank,
        availability.c.latency_ms,
        availability.c.proxy_id,
    ),
}
_CHOICE = (
    availability.c.proxy_id,
    availability.c.status,
    availability.c.current_leases,
    availability.c.max_concurrency,
)


def leasable(shape: Shape | None, highest_rank: ColumnElement[Any]) -> Select[Any]:
    """Return the query of the pool's free proxies that match filters of this shape."""
    return matching(shape, _CHOICE).where(availability.c.lease_rank <= highest_rank)


def matching(shape: Shape | None, columns: tuple[Any, ...]) -> Select[Any]:
    """Return the query of the pool's proxies that match filters of this shape, free or not."""
    found = select(*columns).select_from(availability).where(availability.c.pool_id == POOL_ID)
    if shape is None:
        return found
    joined = and_(description.c.pool_id == POOL_ID, description.c.id == availability.c.proxy_id)
    return (
        select(*columns)
        .select_from(availability.join(description, joined))
        .where(availability.c.pool_id == POOL_ID, condition(shape, description))
    )


def highest_rank(rule: FromClause) -> ColumnElement[Any]:
    """Return the highest rank to lease: 1 in a pool that leases SLOW proxies, 0, or null."""
    return select(rule.c.highest_rank).scalar_subquery()


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
        Has the ``highest_rank`` to lease; without one, nothing is locked.
    wait:
        Whether to wait for locked rows, in the order of ids.
    among:
        Whether to look at the proxies of the parameter ``among`` only, in its order.
    """
    free = leasable(shape, highest_rank(rule))
    if selector is SelectorStrategy.ROUND_ROBIN:
        if not (wait or among):
            return _taking_turns(free, rule)
        # The turn moves in any case, and a cursor is locked before any proxy.
        free = free.where(select(ONE).select_from(cursor(rule)).exists())
    if among:
        ids = parameter("among", ARRAY(Uuid))
        place = func.array_position(ids, availability.c.proxy_id)
        free = free.where(availability.c.proxy_id == func.any(ids))
        return _locked(free.order_by(availability.c.proxy_id if wait else place), wait=wait)
    if wait:
        return _locked(free.order_by(availability.c.proxy_id), wait=True)
    return _locked(free.order_by(*ORDERS[selector]), wait=False)


def cursor(rule: FromClause) -> CTE:
    """Return the CTE that locks the pool's round-robin cursor, so that callers take turns."""
    return (
        select(selector_cursors.c.proxy_id)
        .where(
            selector_cursors.c.pool_id == POOL_ID,
            selector_cursors.c.selector == text_literal(ROUND_ROBIN),
            select(ONE).where(rule.c.highest_rank.is_not(None)).exists(),
        )
        .with_for_update()
        .cte("cursor")
    )


def _locked(free: Select[Any], *, wait: bool, name: str = "candidate") -> CTE:
    return free.limit(ONE).with_for_update(of=availability, skip_locked=not wait).cte(name)


def _probes(free: Select[Any], turn: CTE) -> list[Select[Any]]:
    """Return where round-robin looks, in order, once the pool's cursor is locked.

    The next id after the cursor, else from the start; ACTIVE ones before SLOW ones.
    """
    last = select(turn.c.proxy_id).scalar_subquery()
    probes = []
    for rank in ("0", "1"):
        # Without a turn yet this comparison is null, and the probe from the start answers.
        for place in ((availability.c.proxy_id > last,), ()):
            probe = free.where(availability.c.lease_rank == literal_column(rank), *place)
            probes.append(probe.order_by(availability.c.proxy_id).limit(ONE))
    return probes


def next_turn(shape: Shape | None, rule: FromClause) -> CTE:
    """Return the CTE of the proxy whose turn it is, without locking it; none without a cursor."""
    free = leasable(shape, highest_rank(rule))
    turn = cursor(rule)
    return _whose_turn(_probes(free.where(select(ONE).select_from(turn).exists()), turn))


def _whose_turn(probes: list[Select[Any]]) -> CTE:
    places = (
        select(probe.subquery(), literal_column(str(number)).label("place"))
        for number, probe in enumerate(probes)
    )
    found = union_all(*places).subquery("found")
    return select(found).order_by(found.c.place).limit(ONE).cte("next_turn")


def _taking_turns(free: Select[Any], rule: FromClause) -> CTE:
    """Lock the proxy whose turn it is, waiting for it; if it is taken then, the next unlocked.

    Only the cursor is held while waiting, and who holds a proxy never waits for
    a cursor, so this cannot end in a circle.
    """
    probes = _probes(free, cursor(rule))
    next_id = select(_whose_turn(probes).c.proxy_id).scalar_subquery()
    first = (
        free.where(availability.c.proxy_id == next_id)
        .with_for_update(of=availability)
        .cte("first_choice")
    )
    choices = [first]
    for number, probe in enumerate(probes):
        untaken = (~select(ONE).select_from(choice).exists() for choice in choices)
        locked = probe.where(*untaken).with_for_update(of=availability, skip_locked=True)
        choices.append(locked.cte(f"choice_{number}"))
    return union_all(*(select(choice) for choice in choices)).cte("candidate")
