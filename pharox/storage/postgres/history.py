"""Read the sealed log: all of it, or what one lease, proxy, consumer or pool was part of.

A reader seals first, so that it finds what was committed before it asked, and
then reads what has a ``seq``. Which of the two tables a read starts from is the
planner's choice: seals for a range of the log, an index of events for one lease.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Text,
    Uuid,
    false,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from pharox.log import events, seals

from .sql import Statement, compiled, parameter, schema_function

_CONDITIONS: dict[str, Any] = {
    "after": seals.c.seq > parameter("after", BigInteger),
    "upto": seals.c.seq <= parameter("upto", BigInteger),
    "types": events.c.type == func.any(parameter("types", ARRAY(Text))),
    "pool_id": events.c.pool_id == parameter("pool_id", Uuid),
    "proxy_id": events.c.proxy_id == parameter("proxy_id", Uuid),
    "lease_id": events.c.lease_id == parameter("lease_id", Uuid),
    "consumer": events.c.consumer == parameter("consumer", Text),
    "since": events.c.recorded_at >= parameter("since", DateTime(timezone=True)),
    "until": events.c.recorded_at < parameter("until", DateTime(timezone=True)),
}

SEALED = seals.join(events, events.c.position == seals.c.position)
"""The events that have their place in the order."""


@lru_cache(maxsize=64)
def history_statement(schema: str, given: frozenset[str]) -> Statement:
    """Return the statement that reads an extract of which these parts are given, in order."""
    query = (
        select(seals.c.seq, *events.c)
        .select_from(SEALED)
        .where(*(_CONDITIONS[name] for name in sorted(given)))
        .order_by(seals.c.seq)
    )
    return compiled(query, schema)


@lru_cache(maxsize=64)
def page_statement(schema: str, given: frozenset[str]) -> Statement:
    """Return the statement that reads the first events of a stretch: ``limit`` after ``after``.

    It goes from seal to event by the key, whatever the planner knows of the tables: a
    page of a log that was not analyzed lately would be joined with all of the log. For
    that ``OFFSET 0`` fences the event off, and the first limit, which no stretch reaches,
    keeps parallel workers from being started for a few hundred rows.
    """
    span = {"after", "upto"}
    longest = parameter("upto", BigInteger) - parameter("after", BigInteger)
    sealed = (
        select(seals.c.seq, seals.c.position)
        .where(*(_CONDITIONS[name] for name in sorted(span)))
        .order_by(seals.c.seq)
        .limit(func.greatest(longest, literal_column("0")))
        .subquery("sealed")
    )
    event = (
        select(*events.c)
        .where(events.c.position == sealed.c.position)
        .where(*(_CONDITIONS[name] for name in sorted(given - span)))
        .offset(literal_column("0"))
        .lateral("event")
    )
    query = select(sealed.c.seq, *event.c).select_from(sealed.join(event, true()))
    return compiled(query.order_by(sealed.c.seq).limit(parameter("limit", BigInteger)), schema)


@lru_cache(maxsize=16)
def seal_statement(schema: str, *, wait: bool) -> Statement:
    """Return the statement that seals what is new and tells the last seq.

    Without ``wait`` it leaves the work to whoever is sealing already.
    """
    flag: ColumnElement[bool] = true() if wait else false()
    return compiled(select(schema_function("seal", flag, type_=BigInteger).label("seq")), schema)


@lru_cache(maxsize=16)
def seq_at_statement(schema: str) -> Statement:
    """Return the statement that tells the seq of the last event recorded at or before a moment."""
    query = (
        select(seals.c.seq)
        .select_from(SEALED)
        .where(events.c.recorded_at <= parameter("moment", DateTime(timezone=True)))
        .order_by(events.c.recorded_at.desc(), events.c.position.desc())
        .limit(literal_column("1"))
    )
    return compiled(query, schema)
