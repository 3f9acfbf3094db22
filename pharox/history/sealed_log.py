"""The interface for queries about the past: the sealed log, and states folded from it.

Every storage of pharox implements it. Code that is built on these methods alone works
with each of them and knows no database.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from typing import NamedTuple, Protocol, cast

from pharox.log import Extract
from projections import State

from ..errors import ArchivedError, InvalidInputError
from ..events import Event
from ..models import check_aware, check_whole, utc_now

_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)


class SealedLog(Protocol):
    """The part of a storage that reads the past."""

    def history(self, extract: Extract) -> Iterator[Event]:
        """Yield the events of an extract, in the sealed order."""

    def seq_at(self, moment: datetime) -> int:
        """Return the seq of the last event recorded at or before a moment; 0 if there is none."""

    def state_at(self, seq: int) -> dict[str, State]:
        """Return every read model as it was after the event of this seq."""


def first(log: SealedLog, extract: Extract) -> Event | None:
    """Return the first event of an extract, or None."""
    return next(iter(first_of(log, extract, 1)), None)


def first_of(log: SealedLog, extract: Extract, limit: int) -> list[Event]:
    """Return the first events of an extract, at most so many."""
    # An unfinished generator keeps its connection until it is closed.
    with closing(cast("_Closable", log.history(extract))) as events:
        return list(islice(events, limit))


class Beginning(NamedTuple):
    """The seq after which the log is readable, and the state there if anything came before."""

    seq: int
    states: Mapping[str, State]

    def rows(self, projection: str) -> State:
        """Return the rows of one read model."""
        return self.states.get(projection, {})


def beginning(log: SealedLog) -> Beginning:
    """Return where a log begins: empty, or with the state that its archived part folds to."""
    seq = archived_upto(log)
    return Beginning(seq, log.state_at(seq)) if seq else Beginning(0, {})


def archived_upto(log: SealedLog) -> int:
    """Return the last seq that is archived, after which the log can be read; 0 if none is."""
    if (parts := getattr(log, "archived_parts", None)) is not None:
        return max((part["last_seq"] or 0 for part in parts(Extract())), default=0)
    try:
        first(log, Extract())
    except ArchivedError as error:
        return int(error.data["last_seq"])
    return 0


def event_at(log: SealedLog, seq: int) -> Event | None:
    """Return the event of this seq, or None."""
    return first(log, Extract(after=seq - 1, upto=seq)) if seq > 0 else None


def last_seq(log: SealedLog) -> int:
    """Return the seq of the last event; 0 if there is none."""
    if (seal := getattr(log, "seal", None)) is not None:
        # A ledger knows its end; looking for it by time reads all that the last minute recorded.
        sealed: int = seal()
        return sealed
    # Events recorded before the latest one may have been sealed after it.
    latest = log.seq_at(_END_OF_TIME)
    return max((event.seq for event in log.history(Extract(after=latest))), default=latest)


def seq_of(log: SealedLog, at: int | datetime) -> int:
    """Return the last seq at a moment.

    Parameters
    ----------
    at:
        A moment, or already a seq.

    Raises
    ------
    InvalidInputError
        If the log has no such seq, or the moment is in the future or has no
        time zone.
    """
    if isinstance(at, datetime):
        seq = log.seq_at(check_aware(at))
        if at > utc_now() and (latest := event_at(log, seq)) and latest.recorded_at < at:
            raise InvalidInputError(f"{at.isoformat()} is in the future", value=at)
        return seq
    if check_whole(at, "a seq") < 0:
        raise InvalidInputError(f"{at} is not a seq of the log: events count from 1", value=at)
    if at > 0 and event_at(log, at) is None:
        raise beyond_the_end(at, last_seq(log))
    return at


def beyond_the_end(seq: int, last: int) -> InvalidInputError:
    """Return the error for a seq beyond the end of a log."""
    return InvalidInputError(f"the log has no event {seq} yet: it ends at {last}", value=seq)


class _Closable(Iterator[Event], Protocol):
    def close(self) -> None: ...
