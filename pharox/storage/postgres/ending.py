"""End the leases of a proxy or pool that is being removed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import Integer, Select, Text, Uuid, and_, case, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from projections.leases import leases

from .appending import State, append, event_row, json_object
from .reading import availability
from .sql import POOL_ID, Statement, compiled, parameter, text_literal


@lru_cache(maxsize=16)
def release_held_statement(schema: str, *, whole_pool: bool) -> Statement:
    """Return the statement that releases the leases of a proxy or pool that is being removed.

    The events of one proxy count its leases down one by one.
    """
    held = _held()
    if not whole_pool:
        members = parameter("proxies", ARRAY(Uuid))
        held = held.where(availability.c.proxy_id == func.any(members))
    # Locked in the order of proxy ids, like every lock on several proxies.
    locked = held.with_for_update(of=(availability, leases)).cte("held")
    earlier = func.row_number().over(
        partition_by=locked.c.proxy_id, order_by=locked.c.fencing_token
    )
    numbered = select(locked, cast(earlier - 1, Integer).label("earlier")).cte("numbered")
    before = numbered.c.current_leases - numbered.c.earlier
    reason = parameter("reason", Text)
    row = event_row(
        "LeaseReleased",
        before=State(numbered.c.status, before, numbered.c.max_concurrency),
        after=State(numbered.c.status, before - 1, numbered.c.max_concurrency),
        proxy_id=numbered.c.proxy_id,
        lease_id=numbered.c.id,
        consumer=numbered.c.consumer_name,
        consumer_id=numbered.c.consumer_id,
        pool_name=numbered.c.pool_name,
        acquired_at=numbered.c.acquired_at,
        data=case((reason.is_not(None), json_object(reason=reason))),
    )
    appended = append(
        select(row).select_from(numbered).order_by(numbered.c.proxy_id, numbered.c.fencing_token)
    )
    return compiled(select(appended.c.lease_id).order_by(appended.c.position), schema)


def _held() -> Select[Any]:
    joined = and_(availability.c.pool_id == POOL_ID, availability.c.proxy_id == leases.c.proxy_id)
    state = ("proxy_id", "status", "current_leases", "max_concurrency")
    lease = ("id", "consumer_id", "consumer_name", "pool_name", "acquired_at", "fencing_token")
    return (
        select(*(leases.c[name] for name in lease), *(availability.c[name] for name in state))
        .select_from(leases.join(availability, joined))
        .where(leases.c.pool_id == POOL_ID, leases.c.status == text_literal("active"))
        .order_by(availability.c.proxy_id, leases.c.fencing_token)
    )
