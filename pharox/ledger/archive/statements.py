"""The SQL statements of archiving: the contents of a part, row by row and in total.

A part is read from its own tables, so it does not matter whether it is still
attached to the log.
"""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    FromClause,
    MetaData,
    Select,
    Table,
    Text,
    Uuid,
    cast,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA, JSONB, aggregate_order_by
from sqlalchemy.types import NullType

from pharox.log import events, parked_events, partitions, seals, subscriptions, ticks

from ...storage.postgres.history import SEALED, position_upto
from ...storage.postgres.sql import Statement, compiled, now, parameter, schema_function
from .parts import Part


class Contents(NamedTuple):
    """The contents of a part in total.

    ``settled_at`` is when the last event was recorded that is in this part or was
    sealed before its last event.
    """

    first_seq: int | None
    last_seq: int | None
    first_recorded_at: datetime | None
    last_recorded_at: datetime | None
    settled_at: datetime | None
    unsealed: int


def contents(schema: str, part: Part) -> Statement:
    """Return the statement that reads a part's :class:`Contents`."""
    own_events, own_seals = _own(events, part), _own(seals, part)
    held = select(
        func.min(own_seals.c.seq).label("first_seq"),
        func.max(own_seals.c.seq).label("last_seq"),
        func.min(own_events.c.recorded_at).label("first_recorded_at"),
        func.max(own_events.c.recorded_at).label("last_recorded_at"),
        func.count().filter(own_seals.c.seq.is_(None)).label("unsealed"),
    ).select_from(own_events.outerjoin(own_seals, own_seals.c.position == own_events.c.position))
    own = held.cte("own")
    latest = position_upto(own.c.last_seq)
    among = select(func.max(events.c.recorded_at)).select_from(SEALED)
    settled = func.greatest(
        own.c.last_recorded_at,
        among.where(
            seals.c.seq < own.c.last_seq,
            seals.c.seq > own.c.first_seq,
            *(
                place.between(literal_column(str(part.end), BigInteger), latest)
                for place in (seals.c.position, events.c.position)
            ),
        ).scalar_subquery(),
    )
    names = ("first_seq", "last_seq", "first_recorded_at", "last_recorded_at")
    query = select(*(own.c[name] for name in names), settled.label("settled_at"), own.c.unsealed)
    return compiled(query, schema)


def part_events(schema: str, part: Part) -> Statement:
    """Return the statement that reads a part's rows for an archive, in sealed order."""
    own_events, own_seals = _own(events, part), _own(seals, part)
    e = own_events.c
    query = (
        select(
            own_seals.c.seq,
            own_seals.c.version,
            own_seals.c.digest,
            e.position,
            cast(cast(e.tx, Text), BigInteger).label("tx"),
            *(_archived(column) for column in e if column.name not in ("position", "tx")),
        )
        .select_from(own_seals.join(own_events, own_events.c.position == own_seals.c.position))
        .order_by(own_seals.c.seq)
    )
    return compiled(query, schema)


def _archived(column: Column[Any]) -> ColumnElement[Any]:
    """Return a column as it is archived: ids and JSON as text."""
    match column.type:
        case Uuid() | JSONB():
            return cast(column, Text).label(column.name)
        case ARRAY():
            return cast(column, ARRAY(Text)).label(column.name)
    return column


def part_ticks(schema: str, part: Part) -> Statement:
    """Return the statement that reads the ticks whose first events are in a part.

    Those are the ticks whose events are all in this part or in later ones.
    """
    own_seals = _own(seals, part)
    own: Select[Any] = _in_tick(own_seals, func.count().label("own"))
    arrays: dict[str, ColumnElement[Any]] = {
        "other_seqs": seals.c.seq,
        "other_positions": seals.c.position,
        "other_digests": seals.c.digest,
    }
    others = (
        _in_tick(
            seals,
            func.count().label("others"),
            *(
                func.array_agg(aggregate_order_by(column, seals.c.seq)).label(name)
                for name, column in arrays.items()
            ),
        )
        .where(
            seals.c.position.between(
                literal_column(str(part.end), BigInteger), ticks.c.last_position
            )
        )
        .lateral("others")
    )
    counted = own.lateral("counted")
    earlier = ticks.alias("earlier")
    before = select(earlier.c.root).where(earlier.c.last_seq == ticks.c.first_seq - 1)
    empty: ColumnElement[bytes] = literal_column("''::bytea", BYTEA)
    t = ticks.c
    query = (
        select(
            t.first_seq,
            t.last_seq,
            cast(t.snapshot, Text).label("snapshot"),
            t.anchor,
            t.system_identifier,
            t.sealed_at,
            func.coalesce(before.scalar_subquery(), empty).label("before"),
            t.root,
            *(others.c[name] for name in arrays),
        )
        .select_from(ticks, counted, others)
        .where(
            t.last_seq >= parameter("first_seq", BigInteger),
            t.first_seq <= parameter("last_seq", BigInteger),
            counted.c.own > literal_column("0"),
            counted.c.own + others.c.others == t.last_seq - t.first_seq + literal_column("1"),
        )
        .order_by(t.first_seq)
    )
    return compiled(query, schema)


@lru_cache(maxsize=16)
def complete_tick(schema: str) -> Statement:
    """Return the statement that completes the last tick."""
    return compiled(select(schema_function("complete_tick", type_=NullType).label("done")), schema)


@lru_cache(maxsize=16)
def slowest_subscription(schema: str) -> Statement:
    """Return the statement that finds the subscription furthest behind, and its seq.

    Parked events count as unread.
    """
    parked = select(func.min(parked_events.c.seq) - literal_column("1")).where(
        parked_events.c.subscription == subscriptions.c.name
    )
    behind = func.least(subscriptions.c.checkpoint, parked.scalar_subquery()).label("seq")
    query = select(subscriptions.c.name, behind).order_by(behind).limit(literal_column("1"))
    return compiled(query, schema)


@lru_cache(maxsize=16)
def record(schema: str) -> Statement:
    """Return the statement that lists a part as archived."""
    types = {name: column.type for name, column in partitions.c.items()}
    names = ("first_seq", "last_seq", "first_recorded_at", "last_recorded_at", "archive")
    query = (
        update(partitions)
        .where(partitions.c.first_position == parameter("first_position", BigInteger))
        .values({name: parameter(name, types[name]) for name in names} | {"archived_at": now})
    )
    return compiled(query, schema)


def _in_tick(table: FromClause, *columns: Any) -> Select[Any]:
    """Return a lateral query of a table of seals over the range of a tick."""
    query: Select[Any] = (
        select(*columns)
        .select_from(table)
        .where(table.c.seq >= ticks.c.first_seq, table.c.seq <= ticks.c.last_seq)
        .correlate(ticks)
    )
    return query


def _own(table: Table, part: Part) -> Table:
    """Return the table of a part's rows, attached or not."""
    return table.to_metadata(MetaData(), name=f"{table.name}_{part.first}")
