"""Append events and fold them, in the statement that decides them.

A command is a chain of CTEs: what it locks, the rows to append, one fold for
each read model that these types of event touch, and a SELECT of what came of
it. All parts see the snapshot from before the statement; what a fold returns
is new, what the SELECT reads from a table is old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Integer,
    Select,
    Subquery,
    Text,
    Uuid,
    cast,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

import projections
from pharox.log import events
from projections import Events, Projection
from projections.available_proxies import available_proxies
from projections.base import fact
from projections.pool_stats import COUNTS, changed, changes, pool_stats

from ...attribution import current_attribution
from .sql import POOL_ID, now, parameter, text_literal

COLUMNS = (
    "recorded_at",
    "type",
    "pool_id",
    "proxy_id",
    "lease_id",
    "consumer",
    "actor",
    "correlation_id",
    "data",
)


def event_row(
    type_: str | ColumnElement[str],
    *,
    pool_id: ColumnElement[Any] = POOL_ID,
    proxy_id: ColumnElement[Any] | None = None,
    lease_id: ColumnElement[Any] | None = None,
    consumer: ColumnElement[Any] | None = None,
    data: ColumnElement[Any],
) -> tuple[Any, ...]:
    """Return the columns of an event to append, in the order of :data:`COLUMNS`."""
    return (
        now,
        text_literal(type_) if isinstance(type_, str) else type_,
        pool_id,
        cast(null(), Uuid) if proxy_id is None else proxy_id,
        cast(null(), Uuid) if lease_id is None else lease_id,
        cast(null(), Text) if consumer is None else consumer,
        parameter("actor"),
        parameter("correlation_id"),
        data,
    )


def origin() -> dict[str, Any]:
    """Return the values that every appended event needs: who does this, for which job."""
    actor, correlation_id = current_attribution()
    return {"actor": actor, "correlation_id": correlation_id}


def json_object(**facts: Any) -> ColumnElement[Any]:
    """Return a JSON object of named values."""
    parts: list[Any] = []
    for name, value in facts.items():
        parts += (text_literal(name), value)
    return func.jsonb_build_object(*parts, type_=JSONB)


def state(
    status: ColumnElement[Any], leases: ColumnElement[Any], max_concurrency: ColumnElement[Any]
) -> ColumnElement[Any]:
    """Return a :class:`pharox.events.ProxyState` in SQL."""
    return json_object(status=status, leases=leases, max_concurrency=max_concurrency)


def append(rows: Any, name: str = "appended") -> CTE:
    """Return the CTE that appends ``rows`` to the log and hands them on with their positions."""
    return (
        insert(events)
        .from_select(list(COLUMNS), rows)
        .returning(events.c.position, *(events.c[column] for column in COLUMNS))
        .cte(name)
    )


def fold_into(
    result: Select[Any],
    appended: CTE,
    types: Iterable[str],
    among: Iterable[Projection] | None = None,
    *,
    at_most_one: bool = False,
) -> Select[Any]:
    """Return ``result`` with every fold that ``types`` of event need, as CTEs beside it.

    Parameters
    ----------
    among:
        The projections to fold into; all if None.
    at_most_one:
        Whether this statement appends no more than one event.
    """
    wanted = frozenset(types)
    folded = Events(appended, at_most_one, wanted)
    for projection in projections.registered() if among is None else among:
        for number, fold in enumerate(projection.folds()):
            if fold.types & wanted:
                name = f"{projection.name}_{number}"
                result = result.add_cte(fold.statement(folded).cte(name))
    return result


def counted(appended: CTE, type_: str) -> Subquery:
    """Return the pool's counts after the one event that this statement appends.

    They are those of the statement's snapshot with its own change: a consistent
    moment, unless the proxy has changed between the snapshot and its lock. Then
    ``stale`` is true, and the caller should read them anew.
    """
    event = Events(appended, at_most_one=True, types=frozenset({type_}))
    change = changes(event)
    before = (
        select(*(func.sum(pool_stats.c[name]).label(name) for name in COUNTS))
        .where(pool_stats.c.pool_id == POOL_ID)
        .subquery("before")
    )
    seen = available_proxies.alias("seen")
    moved: Select[Any] = select(literal_column("1")).where(
        seen.c.pool_id == POOL_ID,
        seen.c.proxy_id == event.c.proxy_id,
        or_(
            seen.c.current_leases != fact(event, "before,leases", Integer),
            seen.c.status != fact(event, "before,status", Text),
        ),
    )
    sums: dict[str, Any] = {name: before.c[name] for name in COUNTS}
    for column in changed(event):
        sums[column] += func.coalesce(change.c[column], literal_column("0"))
    return (
        select(
            *(cast(value, Integer).label(name) for name, value in sums.items()),
            moved.exists().label("stale"),
        )
        .select_from(before.outerjoin(change, true()))
        .subquery("counts")
    )
