"""Determine the part of the log that a report covers: its window and its pools.

Moments are translated into seqs once, so commits during the report do not change it.
The log, not this machine's clock, decides whether there is anything to report.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import NamedTuple
from uuid import UUID

from pharox.log import Extract

from ...errors import InvalidInputError, PoolNotFoundError, ReportError
from ...events import AcquireMissed, Event, PoolChanged, PoolRegistered
from ...history.sealed_log import SealedLog, event_at, last_seq
from ...models import check_aware
from ...models.ids import NIL
from ..wording import full_moment, time_of_day


class Fold(NamedTuple):
    """A part of a window in which nothing happened, which is drawn narrower than it was long."""

    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` to ``end``, both inclusive: the events with ``after < seq <= upto``.

    ``folds`` are in order, and do not overlap.
    """

    start: datetime
    end: datetime
    after: int
    upto: int
    folds: tuple[Fold, ...] = ()

    @property
    def seconds(self) -> float:
        """The length of the window in seconds."""
        return (self.end - self.start).total_seconds()

    @property
    def drawn_seconds(self) -> float:
        """The length of what is drawn at the full scale, in seconds."""
        return self.seconds - sum((fold.end - fold.start).total_seconds() for fold in self.folds)

    def format_moment(self, moment: datetime, *, roughly: bool = False) -> str:
        """Return a moment's time, with the date unless it is on the window's first day.

        ``roughly`` omits fractions of a second if the window is long.
        """
        moment = moment.astimezone(UTC)
        if roughly and self.seconds >= 60:
            moment = moment.replace(microsecond=0)
        day = "" if moment.date() == self.start.date() else f"{moment:%Y-%m-%d} "
        return day + time_of_day(moment)

    def __str__(self) -> str:
        return f"{full_moment(self.start)} and {full_moment(self.end)}"


def find_window(log: SealedLog, start: datetime, end: datetime, now: datetime) -> Window:
    """Return the window between two moments.

    An end in the future is moved to ``now``, or to the last event if the ledger's
    clock is ahead.

    Raises
    ------
    InvalidInputError
        If the window ends before it begins, or has not begun.
    ReportError
        If nothing was recorded in it.
    """
    try:
        start, end = (check_aware(moment).astimezone(UTC) for moment in (start, end))
        before = start - timedelta(microseconds=1)
    except OverflowError as error:
        raise InvalidInputError("the window is outside of the calendar") from error
    if start >= end:
        raise InvalidInputError(
            f"the window must begin before it ends, and {full_moment(start)} is not before "
            f"{full_moment(end)}"
        )
    after, upto = log.seq_at(before), log.seq_at(end)
    if upto <= after:
        if start >= now:
            raise InvalidInputError(f"the window is in the future: it is {full_moment(now)}")
        between = f"{full_moment(start)} and {full_moment(end)}"
        raise ReportError(f"nothing was recorded between {between}; {_extent(log)}")
    if end > now:
        last = event_at(log, upto)
        end = now if last is None else max(now, last.recorded_at)
    return Window(start, end, after, upto)


@dataclass(frozen=True, slots=True)
class Choice:
    """The pools of a report: all, or those with these ids, and misses for unknown names."""

    ids: frozenset[UUID] | None = None
    unknown: frozenset[str] = frozenset()

    def has(self, pool_id: UUID) -> bool:
        """Return whether a pool is chosen."""
        return self.ids is None or pool_id in self.ids

    def holds(self, event: Event) -> bool:
        """Return whether an event belongs to a chosen pool."""
        return self.has(event.pool_id) or (
            isinstance(event, AcquireMissed) and event.pool_name in self.unknown
        )

    def extract(self, window: Window) -> Extract:
        """Return the smallest extract of the log with all events of these pools."""
        one = self.ids is not None and len(self.ids) == 1 and not self.unknown
        pool_id = next(iter(self.ids)) if one and self.ids else None
        return Extract(after=window.after, upto=window.upto, pool_id=pool_id)


def find_pools(
    log: SealedLog, window: Window, pools: Mapping[UUID, str], names: Collection[str]
) -> Choice:
    """Return the pools that had one of these names in the window; all if there are no names.

    A name that no pool had is accepted if a consumer requested it.

    Raises
    ------
    PoolNotFoundError
        If a name was neither a pool's nor requested.
    """
    if not names:
        return Choice()
    part = Extract(after=window.after, upto=window.upto)
    named = part._replace(types=("PoolRegistered", "PoolChanged"))
    asked = part._replace(types=("AcquireMissed",), pool_id=NIL)
    known = {(pool_id, name) for pool_id, name in pools.items()}
    unknown = set()
    for event in chain(log.history(named), log.history(asked)):
        if isinstance(event, PoolRegistered | PoolChanged):
            known.add((event.pool_id, event.name))
        elif isinstance(event, AcquireMissed) and event.pool_name in names:
            unknown.add(event.pool_name)
    there_are = {name for _, name in known}
    for name in names:
        if name not in there_are | unknown:
            raise PoolNotFoundError(
                f"no pool was named {name!r} between {window}; {_list(sorted(there_are))}",
                name=name,
            )
    ids = frozenset(pool_id for pool_id, name in known if name in names)
    return Choice(ids, frozenset(unknown))


def _list(names: list[str]) -> str:
    if not names:
        return "there was none at all"
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return f"there were {', '.join(map(repr, names[:10]))}{more}"


def _extent(log: SealedLog) -> str:
    first, last = event_at(log, 1), event_at(log, last_seq(log))
    if first is None or last is None:
        return "the log is empty"
    return f"the log goes from {full_moment(first.recorded_at)} to {full_moment(last.recorded_at)}"
