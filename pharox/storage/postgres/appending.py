"""Append events and fold them, in the same statement that decides them.

A command is a chain of CTEs: they lock rows, decide on events, call the schema's function
that appends and folds them, and select the result. The final SELECT must read the
appended events: PostgreSQL does not execute a SELECT in a CTE that nothing refers to.
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
        """Return the name of the type of new events, which has the columns of ``events``."""
        return f"{SCHEMA}.event_v1"


class State(NamedTuple):
    """A :class:`pharox.events.ProxyState` in SQL."""

    status: ColumnElement[Any]
    leases: ColumnElement[Any]
    max_concurrency: ColumnElement[Any]

    def columns(self, side: str) -> dict[str, ColumnElement[Any]]:
        """Return the columns of an event for this state; ``side`` is "before" or "after"."""
        return {f"{name}_{side}": value for name, value in self._asdict().items()}


def event_row(
    type_: str | ColumnElement[str],
    *,
    before: State | None = None,
    after: State | None = None,
    **given: ColumnElement[Any],
) -> ColumnElement[Any]:
    """Return an event to append, as a row of the log; ``given`` are its columns by name.

    The appending function sets position, transaction and time.
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
    """Return the values that every appended event needs: its actor and correlation id."""
    actor, correlation_id = current_attribution()
    return {"actor": actor, "correlation_id": correlation_id}


def json_object(**fields: Any) -> ColumnElement[Any]:
    """Return a JSON object of named values."""
    parts: list[Any] = []
    for name, value in fields.items():
        parts += (text_literal(name), value)
    return func.jsonb_build_object(*parts, type_=JSONB)


def append(rows: Select[Any], name: str = "appended") -> CTE:
    """Return the CTE that appends the events in these rows, and returns them as recorded."""
    slot = bindparam("own_slot", type_=SmallInteger)
    array = func.array(rows.scalar_subquery())
    call = schema_function("append_v1", array, cast(slot, SmallInteger), type_=_EventRow())
    return select(*log_rows(call).c).cte(name).prefix_with("MATERIALIZED")


def log_rows(array: ColumnElement[Any], name: str = "event") -> FromClause:
    """Return an array of rows of the log as a relation."""
    return func.unnest(array).table_valued(
        *(column(own.name, own.type) for own in events.c), name=name
    )
