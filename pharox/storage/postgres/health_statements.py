"""Record health checks. All are appended; each is applied only if it is its proxy's newest.

The rules are those of ``storage/health_rules.py``. A batch is one transaction of
two statements. The first locks the proxies, in the common locking order. The second
therefore sees every lease that is held on them; it appends and folds.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
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

_ZERO = sa.literal_column("0", sa.Integer)
_ONE = sa.literal_column("1", sa.Integer)
_NOTHING: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb", JSONB)
_NO_LEASES: sa.ColumnElement[Any] = sa.literal_column("'[]'::jsonb", JSONB)


@lru_cache(maxsize=8)
def pools_of_statement(schema: str) -> Statement:
    """Return the query for the pools and sources of proxies, by their ids."""
    query = (
        sa.select(
            proxies.c.id, proxies.c.pool_id, pools.c.name.label("pool_name"), proxies.c.source
        )
        .select_from(proxies.join(pools, pools.c.id == proxies.c.pool_id))
        .where(proxies.c.id == sa.func.any(parameter("ids", sa.ARRAY(sa.Uuid))))
    )
    return compiled(query, schema)


@lru_cache(maxsize=8)
def lock_statement(schema: str) -> Statement:
    """Return the statement that locks the proxies ``ids`` of a pool."""
    locked = (
        sa.select(availability.c.proxy_id)
        .where(
            availability.c.pool_id == POOL_ID,
            availability.c.proxy_id == sa.func.any(parameter("ids", sa.ARRAY(sa.Uuid))),
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
    rows = sa.union_all(_row_together(grouped), _rows_alone(noted)).subquery("rows")
    appended = append(sa.select(rows.c.event).order_by(rows.c.proxy_id.nulls_first()))
    checked = checks_of(appended)
    names = ("proxy_id", "status_before", "status_after", "leases_before", "data")
    alone = sa.select(*(appended.c[name] for name in names)).where(
        appended.c.type == text_literal(CHECKED)
    )
    columns = check_columns(checked)
    together = (
        sa.select(*(columns[name].label(name) for name in names))
        .select_from(appended.join(checked, sa.true()))
        .where(appended.c.type == text_literal("ProxiesChecked"))
    )
    return compiled(sa.union_all(alone, together), schema)


def _noted(judged: sa.CTE) -> sa.CTE:
    """Return the judged checks, and whether each is recorded together with others.

    Checks that change no status are recorded together. A single one is recorded alone,
    which takes less space.
    """
    stays = judged.c.before == judged.c.after
    many = sa.func.count().filter(stays).over() > _ONE
    return sa.select(judged, sa.and_(stays, many).label("is_together")).cte("noted")


def _grouped(noted: sa.CTE) -> sa.CTE:
    """Return the checks that are recorded together, each with the number of its group."""
    varying = text_literal("latency_ms")
    common = noted.c.data.op("-", return_type=JSONB())(varying).concat(
        json_object(
            applied=noted.c.newest,
            stays=noted.c.before,
            max_concurrency=noted.c.max_concurrency,
        )
    )
    checks = sa.select(noted, common.label("common")).where(noted.c.is_together).subquery("facts")
    return sa.select(
        checks,
        (sa.func.dense_rank().over(order_by=checks.c.common) - _ONE).label("group"),
        sa.func.max(checks.c.checked_at).over().label("latest"),
    ).cte("grouped")


def _row_together(grouped: sa.CTE) -> sa.Select[Any]:
    """Query the :class:`ProxiesChecked` of the checks that are recorded together, if any."""
    age = sa.extract("epoch", grouped.c.latest) - sa.extract("epoch", grouped.c.checked_at)
    distinct = sa.select(grouped.c.group, grouped.c.common).distinct().subquery("distinct_groups")
    groups = sa.select(sa.func.jsonb_agg(aggregate_order_by(distinct.c.common, distinct.c.group)))

    def array(value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        return sa.func.jsonb_agg(aggregate_order_by(value, grouped.c.proxy_id))

    row = event_row(
        "ProxiesChecked",
        proxy_ids=sa.func.array_agg(aggregate_order_by(grouped.c.proxy_id, grouped.c.proxy_id)),
        data=json_object(
            groups=groups.scalar_subquery(),
            checked_at=sa.func.max(grouped.c.checked_at),
            age_us=array(sa.cast(age * sa.literal_column("1000000"), sa.BigInteger)),
            **{name: array(grouped.c[name]) for name in _VARYING},
        ).concat(
            sa.case(
                (
                    sa.func.bool_or(grouped.c.exit_ip.is_not(None)),
                    json_object(exit_ip=array(grouped.c.exit_ip)),
                ),
                else_=_NOTHING,
            )
        ),
    )
    return sa.select(row.label("event"), sa.cast(sa.null(), sa.Uuid).label("proxy_id")).having(
        sa.func.count(grouped.c.proxy_id) > _ZERO
    )


def _rows_alone(noted: sa.CTE) -> sa.Select[Any]:
    """Query the events of the other checks, one each."""
    load = (noted.c.leases, noted.c.max_concurrency)
    dropped = noted.c.before.in_(_leasable()) & noted.c.after.not_in(_leasable())
    judgement = json_object(
        applied=noted.c.newest,
        checked_at=noted.c.checked_at,
        streak=noted.c.streak,
        mean_latency_ms=noted.c.mean_latency_ms,
        lease_ids=sa.case((dropped, _leases_held(noted)), else_=_NO_LEASES),
    )
    row = event_row(
        CHECKED,
        before=State(noted.c.before, *load),
        after=State(noted.c.after, *load),
        proxy_id=noted.c.proxy_id,
        data=noted.c.data.concat(judgement).concat(
            sa.case(
                (noted.c.exit_ip.is_not(None), json_object(exit_ip=noted.c.exit_ip)),
                else_=_NOTHING,
            )
        ),
    )
    return sa.select(row.label("event"), noted.c.proxy_id).where(~noted.c.is_together)


def _leasable() -> tuple[sa.ColumnElement[str], ...]:
    return (text_literal("active"), text_literal("slow"))


def _given() -> Any:
    return (
        sa.func.jsonb_to_recordset(parameter("rows", JSONB))
        .table_valued(
            sa.column("proxy_id", sa.Uuid),
            sa.column("status", sa.Text),
            sa.column("reachable", sa.Boolean),
            sa.column("counts", sa.Boolean),
            sa.column("latency_ms", sa.Integer),
            sa.column("exit_ip", sa.Text),
            sa.column("checked_at", sa.DateTime(timezone=True)),
            sa.column("data", JSONB),
            name="g",
        )
        .render_derived(with_types=True)
    )


def _judged(given: Any) -> sa.CTE:
    """Return the checks with their effects: ``judge`` of ``storage/health_rules.py`` in SQL."""
    checked_at = sa.func.least(given.c.checked_at, now)
    newest = sa.or_(availability.c.probed_at.is_(None), availability.c.probed_at < checked_at)
    streak = sa.case(
        (~(newest & given.c.counts), availability.c.streak),
        (given.c.reachable, sa.func.greatest(availability.c.streak, _ZERO) + _ONE),
        else_=sa.func.least(availability.c.streak, _ZERO) - _ONE,
    )
    seen = (
        sa.select(
            availability.c.proxy_id,
            availability.c.status.label("before"),
            availability.c.current_leases.label("leases"),
            availability.c.max_concurrency,
            availability.c.latency_ms.label("mean_before"),
            checked_at.label("checked_at"),
            newest.label("newest"),
            streak.label("streak"),
            _other_exit(given).label("exit_ip"),
            *(given.c[name] for name in ("status", "reachable", "counts", "latency_ms", "data")),
        )
        .select_from(availability.join(given, given.c.proxy_id == availability.c.proxy_id))
        .where(availability.c.pool_id == POOL_ID)
        .cte("seen")
    )
    is_leasable = seen.c.before.in_(_leasable())
    follows = sa.case(
        (~(seen.c.newest & seen.c.counts) | (seen.c.before == text_literal("banned")), sa.false()),
        (seen.c.status == text_literal("banned"), sa.true()),
        (
            seen.c.reachable,
            sa.or_(is_leasable, seen.c.streak >= parameter("successes", sa.Integer)),
        ),
        else_=sa.or_(~is_leasable, -seen.c.streak >= parameter("failures", sa.Integer)),
    )
    return sa.select(
        seen,
        sa.case((follows, seen.c.status), else_=seen.c.before).label("after"),
        sa.case(
            (seen.c.newest & seen.c.reachable, _mean(seen)), else_=sa.cast(sa.null(), sa.Integer)
        ).label("mean_latency_ms"),
    ).cte("judged")


def _other_exit(given: Any) -> sa.ColumnElement[str]:
    """Return the exit that a check found, if it is not the one that is known.

    Only then is the proxy's description read, and what most checks find takes no space.
    """
    known = sa.select(proxies.c.exit_ip).where(
        proxies.c.pool_id == POOL_ID, proxies.c.id == given.c.proxy_id
    )
    other = sa.func.nullif(given.c.exit_ip, known.scalar_subquery())
    return sa.case((given.c.exit_ip.is_not(None), other))


def _mean(seen: sa.CTE) -> sa.ColumnElement[int]:
    """Return ``moving_average`` of ``storage/health_rules.py`` in SQL."""
    window = parameter("window", sa.Integer)
    distance = seen.c.latency_ms - seen.c.mean_before
    twice = sa.literal_column("2", sa.BigInteger) * sa.func.abs(sa.cast(distance, sa.BigInteger))
    step = (twice + window) // (window + _ONE)
    moved = sa.case((distance > _ZERO, step), else_=-step)
    return sa.func.coalesce(sa.cast(seen.c.mean_before + moved, sa.Integer), seen.c.latency_ms)


def _leases_held(judged: sa.CTE) -> Any:
    ids = sa.func.jsonb_agg(aggregate_order_by(leases.c.id, leases.c.fencing_token), type_=JSONB)
    held = sa.and_(
        leases.c.pool_id == POOL_ID,
        leases.c.proxy_id == judged.c.proxy_id,
        leases.c.status == text_literal("active"),
    )
    return sa.func.coalesce(sa.select(ids).where(held).scalar_subquery(), _NO_LEASES, type_=JSONB)
