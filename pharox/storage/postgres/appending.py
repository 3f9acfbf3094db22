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
    SmallInteger,
    Text,
    Uuid,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

import projections
from pharox.log import events
from projections import Events, Projection
from projections.pool_stats import COUNTS, pool_stats

from .sql import POOL_ID, now, parameter, word

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
        word(type_) if isinstance(type_, str) else type_,
        pool_id,
        cast(null(), Uuid) if proxy_id is None else proxy_id,
        cast(null(), Uuid) if lease_id is None else lease_id,
        cast(null(), Text) if consumer is None else consumer,
        parameter("actor"),
        parameter("correlation_id"),
        data,
    )


def json_object(**facts: Any) -> ColumnElement[Any]:
    """Return a JSON object of named values."""
    parts: list[Any] = []
    for name, value in facts.items():
        parts += (word(name), value)
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
    among: Iterable[Projection] = projections.ALL,
    *,
    already: Iterable[CTE] = (),
    at_most_one: bool = False,
) -> Select[Any]:
    """Return ``result`` with every fold that ``types`` of event need, as CTEs beside it.

    Parameters
    ----------
    among:
        The projections to fold into.
    already:
        Folds that ``result`` reads and so has already.
    at_most_one:
        Whether this statement appends no more than one event.
    """
    wanted, done = frozenset(types), {cte.name for cte in already}
    events_ = Events(appended, at_most_one)
    for projection in among:
        for number, fold in enumerate(projection.folds()):
            name = f"{projection.name}_{number}"
            if fold.types & wanted and name not in done:
                result = result.add_cte(fold.statement(events_).cte(name))
    return result


def counted(
    appended: CTE, types: Iterable[str], *, at_most_one: bool = False
) -> tuple[CTE, Select[Any]]:
    """Fold the statistics and read them back as they are after this statement.

    Returns
    -------
    tuple
        The fold, and the query of the pool's five counts: the row of this
        statement's slot as the fold leaves it, the other slots as they were.
    """
    wanted = frozenset(types)
    number, fold = next(
        (number, fold)
        for number, fold in enumerate(projections.POOL_STATS.folds())
        if fold.types & wanted
    )
    updated = (
        fold.statement(Events(appended, at_most_one))
        .returning(*(pool_stats.c[name] for name in COUNTS))
        .cte(f"pool_stats_{number}")
    )
    own_slot = pool_stats.c.slot == bindparam("slot", type_=SmallInteger)
    others = select(*(pool_stats.c[name] for name in COUNTS)).where(
        pool_stats.c.pool_id == POOL_ID,
        or_(~own_slot, ~select(literal_column("1")).select_from(updated).exists()),
    )
    parts = union_all(others, select(*(updated.c[name] for name in COUNTS))).subquery("slots")
    sums = (cast(func.sum(parts.c[name]), Integer).label(name) for name in COUNTS)
    counts: Any = select(*sums)
    return updated, counts
