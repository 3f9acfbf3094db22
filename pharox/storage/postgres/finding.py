"""Find proxies without leasing them: the one that a selector offers, or pages of candidates."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Interval,
    Select,
    Text,
    Uuid,
    and_,
    cast,
    func,
    literal_column,
    not_,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from projections.leases import leases
from projections.pools import pools
from projections.rotations import rotations
from projections.selector_cursors import ROUND_ROBIN, selector_cursors
from projections.target_outcomes import target_outcomes
from projections.troubled_targets import troubled_targets

from ...models import SelectorStrategy
from .appending import append, event_row
from .filtering import FilterShape, condition
from .reading import availability, description, proxy_rows
from .sql import ONE, POOL_ID, Statement, by_schema, compiled, now, parameter, text_literal

FIRST_PAGE, LARGEST_PAGE = 500, 8000
"""The size of the first page of candidates, and the largest size."""

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
    SelectorStrategy.LEAST_RECENTLY_USED: (
        availability.c.lease_rank,
        availability.c.leased_at.nulls_first(),
        availability.c.proxy_id,
    ),
    SelectorStrategy.WEIGHTED: (
        availability.c.lease_rank,
        availability.c.next_turn.nulls_first(),
        availability.c.proxy_id,
    ),
}
ORDERS[SelectorStrategy.MOST_SUCCESSFUL] = (
    availability.c.lease_rank,
    func.coalesce(
        select(
            (target_outcomes.c.successes + 1).op("/")(
                target_outcomes.c.successes + target_outcomes.c.failures + 2
            )
        )
        .where(
            target_outcomes.c.pool_id == availability.c.pool_id,
            target_outcomes.c.proxy_id == availability.c.proxy_id,
            target_outcomes.c.target == parameter("target", Text),
        )
        .scalar_subquery(),
        0.5,
    ).desc(),
    availability.c.checked_at.desc(),
    availability.c.proxy_id,
)
_CHOICE = (
    availability.c.proxy_id,
    availability.c.status,
    availability.c.current_leases,
    availability.c.max_concurrency,
)


RESTED = or_(availability.c.rests_until.is_(None), availability.c.rests_until <= now)
"""The condition that a proxy does not rest."""


TROUBLE = literal_column("interval '15 minutes'", Interval)
"""For how long a target is in trouble of which nobody says more (``lasts_v1``)."""


def _tries() -> ColumnElement[bool]:
    """Return the condition that a lease is active for the target of a request."""
    return and_(
        leases.c.pool_id == POOL_ID,
        leases.c.status == text_literal("active"),
        leases.c.target == parameter("target", Text),
    )


def _is_rotating() -> ColumnElement[bool]:
    """Return whether a proxy rests until it has another exit."""
    own = select(rotations.c.proxy_id).where(
        rotations.c.pool_id == availability.c.pool_id,
        rotations.c.proxy_id == availability.c.proxy_id,
        rotations.c.ends_at > now,
    )
    return own.exists()


def _is_tried() -> ColumnElement[bool]:
    """Return the condition of ``for_target_v1`` that a target in trouble is tried already."""
    trouble = troubled_targets.c
    tries = select(ONE).where(_tries(), leases.c.acquired_at >= trouble.since)
    return (
        select(ONE)
        .where(
            trouble.pool_id == POOL_ID,
            trouble.target == parameter("target", Text),
            trouble.since > now - TROUBLE,
            tries.exists(),
        )
        .exists()
    )


def _rests_for_target() -> ColumnElement[bool]:
    """Return the condition of ``for_target_v1`` that a proxy is passed over for a target."""
    pair = target_outcomes.c
    of_pair = select(ONE).where(_tries(), leases.c.proxy_id == availability.c.proxy_id)
    rests = or_(pair.cools_until > now, and_(pair.cools_until.is_not(None), of_pair.exists()))
    return (
        select(ONE)
        .where(
            pair.pool_id == POOL_ID,
            pair.proxy_id == availability.c.proxy_id,
            pair.target == parameter("target", Text),
            rests,
        )
        .exists()
    )


def leasable(filter_shape: FilterShape | None, highest_rank: ColumnElement[Any]) -> Select[Any]:
    """Return the query for the pool's free proxies that match filters of this shape."""
    is_free = availability.c.lease_rank <= highest_rank
    return matching(filter_shape, _CHOICE).where(is_free, RESTED)


def matching(filter_shape: FilterShape | None, columns: tuple[Any, ...]) -> Select[Any]:
    """Return the query for the pool's proxies that match filters of this shape, free or not."""
    found = select(*columns).select_from(availability).where(availability.c.pool_id == POOL_ID)
    if filter_shape is None:
        return found
    joined = and_(description.c.pool_id == POOL_ID, description.c.id == availability.c.proxy_id)
    return (
        select(*columns)
        .select_from(availability.join(description, joined))
        .where(availability.c.pool_id == POOL_ID, condition(filter_shape, description))
    )


def highest_rank(eligibility: FromClause) -> ColumnElement[Any]:
    """Return the highest rank that may be leased: 1 if the pool leases SLOW proxies, 0, or null."""
    return select(eligibility.c.highest_rank).scalar_subquery()


def cursor(eligibility: FromClause) -> CTE:
    """Return the CTE that locks the pool's round-robin cursor, so that callers take turns."""
    return (
        select(selector_cursors.c.proxy_id)
        .where(
            selector_cursors.c.pool_id == POOL_ID,
            selector_cursors.c.selector == text_literal(ROUND_ROBIN),
            select(ONE).where(eligibility.c.highest_rank.is_not(None)).exists(),
        )
        .with_for_update()
        .cte("cursor")
    )


def _probes(free: Select[Any], turn: CTE) -> list[Select[Any]]:
    """Return the queries that round-robin tries in order, once the pool's cursor is locked.

    They find the next id after the cursor, else the first id; ACTIVE proxies before SLOW ones.
    """
    last = select(turn.c.proxy_id).scalar_subquery()
    probes = []
    for rank in ("0", "1"):
        # Before the first turn this comparison is null, and the probe from the start matches.
        for place in ((availability.c.proxy_id > last,), ()):
            probe = free.where(availability.c.lease_rank == literal_column(rank), *place)
            probes.append(probe.order_by(availability.c.proxy_id).limit(ONE))
    return probes


def next_turn(filter_shape: FilterShape | None, eligibility: FromClause) -> CTE:
    """Return the CTE of the next proxy in turn, without locking it. Empty without a cursor."""
    free = leasable(filter_shape, highest_rank(eligibility))
    turn = cursor(eligibility)
    return _whose_turn(_probes(free.where(select(ONE).select_from(turn).exists()), turn))


def _whose_turn(probes: list[Select[Any]]) -> CTE:
    places = (
        select(probe.subquery(), literal_column(str(number)).label("place"))
        for number, probe in enumerate(probes)
    )
    found = union_all(*places).subquery("found")
    return select(found).order_by(found.c.place).limit(ONE).cte("next_turn")


def _exists(rows: Any) -> ColumnElement[bool]:
    return select(ONE).select_from(rows).exists()


def _eligibility() -> CTE:
    """Return the CTE of the pool's highest leasable rank."""
    rank = cast(pools.c.lease_slow, Integer).label("highest_rank")
    return select(rank).where(pools.c.id == POOL_ID).cte("rule")


@by_schema
def record_miss_statement() -> Select[Any]:
    """Append a miss whose reason the caller gives."""
    row = event_row(
        "AcquireMissed",
        consumer=parameter("consumer"),
        pool_name=parameter("pool_name"),
        selector=parameter("selector"),
        data=parameter("details", JSONB),
    )
    return select(append(select(row)).c.position)


@lru_cache(maxsize=256)
def page_statement(
    schema: str, selector: SelectorStrategy, filter_shape: FilterShape | None, *, by_id: bool
) -> Statement:
    """Return the query for one page of proxies on which Python evaluates a predicate.

    By default it pages through the free proxies in the selector's order. With ``by_id`` it
    pages through all proxies by key, so it misses no proxy that exists throughout.
    """
    eligibility = _eligibility()
    highest = highest_rank(eligibility)
    healthy = or_(
        availability.c.status == text_literal("active"),
        and_(availability.c.status == text_literal("slow"), highest == literal_column("1")),
    )
    has_room = func.coalesce(availability.c.lease_rank <= highest, False)
    is_tried = _is_tried()
    cooling = or_(_rests_for_target(), is_tried)
    page = (
        proxy_rows()
        .add_columns(
            and_(has_room, RESTED, not_(cooling)).label("leasable"),
            and_(has_room, RESTED, cooling).label("cooling"),
            is_tried.label("troubled"),
            and_(has_room, not_(RESTED)).label("resting"),
            and_(has_room, not_(RESTED), _is_rotating()).label("rotating"),
            healthy.label("healthy"),
        )
        .where(availability.c.pool_id == POOL_ID, condition(filter_shape, description))
    )
    page = page.limit(parameter("page_size", Integer))
    if by_id:
        page = page.where(availability.c.proxy_id >= parameter("from_id", Uuid)).order_by(
            availability.c.proxy_id
        )
    else:
        page = page.where(availability.c.lease_rank <= highest, RESTED)
        page = page.order_by(*_order(selector))
        page = page.offset(parameter("offset", Integer))
    return compiled(page, schema)


def _order(selector: SelectorStrategy) -> tuple[ColumnElement[Any], ...]:
    if selector is not SelectorStrategy.ROUND_ROBIN:
        return ORDERS[selector]
    turn = (
        select(selector_cursors.c.proxy_id)
        .where(selector_cursors.c.pool_id == POOL_ID)
        .scalar_subquery()
    )
    wrapped = func.coalesce(availability.c.proxy_id <= turn, False)
    return (availability.c.lease_rank, wrapped, availability.c.proxy_id)


@lru_cache(maxsize=256)
def find_statement(
    schema: str, selector: SelectorStrategy, filter_shape: FilterShape | None
) -> Statement:
    """Return the statement that finds a selector's next proxy. It moves round-robin's cursor."""
    eligibility = _eligibility()
    if selector is not SelectorStrategy.ROUND_ROBIN:
        highest = highest_rank(eligibility)
        found = proxy_rows().where(
            availability.c.pool_id == POOL_ID,
            availability.c.lease_rank <= highest,
            RESTED,
            condition(filter_shape, description),
        )
        return compiled(found.order_by(*ORDERS[selector]).limit(ONE), schema)
    return _offering(schema, next_turn(filter_shape, eligibility))


@lru_cache(maxsize=16)
def offer_statement(schema: str) -> Statement:
    """Return the statement that offers ``proxy_id`` and moves round-robin's cursor to it."""
    choice = select(availability.c.proxy_id).where(
        availability.c.pool_id == POOL_ID,
        availability.c.proxy_id == parameter("proxy_id", Uuid),
        _exists(cursor(_eligibility())),
    )
    return _offering(schema, choice.cte("candidate"))


def _offering(schema: str, choice: CTE) -> Statement:
    # The choice reads the locked cursor, so two callers cannot be offered the same turn.
    row = event_row(
        "CursorMoved",
        proxy_id=choice.c.proxy_id,
        selector=text_literal(SelectorStrategy.ROUND_ROBIN),
    )
    appended = append(select(row).select_from(choice))
    found = proxy_rows().where(
        availability.c.pool_id == POOL_ID, availability.c.proxy_id == appended.c.proxy_id
    )
    return compiled(found, schema)
