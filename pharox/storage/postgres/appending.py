"""Append events and fold them, in the statement that decides them.

A command is a chain of CTEs: what it locks, the events that it decides, the call of the
schema's function that appends and folds them, and a SELECT of what came of it. That SELECT
has to read what was appended, or nothing would be: PostgreSQL computes no CTE that nobody
reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    Select,
    SmallInteger,
    bindparam,
    cast,
    column,
    func,
    null,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

from pharox.log import events

from ...events.attribution import current_attribution
from .sql import POOL_ID, SCHEMA, parameter, schema_function, text_literal


class _EventRow(UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name: that of an event on its way, which has the table's columns."""
        return f"{SCHEMA}.event_v1"


class State(NamedTuple):
    """A :class:`pharox.events.ProxyState` in SQL."""

    status: ColumnElement[Any]
    leases: ColumnElement[Any]
    max_concurrency: ColumnElement[Any]

    def columns(self, side: str) -> dict[str, ColumnElement[Any]]:
        """Return the columns of an event for this side of it."""
        return {f"{name}_{side}": value for name, value in self._asdict().items()}


def event_row(
    type_: str | ColumnElement[str],
    *,
    before: State | None = None,
    after: State | None = None,
    **given: ColumnElement[Any],
) -> ColumnElement[Any]:
    """Return an event to append, as a row of the log; ``given`` are its columns by name.

    Position, transaction and moment are given by the function that appends.
    """
    values: dict[str, Any] = {
        "type": text_literal(type_) if isinstance(type_, str) else type_,
        "pool_id": POOL_ID,
        "actor": parameter("actor"),
        "correlation_id": parameter("correlation_id"),
        **(before.columns("before") if before else {}),
        **(after.columns("after") if after else {}),
        **given,
    }
    row = func.row(*(values.get(own.name, null()) for own in events.c))
    return cast(row, _EventRow())


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


def append(rows: Select[Any], name: str = "appended") -> CTE:
    """Return the CTE that appends rows of one event each, and hands them on as the log has them."""
    slot = bindparam("own_slot", type_=SmallInteger)
    array = func.array(rows.scalar_subquery())
    call = schema_function("append_v1", array, cast(slot, SmallInteger), type_=_EventRow())
    return select(*log_rows(call).c).cte(name).prefix_with("MATERIALIZED")


def log_rows(array: ColumnElement[Any], name: str = "event") -> FromClause:
    """Return an array of the log's rows as a relation."""
    return func.unnest(array).table_valued(
        *(column(own.name, own.type) for own in events.c), name=name
    )
