"""Record health checks: appended always, each applied only if it is the newest of its proxy.

The rules are those of ``storage/health_rules.py``. A batch is one transaction of
two statements: the first locks the proxies, in the order of all locks, so that
the second sees every lease that is held on them, and appends and folds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Text,
    Uuid,
    and_,
    case,
    cast,
    column,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from projections.leases import leases
from projections.pools import pools
from projections.proxies import proxies

from .appending import State, append, event_row, json_object
from .reading import availability
from .sql import POOL_ID, Statement, compiled, now, parameter, text_literal

BATCH = 500
"""How many checks one transaction records; leasing waits for the proxies among them."""

_ZERO = literal_column("0", Integer)
_ONE = literal_column("1", Integer)
_NO_LEASES: ColumnElement[Any] = literal_column("'[]'::jsonb", JSONB)


@lru_cache(maxsize=8)
def pools_of_statement(schema: str) -> Statement:
    """Return the query of the pools that proxies are in and who provided them, by their ids."""
    query = (
        select(proxies.c.id, proxies.c.pool_id, pools.c.name.label("pool_name"), proxies.c.source)
        .select_from(proxies.join(pools, pools.c.id == proxies.c.pool_id))
        .where(proxies.c.id == func.any(parameter("ids", ARRAY(Uuid))))
    )
    return compiled(query, schema)


@lru_cache(maxsize=8)
def lock_statement(schema: str) -> Statement:
    """Return the statement that locks the proxies ``ids`` of a pool."""
    locked = (
        select(availability.c.proxy_id)
        .where(
            availability.c.pool_id == POOL_ID,
            availability.c.proxy_id == func.any(parameter("ids", ARRAY(Uuid))),
        )
        .order_by(availability.c.proxy_id)
        .with_for_update()
    )
    return compiled(locked, schema)


@lru_cache(maxsize=8)
def record_statement(schema: str) -> Statement:
    """Return the statement that records the checks in ``rows``, of locked proxies of one pool.

    ``rows`` is a JSON array with at most one object for each proxy: ``proxy_id``,
    ``status``, ``reachable``, ``counts``, ``latency_ms``, ``checked_at`` and ``data``, the
    rest of the event's data.
    """
    given = _given()
    judged = _judged(given)
    standing = (judged.c.leases, judged.c.max_concurrency)
    dropped = judged.c.before.in_(_leasable()) & judged.c.after.not_in(_leasable())
    facts = json_object(
        applied=judged.c.newest,
        checked_at=judged.c.checked_at,
        streak=judged.c.streak,
        mean_latency_ms=judged.c.mean_latency_ms,
        lease_ids=case((dropped, _leases_held(judged)), else_=_NO_LEASES),
    )
    row = event_row(
        "HealthChecked",
        before=State(judged.c.before, *standing),
        after=State(judged.c.after, *standing),
        proxy_id=judged.c.proxy_id,
        data=judged.c.data.concat(facts),
    )
    appended = append(select(row).select_from(judged).order_by(judged.c.proxy_id))
    columns = ("proxy_id", "status_before", "status_after", "leases_before", "data")
    return compiled(select(*(appended.c[name] for name in columns)), schema)


def _leasable() -> tuple[ColumnElement[str], ...]:
    return (text_literal("active"), text_literal("slow"))


def _given() -> Any:
    return (
        func.jsonb_to_recordset(parameter("rows", JSONB))
        .table_valued(
            column("proxy_id", Uuid),
            column("status", Text),
            column("reachable", Boolean),
            column("counts", Boolean),
            column("latency_ms", Integer),
            column("checked_at", DateTime(timezone=True)),
            column("data", JSONB),
            name="g",
        )
        .render_derived(with_types=True)
    )


def _judged(given: Any) -> CTE:
    """Return the checks beside what they come to: ``judge`` of ``storage/health_rules.py``."""
    checked_at = func.least(given.c.checked_at, now)
    newest = or_(availability.c.probed_at.is_(None), availability.c.probed_at < checked_at)
    streak = case(
        (~(newest & given.c.counts), availability.c.streak),
        (given.c.reachable, func.greatest(availability.c.streak, _ZERO) + _ONE),
        else_=func.least(availability.c.streak, _ZERO) - _ONE,
    )
    seen = (
        select(
            availability.c.proxy_id,
            availability.c.status.label("before"),
            availability.c.current_leases.label("leases"),
            availability.c.max_concurrency,
            availability.c.latency_ms.label("mean_before"),
            checked_at.label("checked_at"),
            newest.label("newest"),
            streak.label("streak"),
            *(given.c[name] for name in ("status", "reachable", "counts", "latency_ms", "data")),
        )
        .select_from(availability.join(given, given.c.proxy_id == availability.c.proxy_id))
        .where(availability.c.pool_id == POOL_ID)
        .cte("seen")
    )
    stands_well = seen.c.before.in_(_leasable())
    follows = case(
        (~(seen.c.newest & seen.c.counts) | (seen.c.before == text_literal("banned")), false()),
        (seen.c.status == text_literal("banned"), true()),
        (seen.c.reachable, or_(stands_well, seen.c.streak >= parameter("successes", Integer))),
        else_=or_(~stands_well, -seen.c.streak >= parameter("failures", Integer)),
    )
    return select(
        seen,
        case((follows, seen.c.status), else_=seen.c.before).label("after"),
        case((seen.c.newest & seen.c.reachable, _mean(seen)), else_=cast(null(), Integer)).label(
            "mean_latency_ms"
        ),
    ).cte("judged")


def _mean(seen: CTE) -> ColumnElement[int]:
    """Return ``moving_average`` of ``storage/health_rules.py``."""
    window = parameter("window", Integer)
    distance = seen.c.latency_ms - seen.c.mean_before
    twice = literal_column("2", BigInteger) * func.abs(cast(distance, BigInteger))
    step = (twice + window) // (window + _ONE)
    moved = case((distance > _ZERO, step), else_=-step)
    return func.coalesce(cast(seen.c.mean_before + moved, Integer), seen.c.latency_ms)


def _leases_held(judged: CTE) -> Any:
    ids = func.jsonb_agg(aggregate_order_by(leases.c.id, leases.c.fencing_token), type_=JSONB)
    held = and_(
        leases.c.pool_id == POOL_ID,
        leases.c.proxy_id == judged.c.proxy_id,
        leases.c.status == text_literal("active"),
    )
    return func.coalesce(select(ids).where(held).scalar_subquery(), _NO_LEASES, type_=JSONB)
