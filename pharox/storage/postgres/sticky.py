"""Sticky sessions: forget one, have another key inherit it, and list them page by page."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from projections.available_proxies import available_proxies as availability
from projections.leases import leases
from projections.pools import pools
from projections.proxies import proxies
from projections.sessions import sessions
from projections.target_outcomes import target_outcomes

from ...events.attribution import current_attribution
from ...models import StickySession
from ...models.text import url_of
from ..validation import SessionPage, session_taken, session_unknown
from .driver import Program
from .sql import Query, Statement, by_schema, call_of, compiled, now, parameter, text_literal

_ORIGIN = {"own_slot": "smallint", "actor": "text", "correlation_id": "text"}
_PROXY = ("protocol", "host", "port")
_FORGET = _ORIGIN | {"pool_name": "text", "key": "text"}
_INHERIT = _ORIGIN | {"pool_name": "text", "old": "text", "new": "text"}


def forget_session(schema: str, pool_name: str, key: str) -> Program[UUID | None]:
    """End a key's binding. Return the proxy that it was to, or None if there was none."""
    actor, correlation_id = current_attribution()
    origin = {"actor": actor, "correlation_id": correlation_id}
    statement = _forget_statement(schema)
    rows = yield Query(statement, {**origin, "pool_name": pool_name, "key": key})
    return rows[0][0] if rows else None


def inherit_session(schema: str, pool_name: str, old: str, new: str) -> Program[None]:
    """Have one key take over the binding of another."""
    actor, correlation_id = current_attribution()
    origin = {"actor": actor, "correlation_id": correlation_id}
    named = {"pool_name": pool_name, "old": old, "new": new}
    ((outcome,),) = yield Query(_inherit_statement(schema), {**origin, **named})
    if outcome == "unknown":
        raise session_unknown(pool_name, old)
    if outcome == "taken":
        raise session_taken(pool_name, new)


def list_sessions(schema: str, page: SessionPage) -> Program[list[StickySession]]:
    """Return a page of living bindings, in the order of the table's key."""
    after_pool, after_key = page.after
    named = {} if page.pool_name is None else {"pool_name": page.pool_name}
    values = {"after_pool": after_pool, "after_key": after_key, "limit": page.limit, **named}
    rows = yield Query(_list_statement(schema, bool(named)), values)
    return [_session_from_row(row) for row in rows]


@lru_cache(maxsize=8)
def _forget_statement(schema: str) -> Statement:
    statement = call_of(schema, "forget_session_v1", _FORGET)
    return statement._replace(columns=("proxy_id",), writes=True, is_bare=True)


@lru_cache(maxsize=8)
def _inherit_statement(schema: str) -> Statement:
    statement = call_of(schema, "inherit_session_v1", _INHERIT)
    return statement._replace(columns=("outcome",), writes=True, is_bare=True)


@by_schema
def next_change_statement() -> sa.Select[Any]:
    """Query whether a key is bound, and when its proxy may be free or any binding ends."""
    of_key = sa.and_(sessions.c.pool_id == pools.c.id, sessions.c.key == parameter("key"))
    bound = (
        sa.select(sessions.c.proxy_id)
        .select_from(sessions)
        .join(
            availability,
            sa.and_(
                availability.c.pool_id == sessions.c.pool_id,
                availability.c.proxy_id == sessions.c.proxy_id,
                availability.c.status.not_in([text_literal("banned"), text_literal("inactive")]),
            ),
        )
        .where(of_key, sessions.c.expires_at > now)
        .correlate(pools)
        .scalar_subquery()
    )

    def first(column: Any, of_pool: Any, *where: Any) -> Any:
        """Return the next time in a column of a pool's rows."""
        later = sa.select(sa.func.min(column)).where(of_pool == pools.c.id, column > now, *where)
        return later.correlate(pools).scalar_subquery()

    pair = target_outcomes.c
    of_proxy = sa.func.least(
        first(
            leases.c.expires_at,
            leases.c.pool_id,
            leases.c.proxy_id == bound,
            leases.c.status == text_literal("active"),
        ),
        first(availability.c.rests_until, availability.c.pool_id, availability.c.proxy_id == bound),
        first(
            pair.cools_until,
            pair.pool_id,
            pair.proxy_id == bound,
            pair.target == parameter("target"),
        ),
    )
    of_bindings = first(sessions.c.expires_at, sessions.c.pool_id)
    return sa.select(
        bound.is_not(None).label("is_bound"),
        sa.extract("epoch", of_proxy - now).cast(sa.Double).label("of_proxy"),
        sa.extract("epoch", of_bindings - now).cast(sa.Double).label("of_bindings"),
    ).where(pools.c.name == parameter("name"))


@lru_cache(maxsize=16)
def _list_statement(schema: str, of_pool: bool) -> Statement:
    """Query a page of bindings with the addresses of their proxies, if they are still there."""
    query = (
        sa.select(
            sessions,
            pools.c.name.label("pool_name"),
            proxies.c.protocol,
            proxies.c.host,
            proxies.c.port,
            sa.extract("epoch", sessions.c.expires_at - now)
            .cast(sa.Double)
            .label("remaining_seconds"),
        )
        .join(pools, pools.c.id == sessions.c.pool_id)
        .outerjoin(
            proxies,
            sa.and_(proxies.c.id == sessions.c.proxy_id, proxies.c.pool_id == pools.c.id),
        )
        .where(
            sa.tuple_(sessions.c.pool_id, sessions.c.key)
            > sa.tuple_(parameter("after_pool", sa.Uuid), parameter("after_key", sa.Text)),
            sessions.c.expires_at > now,
            *([pools.c.name == parameter("pool_name")] if of_pool else []),
        )
        .order_by(sessions.c.pool_id, sessions.c.key)
        .limit(parameter("limit", sa.Integer))
    )
    return compiled(query, schema)


def _session_from_row(row: Mapping[str, Any]) -> StickySession:
    known = {name: row[name] for name in row.keys() - {*_PROXY, "country", "exit_ip"}}
    is_there = row["protocol"] is not None
    address = url_of(row["protocol"], row["host"], row["port"]) if is_there else None
    return StickySession(**known, address=address)
