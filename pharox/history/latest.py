"""The last events of the log that match, without a scan of what came before them.

The log is read from old to new, and has no index by object and place. So it is read backwards in
stretches of seqs, each longer than the one after it as long as little is found: what is frequent is
near the end, and what is rare is found by an index in a long stretch. A stretch that has too much
is read again, shorter, and the next ones end where that much was found. So what is decoded does not
grow with the history: at most a few times what is asked for, or :data:`MOST` events. Everything
that reads backwards does it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from pharox.log import Extract
from pharox.log.extract import BIGGEST

from ..errors import ArchivedError
from ..events import Event
from .sealed_log import SealedLog, event_at, first_of, last_seq

_FIRST = 1_000
_GROWTH = 8

MOST = 2_000
"""How many events of a stretch are decoded at once, unless there are so many in as many seqs."""

SLACK = timedelta(minutes=1)
"""By how much the sealed order may differ from that of times: a commit takes less."""


def latest(
    log: SealedLog,
    extract: Extract,
    number: int,
    is_wanted: Callable[[Event], bool] = lambda event: True,
) -> list[Event]:
    """Return the last events of an extract, at most so many, in the sealed order.

    Parameters
    ----------
    log:
        A storage.
    extract:
        Which events.
    number:
        How many.
    is_wanted:
        Whether an event of the extract counts.

    Raises
    ------
    ArchivedError
        If there are fewer in the log, and earlier ones may be archived.
    """
    return newest(log, extract._replace(upto=_end(log, extract)), number, is_wanted)


def newest(
    log: SealedLog,
    extract: Extract,
    number: int,
    is_wanted: Callable[[Event], bool] = lambda event: True,
) -> list[Event]:
    """Do what :func:`latest` does for an extract whose ``upto`` is in the log.

    It reads from there on, however much earlier the extract's ``until`` is.
    """
    parts: list[Sequence[Event]] = []
    missing = number
    for part in backwards(log, extract, about=number) if number > 0 else ():
        found = list(filter(is_wanted, part.events))[-missing:]
        parts.append(found)
        missing -= len(found)
        if not missing:
            break
    return [event for part in reversed(parts) for event in part]


class Part(NamedTuple):
    """The events of a stretch of the log that begins after a seq."""

    after: int
    events: Sequence[Event]


def backwards(log: SealedLog, extract: Extract, *, about: int = 1) -> Iterator[Part]:
    """Yield an extract in parts, the last one first. Its ``upto`` is in the log.

    Parameters
    ----------
    about:
        How many events are wanted, as far as that is known.

    Raises
    ------
    ArchivedError
        If what comes next may be archived; what is in the log was yielded before.
    """
    upto, length, found = extract.upto, max(_FIRST, min(2 * about, MOST)), 0
    dense = 0  # Up to this seq there was too much for one stretch.
    while upto > extract.after:
        after = max(extract.after, upto - length)
        if dense < upto - _FIRST:
            after = max(after, dense)
        try:
            events = first_of(log, extract._replace(after=after, upto=upto), MOST + 1)
        except ArchivedError as error:
            after = int(error.data["last_seq"])
            if after < upto:
                yield from backwards(log, extract._replace(after=after, upto=upto), about=about)
            raise
        if len(events) > MOST and length > MOST:
            dense, length = events[-1].seq, max(MOST, length // _GROWTH)
            continue
        yield Part(after, events)
        if _is_early(log, after, extract.since):
            return
        found += len(events)
        upto, length = after, _next(length, len(events), about - found)


def _next(length: int, found: int, missing: int) -> int:
    """Return how long the next stretch is, after one in which so many events were found."""
    longest = length * _GROWTH if found * _GROWTH <= MOST else length
    if not found or missing <= 0:
        return longest
    return max(_FIRST, min(longest, 3 * missing * length // (2 * found)))


def _is_early(log: SealedLog, seq: int, since: datetime | None) -> bool:
    """Return whether nothing up to a seq was recorded from a moment on."""
    if since is None:
        return False
    try:
        event = event_at(log, seq)
    except ArchivedError:
        return False  # the next part says so
    return event is None or event.recorded_at < shifted(since, -SLACK)


def _end(log: SealedLog, extract: Extract) -> int:
    """Return a seq in the log that no event of an extract is after."""
    upto = extract.upto
    if extract.until is not None:
        upto = min(upto, log.seq_at(shifted(extract.until, SLACK)))
    return min(upto, last_seq(log)) if upto == BIGGEST else upto


def shifted(moment: datetime, by: timedelta) -> datetime:
    """Return a moment so much later, or itself at an end of the calendar."""
    try:
        return moment + by
    except OverflowError:  # at an end of the calendar
        return moment
