"""Parse the moments that people write: a time, a span before now, or a seq of the log."""

from __future__ import annotations

import re
from datetime import MAXYEAR, datetime, timedelta
from typing import overload

from ..errors import InvalidInputError

SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
"""How long the units of spans are, by their letters."""

_SPAN = re.compile(r"([0-9]+)\s*([smhdw])")
_SEQ = re.compile("[0-9]{1,18}")
_SECONDS = re.compile(r"[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.,]([0-9]{1,6}))?")
_FORMS = "a time with its zone such as 2026-01-31T12:00Z, a span before now such as 30m, now"
_TICK = timedelta(microseconds=1)


def moment_before(text: str, now: datetime) -> datetime:
    """Parse a moment.

    Parameters
    ----------
    text:
        ISO 8601 with a time zone, a span before now such as ``30d`` or ``12h``, or ``now``.
    now:
        The moment that spans count back from.

    Raises
    ------
    InvalidInputError
        If it is none of these, or outside of the calendar.
    """
    return _moment(text.strip(), now, _FORMS)


def start_of(text: str, now: datetime) -> int | datetime:
    """Parse a start: a seq if the text has only digits, else the first moment it names.

    Parameters and errors are those of :func:`moment_before`.
    """
    text = text.strip()
    return int(text) if _SEQ.fullmatch(text) else _moment(text, now, f"{_FORMS}, or a seq")


def end_of(text: str, now: datetime) -> int | datetime:
    """Parse an end: a seq if the text has only digits, else the last moment it names.

    Times are shown truncated to the millisecond: an event shown at ``12:00:00.123``
    may be as late as the end of that millisecond. So a time that is given to the second
    or finer includes all of that unit, up to now.
    """
    start = start_of(text, now)
    seconds = _SECONDS.search(text)
    if isinstance(start, int) or seconds is None:
        return start
    whole: timedelta = timedelta(seconds=1) / 10 ** len(seconds[1] or "")
    return min(start + (whole - _TICK), max(start, now))


@overload
def behind(end: datetime) -> datetime: ...
@overload
def behind(end: int | datetime) -> int | datetime: ...
def behind(end: int | datetime) -> int | datetime:
    """Return an end as :mod:`pharox.history.audit` takes it: a time is exclusive there."""
    if isinstance(end, int) or end.year == MAXYEAR:
        return end
    return end + _TICK


def _moment(text: str, now: datetime, forms: str) -> datetime:
    try:
        if text == "now":
            return now
        if _SPAN.fullmatch(text):
            return now - _span(text)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{text!r} is not a moment: give {forms}") from error
    if moment.tzinfo is None:
        raise InvalidInputError(f"{text!r} has no time zone: add one, such as Z or +02:00")
    return moment


def _span(text: str) -> timedelta:
    span = _SPAN.fullmatch(text)
    if span is None:
        raise ValueError("no span")
    return timedelta(seconds=int(span[1]) * SECONDS_OF[span[2]])
