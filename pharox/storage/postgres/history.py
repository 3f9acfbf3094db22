"""Read the sealed log: all of it, or the events of one lease, proxy, consumer or pool.

A reader seals first, so that it finds everything that was committed before, and
then reads the events that have a ``seq``. The planner chooses the table to start
from: seals for a range of the log, an index of events for one lease.

The log is partitioned by position and read by seq. So a reader first queries the
positions of its range and passes them to the statement as values. The planner can then
exclude all other partitions before it opens them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Table,
    Text,
    Uuid,
    and_,
    case,
    false,
    func,
    literal_column,
    null,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, array

from pharox.log import events, last_tick, seals, ticks

from .checks_apart import check_columns, checks_of
from .sql import ONE, Statement, compiled, parameter, schema_function

_CONDITIONS: dict[str, Any] = {
    "after": seals.c.seq > parameter("after", BigInteger),
    "upto": seals.c.seq <= parameter("upto", BigInteger),
    "types": events.c.type == func.any(parameter("types", ARRAY(Text))),
    "pool_id": events.c.pool_id == parameter("pool_id", Uuid),
    "proxy_id": or_(
        events.c.proxy_id == parameter("proxy_id", Uuid),
        events.c.proxy_ids.contains(array([parameter("proxy_id", Uuid)])),
    ),
    "lease_id": events.c.lease_id == parameter("lease_id", Uuid),
    "consumer": events.c.consumer == parameter("consumer", Text),
    "target": events.c.data.op("->>", return_type=Text)(literal_column("'target'"))
    == parameter("target", Text),
    "since": events.c.recorded_at >= parameter("since", DateTime(timezone=True)),
    "until": events.c.recorded_at < parameter("until", DateTime(timezone=True)),
}
_SPAN = {"after", "upto"}

SEALED = seals.join(events, events.c.position == seals.c.position)
"""The sealed events, which have a ``seq``."""


_CHECKED = checks_of(events, parameter("proxy_id", Uuid))
_SEALED_CHECKS = SEALED.outerjoin(_CHECKED, true())


def _columns_of_proxy() -> Iterator[ColumnElement[Any]]:
    """Yield the columns of one proxy's events. Of a ProxiesChecked, only its own check is read.

    The database picks the check: reading hundreds of checks for one takes ten times as long.
    """
    of_check = {**check_columns(_CHECKED), "proxy_ids": null()}
    is_kept = _CHECKED.c.proxy_id.is_not(None)
    for own in events.c:
        value = case((is_kept, of_check[own.name]), else_=own) if own.name in of_check else own
        yield value.label(own.name)


def within(table: Table) -> ColumnElement[bool]:
    """Return the condition that a row of events or seals is within a range's positions."""
    low, high = parameter("after_position", BigInteger), parameter("last_position", BigInteger)
    return and_(table.c.position > low, table.c.position <= high)


def position_before(after: ColumnElement[int]) -> ColumnElement[int]:
    """Return a position that all events after a seq are above."""
    return _of_tick("after_position", ticks.c.last_seq > after)


def position_upto(upto: ColumnElement[int]) -> ColumnElement[int]:
    """Return a position that no event up to a seq is above."""
    return _of_tick("last_position", ticks.c.last_seq >= upto)


def _of_tick(name: str, reached: ColumnElement[bool]) -> ColumnElement[int]:
    """Return a column of the first tick that reaches this far, which may be the incomplete last."""
    complete = select(ticks.c[name]).where(reached).order_by(ticks.c.last_seq).limit(ONE)
    return func.coalesce(
        complete.correlate_except(ticks).scalar_subquery(),
        select(last_tick.c[name]).scalar_subquery(),
        literal_column("0"),
    )


@lru_cache(maxsize=16)
def positions_statement(schema: str) -> Statement:
    """Return the query for the positions of a range of seqs.

    All its events are above ``after_position`` and up to ``last_position``. The range
    must be sealed to its end, because events that are sealed later may be anywhere.
    """
    after, upto = parameter("after", BigInteger), parameter("upto", BigInteger)
    query = select(
        position_before(after).label("after_position"),
        position_upto(upto).label("last_position"),
    )
    return compiled(query, schema)


@lru_cache(maxsize=64)
def history_statement(schema: str, given: frozenset[str]) -> Statement:
    """Return the statement that reads an extract with these conditions, in order.

    It takes the positions of :func:`positions_statement`, as the next statement does.
    """
    query = (
        select(seals.c.seq, *(_columns_of_proxy() if "proxy_id" in given else events.c))
        .select_from(_SEALED_CHECKS if "proxy_id" in given else SEALED)
        .where(*(_CONDITIONS[name] for name in sorted(given)), within(seals), within(events))
        .order_by(seals.c.seq)
    )
    return compiled(query, schema)


@lru_cache(maxsize=64)
def page_statement(schema: str, given: frozenset[str]) -> Statement:
    """Return the statement that reads the first events of a range: ``limit`` after ``after``.

    It looks up the event of each seal by key, whatever the planner's statistics: otherwise
    a page of a log that was not analyzed lately would be joined with the whole log. For
    this ``OFFSET 0`` is an optimization fence. The first limit, which no range reaches,
    prevents parallel workers for a few hundred rows.
    """
    longest = parameter("upto", BigInteger) - parameter("after", BigInteger)
    sealed = (
        select(seals.c.seq, seals.c.position)
        .where(*(_CONDITIONS[name] for name in sorted(_SPAN)), within(seals))
        .order_by(seals.c.seq)
        .limit(func.greatest(longest, literal_column("0")))
        .subquery("sealed")
    )
    event = (
        select(*events.c)
        .where(events.c.position == sealed.c.position, within(events))
        .where(*(_CONDITIONS[name] for name in sorted(given - _SPAN)))
        .offset(literal_column("0"))
        .lateral("event")
    )
    query = select(sealed.c.seq, *event.c).select_from(sealed.join(event, true()))
    return compiled(query.order_by(sealed.c.seq).limit(parameter("limit", BigInteger)), schema)


@lru_cache(maxsize=16)
def seal_statement(schema: str, *, wait: bool) -> Statement:
    """Return the statement that seals new events and returns the last seq.

    Without ``wait`` it does nothing if another session is sealing.
    """
    flag: ColumnElement[bool] = true() if wait else false()
    return compiled(select(schema_function("seal", flag, type_=BigInteger).label("seq")), schema)


@lru_cache(maxsize=16)
def seq_at_statement(schema: str) -> Statement:
    """Return the query for the seq of the last event recorded at or before a moment."""
    moment = parameter("moment", DateTime(timezone=True))
    query = select(schema_function("seq_at_v1", moment, type_=BigInteger).label("seq"))
    return compiled(query, schema)
