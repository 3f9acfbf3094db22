"""End leases: one given back, all that ran out, or those of what is being removed.

The proxy is locked before its lease, as everywhere. What ran out is taken
back without waiting for anybody: a row that somebody else has locked is being
ended already, or will be due again in a moment.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Text,
    Uuid,
    and_,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from projections.leases import leases

from .appending import append, counted, event_row, fold_into, json_object, state
from .reading import availability
from .sql import POOL_ID, Statement, compiled, now, parameter, text_literal

BATCH = 1000
"""How many leases one statement expires; a longer queue takes several."""

_LEASE_ID = parameter("lease_id", Uuid)
_OF_LEASE = (
    leases.c.id,
    leases.c.consumer_id,
    leases.c.consumer_name,
    leases.c.pool_name,
    leases.c.acquired_at,
    leases.c.expires_at,
    leases.c.fencing_token,
)


@lru_cache(maxsize=16)
def release_statement(schema: str, *, with_stats: bool) -> Statement:
    """Return the statement that releases one lease, unless it has ended or run out."""
    of_lease = select(leases.c.proxy_id).where(
        leases.c.pool_id == POOL_ID, leases.c.id == _LEASE_ID
    )
    proxy = (
        select(availability)
        .where(
            availability.c.pool_id == POOL_ID, availability.c.proxy_id == of_lease.scalar_subquery()
        )
        .with_for_update()
        .cte("proxy")
    )
    lease = (
        select(*_OF_LEASE, leases.c.status.label("lease_status"), *_standing(proxy))
        .select_from(leases.join(proxy, true()))
        .where(
            leases.c.pool_id == POOL_ID,
            leases.c.id == _LEASE_ID,
        )
        .with_for_update(of=leases)
        .cte("lease")
    )
    # Judged after the lock, and apart from it: no partial index on active leases
    # can then tempt a planner that has seen only few of them.
    held = (
        select(lease)
        .where(lease.c.lease_status == text_literal("active"), lease.c.expires_at > now)
        .cte("held")
    )
    zero = literal_column("0", Integer)
    return _ending(schema, held, zero, "LeaseReleased", with_stats=with_stats, at_most_one=True)


@lru_cache(maxsize=16)
def expire_statement(schema: str, *, wait: bool = False) -> Statement:
    """Return the statement that takes back up to :data:`BATCH` leases that have run out.

    With ``wait`` it waits for those that somebody else has locked.
    """
    due = (
        _held()
        .where(leases.c.expires_at <= now)
        .limit(literal_column(str(BATCH)))
        .with_for_update(of=(availability, leases), skip_locked=not wait)
        .cte("due")
    )
    return _several(schema, due, "LeaseExpired")


@lru_cache(maxsize=16)
def release_held_statement(schema: str, *, whole_pool: bool) -> Statement:
    """Return the statement that releases the leases of a proxy or pool that is being removed."""
    held = _held()
    if not whole_pool:
        held = held.where(availability.c.proxy_id == func.any(parameter("proxies", ARRAY(Uuid))))
    locked = held.with_for_update(of=(availability, leases)).cte("held")
    return _several(schema, locked, "LeaseReleased")


def _held() -> Select[Any]:
    joined = and_(availability.c.pool_id == POOL_ID, availability.c.proxy_id == leases.c.proxy_id)
    return (
        select(*_OF_LEASE, *_standing(availability))
        .select_from(leases.join(availability, joined))
        .where(leases.c.pool_id == POOL_ID, leases.c.status == text_literal("active"))
        .order_by(availability.c.proxy_id, leases.c.fencing_token)
    )


def _standing(proxy: FromClause) -> tuple[Any, ...]:
    return (proxy.c.proxy_id, proxy.c.status, proxy.c.current_leases, proxy.c.max_concurrency)


def _several(schema: str, locked: CTE, type_: str) -> Statement:
    """End all leases in ``locked``; of one proxy, each finds one lease less than the one before."""
    earlier = (
        func.row_number().over(partition_by=locked.c.proxy_id, order_by=locked.c.fencing_token) - 1
    )
    numbered = select(locked, earlier.label("earlier")).cte("numbered")
    number = cast(numbered.c.earlier, Integer)
    return _ending(schema, numbered, number, type_, with_stats=False, at_most_one=False)


def _ending(
    schema: str,
    ended: CTE,
    earlier: ColumnElement[int],
    type_: str,
    *,
    with_stats: bool,
    at_most_one: bool,
) -> Statement:
    before = ended.c.current_leases - earlier
    facts = {
        "before": state(ended.c.status, before, ended.c.max_concurrency),
        "after": state(ended.c.status, before - 1, ended.c.max_concurrency),
        "consumer_id": ended.c.consumer_id,
        "pool_name": ended.c.pool_name,
        "acquired_at": ended.c.acquired_at,
    }
    if type_ == "LeaseExpired":
        facts["expires_at"] = ended.c.expires_at
    else:
        facts["reason"] = parameter("reason", Text)
    row = event_row(
        type_,
        proxy_id=ended.c.proxy_id,
        lease_id=ended.c.id,
        consumer=ended.c.consumer_name,
        data=json_object(**facts),
    )
    rows = select(*row).select_from(ended)
    if not at_most_one:
        rows = rows.order_by(ended.c.proxy_id, ended.c.fencing_token)
    appended = append(rows)
    lease = ended.c
    source: Any = appended.join(ended, ended.c.id == appended.c.lease_id)
    counts: tuple[Any, ...] = ()
    if with_stats:
        after = counted(appended, type_)
        counts, source = tuple(after.c), source.join(after, true())
    result = select(
        lease.id,
        appended.c.pool_id,
        lease.proxy_id,
        lease.consumer_id,
        lease.consumer_name,
        lease.pool_name,
        lease.acquired_at,
        lease.expires_at,
        lease.fencing_token,
        appended.c.recorded_at.label("released_at"),
        *counts,
    ).select_from(source)
    if not at_most_one:
        result = result.order_by(appended.c.position)
    return compiled(fold_into(result, appended, {type_}, at_most_one=at_most_one), schema)
