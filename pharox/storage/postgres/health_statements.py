"""Record health checks. All are appended; each is applied only if it is its proxy's newest.

The rules are those of ``storage/health_rules.py``. A batch is one transaction of
two statements. The first locks the proxies, in the common locking order. The second
therefore sees every lease that is held on them; it appends and folds.
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
    Select,
    Text,
    Uuid,
    and_,
    case,
    cast,
    column,
    extract,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by

from projections.leases import leases
from projections.pools import pools
from projections.proxies import proxies

from .appending import State, append, event_row, json_object
from .checks_apart import CHECKED, check_columns, checks_of
from .reading import availability
from .sql import POOL_ID, Statement, compiled, now, parameter, text_literal

_VARYING = ("group", "leases", "latency_ms", "mean_latency_ms", "streak")
"""The values that a ProxiesChecked has for each check, besides its proxy and its age."""

_ZERO = literal_column("0", Integer)
_ONE = literal_column("1", Integer)
_NO_LEASES: ColumnElement[Any] = literal_column("'[]'::jsonb", JSONB)


@lru_cache(maxsize=8)
def pools_of_statement(schema: str) -> Statement:
    """Return the query for the pools and sources of proxies, by their ids."""
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
    noted = _noted(_judged(_given()))
    grouped = _grouped(noted)
    rows = union_all(_row_together(grouped), _rows_alone(noted)).subquery("rows")
    appended = append(select(rows.c.event).order_by(rows.c.proxy_id.nulls_first()))
    checked = checks_of(appended)
    names = ("proxy_id", "status_before", "status_after", "leases_before", "data")
    alone = select(*(appended.c[name] for name in names)).where(
        appended.c.type == text_literal(CHECKED)
    )
    columns = check_columns(checked)
    together = (
        select(*(columns[name].label(name) for name in names))
        .select_from(appended.join(checked, true()))
        .where(appended.c.type == text_literal("ProxiesChecked"))
    )
    return compiled(union_all(alone, together), schema)


def _noted(judged: CTE) -> CTE:
    """Return the judged checks, and whether each is recorded together with others.

    Checks that change no status are recorded together. A single one is recorded alone,
    which takes less space.
    """
    stays = judged.c.before == judged.c.after
    many = func.count().filter(stays).over() > _ONE
    return select(judged, and_(stays, many).label("is_together")).cte("noted")


def _grouped(noted: CTE) -> CTE:
    """Return the checks that are recorded together, each with the number of its group."""
    varying = text_literal("latency_ms")
    common = noted.c.data.op("-", return_type=JSONB())(varying).concat(
        json_object(
            applied=noted.c.newest,
            stays=noted.c.before,
            max_concurrency=noted.c.max_concurrency,
        )
    )
    checks = select(noted, common.label("common")).where(noted.c.is_together).subquery("facts")
    return select(
        checks,
        (func.dense_rank().over(order_by=checks.c.common) - _ONE).label("group"),
        func.max(checks.c.checked_at).over().label("latest"),
    ).cte("grouped")


def _row_together(grouped: CTE) -> Select[Any]:
    """Query the :class:`ProxiesChecked` of the checks that are recorded together, if any."""
    age = extract("epoch", grouped.c.latest) - extract("epoch", grouped.c.checked_at)
    distinct = select(grouped.c.group, grouped.c.common).distinct().subquery("distinct_groups")
    groups = select(func.jsonb_agg(aggregate_order_by(distinct.c.common, distinct.c.group)))

    def array(value: ColumnElement[Any]) -> ColumnElement[Any]:
        return func.jsonb_agg(aggregate_order_by(value, grouped.c.proxy_id))

    row = event_row(
        "ProxiesChecked",
        proxy_ids=func.array_agg(aggregate_order_by(grouped.c.proxy_id, grouped.c.proxy_id)),
        data=json_object(
            groups=groups.scalar_subquery(),
            checked_at=func.max(grouped.c.checked_at),
            age_us=array(cast(age * literal_column("1000000"), BigInteger)),
            **{name: array(grouped.c[name]) for name in _VARYING},
        ),
    )
    return select(row.label("event"), cast(null(), Uuid).label("proxy_id")).having(
        func.count(grouped.c.proxy_id) > _ZERO
    )


def _rows_alone(noted: CTE) -> Select[Any]:
    """Query the events of the other checks, one each."""
    load = (noted.c.leases, noted.c.max_concurrency)
    dropped = noted.c.before.in_(_leasable()) & noted.c.after.not_in(_leasable())
    judgement = json_object(
        applied=noted.c.newest,
        checked_at=noted.c.checked_at,
        streak=noted.c.streak,
        mean_latency_ms=noted.c.mean_latency_ms,
        lease_ids=case((dropped, _leases_held(noted)), else_=_NO_LEASES),
    )
    row = event_row(
        CHECKED,
        before=State(noted.c.before, *load),
        after=State(noted.c.after, *load),
        proxy_id=noted.c.proxy_id,
        data=noted.c.data.concat(judgement),
    )
    return select(row.label("event"), noted.c.proxy_id).where(~noted.c.is_together)


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
    """Return the checks with their effects: ``judge`` of ``storage/health_rules.py`` in SQL."""
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
    is_leasable = seen.c.before.in_(_leasable())
    follows = case(
        (~(seen.c.newest & seen.c.counts) | (seen.c.before == text_literal("banned")), false()),
        (seen.c.status == text_literal("banned"), true()),
        (seen.c.reachable, or_(is_leasable, seen.c.streak >= parameter("successes", Integer))),
        else_=or_(~is_leasable, -seen.c.streak >= parameter("failures", Integer)),
    )
    return select(
        seen,
        case((follows, seen.c.status), else_=seen.c.before).label("after"),
        case((seen.c.newest & seen.c.reachable, _mean(seen)), else_=cast(null(), Integer)).label(
            "mean_latency_ms"
        ),
    ).cte("judged")


def _mean(seen: CTE) -> ColumnElement[int]:
    """Return ``moving_average`` of ``storage/health_rules.py`` in SQL."""
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
