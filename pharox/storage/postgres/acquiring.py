"""Decide a lease in one statement.

    rule ──> candidate (locked) ──> LeaseAcquired appended ──> folded ──> what came of it

``rule`` is the pool's row, and there is none (so nothing happens) while an
expired lease of the pool waits to be taken back: the caller does that first
and asks again. The second pass, which waits for locked proxies, appends
``AcquireMissed`` when it finds none; but only if nothing was free in its
snapshot either. If something was, another caller was quicker and may have
freed its own proxy since, so the only honest answer is to look again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Select,
    Subquery,
    Text,
    Uuid,
    and_,
    case,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from projections import SELECTOR_CURSORS, registered
from projections.consumers import consumers
from projections.leases import leases
from projections.pools import pools
from projections.selector_cursors import selector_cursors

from ...models import MissReason, SelectorStrategy
from .appending import append, counted, event_row, fold_into, json_object, state
from .candidates import ORDERS, candidate, cursor, highest_rank, leasable, matching, next_turn
from .filtering import Shape, condition
from .reading import availability, description, proxy_rows
from .sql import ONE, POOL_ID, Statement, by_schema, compiled, now, parameter, text_literal

_LEASE_ID_LOCK = literal_column("1885890930", Integer)
"""The class of the advisory locks under which a caller's lease id is granted once."""

_LONGEST_SILENCE = "5s"

_EXPIRES_AT = now + parameter("duration", Double) * literal_column("interval '1 second'")


def _exists(rows: Any) -> ColumnElement[bool]:
    return select(ONE).select_from(rows).exists()


def _rule() -> CTE:
    """Return what a lease of this pool is decided by: one row, or none if there is no such pool.

    ``highest_rank`` is null, and so nothing can be leased, while the consumer is
    not registered, or while an expired lease is ``due`` to be taken back first.
    """
    due = (
        select(ONE)
        .where(
            leases.c.pool_id == POOL_ID,
            leases.c.status == text_literal("active"),
            leases.c.expires_at <= now,
        )
        .exists()
    )
    consumer = consumers.c.name == parameter("consumer")
    found = (
        select(pools.c.name, pools.c.lease_slow, consumers.c.id.label("consumer_id"))
        .add_columns(due.label("due"))
        .select_from(pools.outerjoin(consumers, consumer))
        .where(pools.c.id == POOL_ID, pools.c.name == parameter("pool_name"))
        .subquery("found")
    )
    waits = and_(found.c.due, parameter("expire_first", Boolean))
    decidable = and_(found.c.consumer_id.is_not(None), ~waits)
    rank = case((decidable, cast(found.c.lease_slow, Integer)))
    return select(found, rank.label("highest_rank")).cte("rule").prefix_with("MATERIALIZED")


def _rank_rule() -> CTE:
    """Return the part of :func:`_rule` that looking without leasing needs."""
    rank = cast(pools.c.lease_slow, Integer).label("highest_rank")
    return select(rank).where(pools.c.id == POOL_ID).cte("rule")


def _granted(choice: CTE, rule: CTE) -> CTE:
    facts = json_object(
        before=state(choice.c.status, choice.c.current_leases, choice.c.max_concurrency),
        after=state(choice.c.status, choice.c.current_leases + 1, choice.c.max_concurrency),
        consumer_id=rule.c.consumer_id,
        pool_name=rule.c.name,
        expires_at=_EXPIRES_AT,
    )
    row = event_row(
        "LeaseAcquired",
        proxy_id=choice.c.proxy_id,
        lease_id=parameter("lease_id", Uuid),
        consumer=parameter("consumer"),
        data=parameter("details", JSONB).concat(facts),
    )
    return append(select(*row).select_from(choice.join(rule, true())))


def _missed(choice: CTE, rule: CTE, shape: Shape | None) -> CTE:
    """Append the miss, if in this statement's snapshot nothing was free, or due to be, either."""
    match = matching(shape, (ONE,))
    healthy = or_(
        availability.c.status == text_literal("active"),
        and_(rule.c.lease_slow, availability.c.status == text_literal("slow")),
    )
    reason = case(
        (~matching(None, (ONE,)).exists(), text_literal(MissReason.EMPTY_POOL)),
        (~match.exists(), text_literal(MissReason.NO_MATCH)),
        (~match.where(healthy).correlate(rule).exists(), text_literal(MissReason.NONE_HEALTHY)),
        else_=text_literal(MissReason.AT_CAPACITY),
    )
    row = event_row(
        "AcquireMissed",
        consumer=parameter("consumer"),
        data=parameter("details", JSONB).concat(json_object(pool_name=rule.c.name, reason=reason)),
    )
    free = leasable(shape, highest_rank(rule)).with_only_columns(ONE)
    missed = select(*row).select_from(rule)
    missed = missed.where(rule.c.highest_rank.is_not(None), ~rule.c.due)
    return append(missed.where(~_exists(choice), ~free.exists()), "missed")


def _result(rule: CTE, appended: CTE, missed: CTE | None, counts: Subquery | None) -> Select[Any]:
    """Return what came of it: one row, also where nothing did."""
    one = select(ONE.label("one")).subquery("one")
    source = one.outerjoin(rule, true()).outerjoin(appended, true())
    miss_columns: tuple[ColumnElement[Any], ...]
    if missed is None:
        miss_columns = (cast(null(), Text).label("miss"),)
    else:
        source = source.outerjoin(missed, true())
        miss_columns = (missed.c.data["reason"].astext.label("miss"),)
    if counts is not None:
        source = source.outerjoin(counts, true())
    return select(
        rule.c.name.is_not(None).label("pool_known"),
        rule.c.consumer_id,
        rule.c.due,
        appended.c.position,
        appended.c.proxy_id,
        now.label("recorded_at"),
        _EXPIRES_AT.label("expires_at"),
        *miss_columns,
        *(() if counts is None else counts.c),
    ).select_from(source)


@lru_cache(maxsize=512)
def acquire_statement(
    schema: str,
    selector: SelectorStrategy,
    shape: Shape | None,
    *,
    wait: bool,
    with_stats: bool,
    among: bool = False,
) -> Statement:
    """Return the statement that leases a proxy, or with ``wait`` records the miss.

    With ``among`` the choice is between the proxies of that parameter, and the
    caller records the miss.
    """
    rule = _rule()
    choice = candidate(selector, None if among else shape, rule, wait=wait, among=among)
    appended = _granted(choice, rule)
    missed = _missed(choice, rule, shape) if wait and not among else None
    return _acquiring(schema, rule, appended, missed, selector, with_stats=with_stats)


@by_schema
def lease_id_lock_statement() -> Select[Any]:
    """Wait until no other transaction is about to lease under ``lease_id``.

    A caller who falls silent in the middle of this transaction loses its turn soon, even
    if the server cannot see that its connection is gone.
    """
    key = func.hashtext(cast(parameter("lease_id", Uuid), Text))
    silence = func.set_config(
        text_literal("idle_in_transaction_session_timeout"), text_literal(_LONGEST_SILENCE), true()
    )
    turn = func.pg_advisory_xact_lock(_LEASE_ID_LOCK, key).label("turn")
    return select(silence, turn, func.current_setting("transaction_isolation").label("isolation"))


@lru_cache(maxsize=16)
def lease_one_statement(schema: str) -> Statement:
    """Return the statement that leases the proxy ``proxy_id`` if it may be leased."""
    rule = _rule()
    choice = (
        leasable(None, highest_rank(rule))
        .where(availability.c.proxy_id == parameter("proxy_id", Uuid))
        .with_for_update(of=availability)
        .cte("candidate")
    )
    return _acquiring(schema, rule, _granted(choice, rule), None, None, with_stats=False)


def _acquiring(
    schema: str,
    rule: CTE,
    appended: CTE,
    missed: CTE | None,
    selector: SelectorStrategy | None,
    *,
    with_stats: bool,
) -> Statement:
    types = {"LeaseAcquired"}
    turns = selector is SelectorStrategy.ROUND_ROBIN
    among = [p for p in registered() if turns or p is not SELECTOR_CURSORS]
    counts = counted(appended, "LeaseAcquired") if with_stats else None
    result = _result(rule, appended, missed, counts)
    return compiled(fold_into(result, appended, types, among, at_most_one=True), schema)


@lru_cache(maxsize=64)
def record_miss_statement(schema: str) -> Statement:
    """Return the statement that records a miss whose reason the caller knows."""
    row = event_row(
        "AcquireMissed", consumer=parameter("consumer"), data=parameter("details", JSONB)
    )
    appended: Any = append(select(*row))
    return compiled(select(appended.c.position), schema)


@lru_cache(maxsize=256)
def page_statement(
    schema: str, selector: SelectorStrategy, shape: Shape | None, *, by_id: bool
) -> Statement:
    """Return the query of one page of proxies for Python to judge.

    In the selector's order it pages through the free ones. ``by_id`` it pages
    through all, by key: a proxy that is there throughout is in one of the pages.
    """
    rule = _rank_rule()
    highest = highest_rank(rule)
    healthy = or_(
        availability.c.status == text_literal("active"),
        and_(availability.c.status == text_literal("slow"), highest == literal_column("1")),
    )
    leasable_now = func.coalesce(availability.c.lease_rank <= highest, False)
    page = (
        proxy_rows()
        .add_columns(leasable_now.label("leasable"), healthy.label("healthy"))
        .where(availability.c.pool_id == POOL_ID, condition(shape, description))
    )
    page = page.limit(parameter("page_size", Integer))
    if by_id:
        page = page.where(availability.c.proxy_id >= parameter("from_id", Uuid)).order_by(
            availability.c.proxy_id
        )
    else:
        page = page.where(availability.c.lease_rank <= highest).order_by(*_order(selector))
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
def find_statement(schema: str, selector: SelectorStrategy, shape: Shape | None) -> Statement:
    """Return the query of the proxy that a selector offers; round-robin's turn moves on."""
    rule = _rank_rule()
    if selector is not SelectorStrategy.ROUND_ROBIN:
        highest = highest_rank(rule)
        found = proxy_rows().where(
            availability.c.pool_id == POOL_ID,
            availability.c.lease_rank <= highest,
            condition(shape, description),
        )
        return compiled(found.order_by(*ORDERS[selector]).limit(ONE), schema)
    return _offering(schema, next_turn(shape, rule))


@lru_cache(maxsize=16)
def offer_statement(schema: str) -> Statement:
    """Return the statement that offers the proxy ``proxy_id``, whose turn it then was."""
    choice = select(availability.c.proxy_id).where(
        availability.c.pool_id == POOL_ID,
        availability.c.proxy_id == parameter("proxy_id", Uuid),
        _exists(cursor(_rank_rule())),
    )
    return _offering(schema, choice.cte("candidate"))


def _offering(schema: str, choice: CTE) -> Statement:
    data = json_object(selector=text_literal(SelectorStrategy.ROUND_ROBIN))
    row = event_row("CursorMoved", proxy_id=choice.c.proxy_id, data=data)
    appended = append(select(*row).select_from(choice))
    found = proxy_rows().where(
        availability.c.pool_id == POOL_ID, availability.c.proxy_id == appended.c.proxy_id
    )
    return compiled(fold_into(found, appended, {"CursorMoved"}, at_most_one=True), schema)
