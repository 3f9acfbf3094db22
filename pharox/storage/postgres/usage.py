"""Sum up from the log what was used of proxies, in one statement.

It reads the leases and outcomes of the span that is asked for: the parts of the log that have none
of it are passed over by the index of times. What was archived is not in it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from pharox.log import events
from projections.proxies import proxies
from projections.spending import day_in_sql

from ...models import OutcomeKind, Usage
from ..validation import UsageWish
from .driver import Program
from .sql import Query, Statement, compiled, parameter, text_literal

_ZERO: sa.ColumnElement[Any] = sa.literal_column("0")
_TYPES = ("LeaseAcquired", "OutcomeReported")


def usage(schema: str, wish: UsageWish) -> Program[list[Usage]]:
    """Return the groups that cost most, then those with the most bytes, requests and leases."""
    given = {
        name: value
        for name in ("pool_name", "since", "until")
        if (value := getattr(wish, name)) is not None
    }
    statement = _usage_statement(schema, wish.by, frozenset(given))
    rows = yield Query(statement, {**given, "limit": wish.limit})
    return [Usage(**row) for row in rows]


@lru_cache(maxsize=64)
def _usage_statement(schema: str, by: tuple[str, ...], given: frozenset[str]) -> Statement:
    moment = sa.DateTime(timezone=True)
    conditions = {
        "pool_name": events.c.pool_name == parameter("pool_name"),
        "since": events.c.recorded_at >= parameter("since", moment),
        "until": events.c.recorded_at < parameter("until", moment),
    }
    source: Any = events
    groups: dict[str, Any] = {
        "consumer": events.c.consumer,
        "target": events.c.data["target"].astext,
        "pool": events.c.pool_name,
        "day": day_in_sql(events.c.recorded_at),
    }
    if "source" in by:
        source, groups["source"] = _with_sources()
    keys = {key: groups[key].label(key) for key in by}
    sums = _sums()
    found = (
        sa.select(*keys.values(), *(value.label(name) for name, value in sums.items()))
        .select_from(source)
        .where(
            events.c.type.in_([text_literal(type_) for type_ in _TYPES]),
            *(conditions[name] for name in sorted(given)),
        )
        .group_by(*(groups[key] for key in by))
        .having(sa.func.count() > _ZERO)
        .subquery("used")
    )
    order: list[Any] = [found.c[name].desc() for name in ("money", "bytes", "requests", "leases")]
    order += [
        sa.func.coalesce(sa.cast(found.c[key], sa.Text), text_literal("")).collate("C")
        for key in by
    ]
    query = sa.select(found).order_by(*order).limit(parameter("limit", sa.Integer))
    return compiled(query, schema)


def _sums() -> dict[str, sa.ColumnElement[Any]]:
    is_lease = events.c.type == text_literal("LeaseAcquired")
    count = sa.func.coalesce(
        sa.cast(events.c.data["count"].astext, sa.BigInteger), sa.literal_column("1")
    )
    is_ok = events.c.data["outcome"].astext == text_literal(OutcomeKind.OK.value)
    sums: dict[str, Any] = {
        "leases": sa.func.count().filter(is_lease),
        "requests": sa.func.sum(count).filter(sa.not_(is_lease)),
        "ok": sa.func.sum(count).filter(is_ok),
        "bytes": sa.func.sum(sa.cast(events.c.data["bytes"].astext, sa.Numeric)),
        "money": sa.func.sum(sa.cast(events.c.data["cost"].astext, sa.Numeric)),
    }
    return {name: sa.func.coalesce(value, _ZERO) for name, value in sums.items()}


def _with_sources() -> tuple[Any, sa.ColumnElement[Any]]:
    """Return the events, each with the source that its proxy had then.

    A proxy that was described before what is left of the log began has its present source.
    """
    described = events.alias("described")
    known = (
        sa.select(
            described.c.proxy_id,
            described.c.position,
            sa.func.lead(described.c.position)
            .over(partition_by=described.c.proxy_id, order_by=described.c.position)
            .label("next"),
            described.c.data["source"].astext.label("source"),
        )
        .where(
            described.c.type.in_(
                [text_literal(type_) for type_ in ("ProxyRegistered", "ProxyChanged")]
            )
        )
        .subquery("known")
    )
    then = sa.and_(
        known.c.proxy_id == events.c.proxy_id,
        known.c.position < events.c.position,
        sa.or_(known.c.next.is_(None), known.c.next > events.c.position),
    )
    now = sa.and_(proxies.c.id == events.c.proxy_id, proxies.c.pool_id == events.c.pool_id)
    joined = events.outerjoin(known, then).outerjoin(proxies, now)
    is_described = known.c.proxy_id.is_not(None)
    return joined, sa.case((is_described, known.c.source), else_=proxies.c.source)
