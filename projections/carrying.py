"""Rows that a pool brings along when it moves to another ledger.

A ``PoolStateCarried`` that ``arrived`` has rows of one read model as they were in the ledger that
the pool left. Folding one keeps these rows as they are. It comes right after the pool and its
proxies are registered: that is where each projection has this fold among its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import PoolStateCarried

from .base import Events, Fold, fact, of_type

if TYPE_CHECKING:
    from .base import Projection, ProjectionRow

CARRIED = "PoolStateCarried"


def carry(projection: Projection, state: dict[Any, ProjectionRow], event: PoolStateCarried) -> None:
    """Keep the rows of an event in a projection's state, if they have arrived and are its own."""
    if event.arrived and event.read_model == projection.name:
        state.update(projection.load(map(asdict, rows_of(projection, event.rows))))


def carry_fold(projection: Projection) -> Fold:
    """Return :func:`carry` in SQL."""

    def statement(events: Events) -> UpdateBase:
        return _keep_rows(events, projection)

    return Fold(frozenset({CARRIED}), statement)


def rows_of(projection: Projection, recorded: Iterable[Mapping[str, Any]]) -> list[ProjectionRow]:
    """Return the rows of a read model that an event recorded."""
    adapter = _row_type(projection.row)
    names = projection.row.__dataclass_fields__  # type: ignore[attr-defined]
    return [adapter.validate_python({name: row.get(name) for name in names}) for row in recorded]


def recorded_row(row: ProjectionRow) -> dict[str, Any]:
    """Return a row as an event records it: as JSON, without what is null, with times in UTC."""
    # A sum that is whole is a Decimal in PostgreSQL, and an int in memory.
    kind: Any = type(row)
    own = _row_type(kind).validate_python(asdict(row))
    facts = {
        name: value.astimezone(UTC) if isinstance(value, datetime) else value
        for name, value in asdict(own).items()
        if value is not None
    }
    recorded: dict[str, Any] = to_jsonable_python(facts)
    return recorded


@lru_cache(maxsize=64)
def _row_type(row: Any) -> TypeAdapter[Any]:
    return TypeAdapter(row)


def _keep_rows(events: Events, projection: Projection) -> UpdateBase:
    table = projection.table
    own = [column for column in table.c if column.computed is None and column.name != "slot"]
    carried = (
        sa.func.jsonb_to_recordset(events.c.data.op("->")(sa.literal_column("'rows'", sa.Text)))
        .table_valued(
            *(sa.column(column.name, _plain(column.type)) for column in own), name="carried"
        )
        .render_derived(with_types=True)
    )
    values: dict[str, Any] = {column.name: carried.c[column.name] for column in own}
    if "slot" in table.c:
        # What a pool came to elsewhere is counted in the slot of whoever brings it.
        slot = sa.bindparam("own_slot", type_=sa.SmallInteger)
        values["slot"] = sa.cast(slot, sa.SmallInteger)
    arrived = (
        sa.select(*values.values())
        .select_from(events.rows.join(carried, sa.true()))
        .where(
            of_type(events, CARRIED),
            fact(events, "read_model", sa.Text)
            == sa.literal_column(f"'{projection.name}'", sa.Text),
            fact(events, "arrived", sa.Boolean),
        )
    )
    upsert = insert(table).from_select([*values], arrived)
    others = [name for name in values if name not in table.primary_key.columns]
    return upsert.on_conflict_do_update(
        constraint=table.primary_key, set_={name: upsert.excluded[name] for name in others}
    )


def _plain(type_: Any) -> Any:
    """Return a column's type without its collation, which an alias does not need."""
    return (
        sa.Text() if isinstance(type_, sa.Text) else JSONB() if isinstance(type_, JSONB) else type_
    )
