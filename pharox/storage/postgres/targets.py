"""List what proxies have come to at targets: pairs page by page, and targets summed up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from projections.pools import pools
from projections.proxies import proxies
from projections.target_outcomes import target_outcomes

from ...models import (
    HALF_LIFE_S,
    UNCLEAR_LATELY,
    OutcomeKind,
    TargetOutcomes,
    TargetSummary,
)
from ...models.text import url_of
from ..validation import TargetPage
from .driver import Program
from .sql import Query, Statement, by_schema, compiled, now, parameter, text_literal

_pair = target_outcomes
_COOLING = _pair.c.cools_until > now
_LIMIT = parameter("limit", sa.Integer)


def list_pairs(schema: str, page: TargetPage) -> Program[list[TargetOutcomes]]:
    """Return a page of pairs, in the order of the table's key."""
    rows = yield Query(_pairs_statement(schema, _given(page), page.cooling), _values(page))
    return [_pair_from_row(row) for row in rows]


def summarize(schema: str, page: TargetPage) -> Program[list[TargetSummary]]:
    """Return a page of targets, each summed up over its pairs."""
    rows = yield Query(_targets_statement(schema, _given(page)), _values(page))
    return [TargetSummary(**row) for row in rows]


def count_unclear(schema: str, proxy_id: UUID) -> Program[int]:
    """Return at how many targets a proxy failed lately, nobody knows why, and since any success."""
    rows = yield Query(_unclear_statement(schema), {"proxy_id": proxy_id})
    return int(rows[0]["targets"])


def _given(page: TargetPage) -> frozenset[str]:
    """Return what a page is restricted to. Each restriction is a statement of its own."""
    names = ("pool_name", "target", "proxy_id")
    return frozenset(name for name in names if getattr(page, name) is not None)


def _values(page: TargetPage) -> dict[str, Any]:
    after = zip(("after_pool", "after_proxy", "after_target"), page.after, strict=True)
    given = {name: getattr(page, name) for name in _given(page)}
    return {**given, **dict(after), "limit": page.limit}


def _wanted(given: frozenset[str]) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of a page, each such that an index serves it."""
    of_pool = sa.select(pools.c.id).where(pools.c.name == parameter("pool_name"))
    conditions = {
        "pool_name": _pair.c.pool_id == of_pool.scalar_subquery(),
        "target": _pair.c.target == parameter("target"),
        "proxy_id": _pair.c.proxy_id == parameter("proxy_id", sa.Uuid),
    }
    wanted = [conditions[name] for name in sorted(given)]
    if "proxy_id" in given and "pool_name" not in given:
        # The key begins with the pool: an array of all lets it be searched once for each.
        every = sa.func.array(sa.select(pools.c.id).scalar_subquery(), type_=ARRAY(sa.Uuid))
        wanted.append(_pair.c.pool_id == sa.any_(every))
    return wanted


def _after(*names: str) -> tuple[sa.ColumnElement[Any], ...]:
    types = {"pool": sa.Uuid, "proxy": sa.Uuid, "target": sa.Text}
    return tuple(parameter(f"after_{name}", types[name]) for name in names)


@lru_cache(maxsize=64)
def _pairs_statement(schema: str, given: frozenset[str], cooling: bool) -> Statement:
    """Query a page of pairs with the addresses of their proxies, if they are still there."""
    place = (_pair.c.pool_id, _pair.c.proxy_id, _pair.c.target)
    page = (
        sa.select(_pair)
        .where(
            sa.tuple_(*place) > sa.tuple_(*_after("pool", "proxy", "target")),
            *_wanted(given),
            *([_COOLING] if cooling else []),
        )
        .order_by(*place)
        .limit(_LIMIT)
        .subquery("page")
    )
    left = sa.extract("epoch", page.c.cools_until - now).cast(sa.Double)
    query = (
        sa.select(
            page,
            pools.c.name.label("pool_name"),
            proxies.c.protocol,
            proxies.c.host,
            proxies.c.port,
            sa.case((page.c.cools_until > now, left)).label("remaining_seconds"),
        )
        .join(pools, pools.c.id == page.c.pool_id)
        .outerjoin(
            proxies, sa.and_(proxies.c.id == page.c.proxy_id, proxies.c.pool_id == page.c.pool_id)
        )
        .order_by(page.c.pool_id, page.c.proxy_id, page.c.target)
    )
    return compiled(query, schema)


@lru_cache(maxsize=64)
def _targets_statement(schema: str, given: frozenset[str]) -> Statement:
    """Sum up the pairs of each target, in the order of ix_target_outcomes_target."""
    place = (_pair.c.pool_id, _pair.c.target)
    age_s = sa.func.date_part("epoch", now - _pair.c.reported_at)
    # Nothing is left after a hundred half-lives; far smaller numbers are an error.
    half_lives = sa.func.least(100.0, sa.func.greatest(0.0, age_s) / HALF_LIFE_S)
    kept = sa.func.power(sa.cast(0.5, sa.Double), sa.cast(half_lives, sa.Double))
    blocked = _pair.c.outcome == text_literal(OutcomeKind.BLOCKED.value)
    unclear = _pair.c.outcome == text_literal(OutcomeKind.UNCLEAR.value)
    page = (
        sa.select(
            *place,
            sa.func.count().label("pairs"),
            sa.func.count().filter(_COOLING).label("cooling"),
            sa.func.count().filter(blocked).label("blocked"),
            sa.func.count().filter(unclear).label("unclear"),
            sa.func.sum(_pair.c.successes * kept).label("successes"),
            sa.func.sum(_pair.c.failures * kept).label("failures"),
            sa.func.max(_pair.c.reported_at).filter(blocked).label("refused_at"),
            sa.func.min(_pair.c.cools_until).filter(_COOLING).label("free_at"),
        )
        .where(sa.tuple_(*place) > sa.tuple_(*_after("pool", "target")), *_wanted(given))
        .group_by(*place)
        .order_by(*place)
        .limit(_LIMIT)
        .subquery("page")
    )
    query = (
        sa.select(page, pools.c.name.label("pool_name"))
        .join(pools, pools.c.id == page.c.pool_id)
        .order_by(page.c.pool_id, page.c.target)
    )
    return compiled(query, schema)


@by_schema
def _unclear_statement() -> sa.Select[Any]:
    """Count the pairs of a proxy, a range of the table's key, that are unclear since a success."""

    def last(kind: OutcomeKind) -> sa.ColumnElement[bool]:
        return own.c.outcome == text_literal(kind.value)

    pool = sa.select(proxies.c.pool_id).where(proxies.c.id == parameter("proxy_id", sa.Uuid))
    own = (
        sa.select(_pair.c.outcome, _pair.c.reported_at)
        .where(
            _pair.c.pool_id == pool.scalar_subquery(),
            _pair.c.proxy_id == parameter("proxy_id", sa.Uuid),
        )
        .cte("own")
    )
    succeeded = sa.select(sa.func.max(own.c.reported_at)).where(last(OutcomeKind.OK))
    lately: sa.ColumnElement[Any] = sa.literal_column(
        f"interval '{UNCLEAR_LATELY.total_seconds():g} seconds'"
    )
    return sa.select(sa.func.count().label("targets")).where(
        last(OutcomeKind.UNCLEAR),
        own.c.reported_at > sa.func.greatest(succeeded.scalar_subquery(), now - lately),
    )


def _pair_from_row(row: Mapping[str, Any]) -> TargetOutcomes:
    known = {name: row[name] for name in row.keys() - {"protocol", "host", "port"}}
    is_there = row["protocol"] is not None
    address = url_of(row["protocol"], row["host"], row["port"]) if is_there else None
    return TargetOutcomes(**known, address=address)
