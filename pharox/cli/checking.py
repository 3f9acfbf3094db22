"""Convert command line input to the library's models, with readable errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import InvalidInputError
from ..models import (
    MAX_DURATION_S,
    HealthCheckOptions,
    ProxyCredentials,
    ProxyFilters,
    ProxyPool,
)
from ..sources.entries import complaint

M = TypeVar("M", bound=BaseModel)

_SPAN = re.compile(r"([0-9]+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LIMIT = re.compile("[0-9]{1,10}")
_SEQ = re.compile("[0-9]{1,18}")
_SECONDS = re.compile(r"[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:[.,]([0-9]{1,6}))?")
_FORMS = "a time with its zone such as 2026-01-31T12:00Z, a span before now such as 30m, now"
_TICK = timedelta(microseconds=1)


def checked_pool(**fields: Any) -> ProxyPool:
    """Return the pool that the options describe."""
    return _checked(ProxyPool, fields)


def checked_credentials(**fields: Any) -> ProxyCredentials:
    """Return the credentials that the options describe."""
    return _checked(ProxyCredentials, fields)


def checked_filters(**fields: Sequence[Any] | None) -> ProxyFilters | None:
    """Return the filters that the options describe, or None if none is given.

    Several values of one option are alternatives.
    """
    single = {name: values[0] for name, values in fields.items() if values and len(values) == 1}
    choices = [
        {"any_of": [_checked(ProxyFilters, {name: value}) for value in values]}
        for name, values in fields.items()
        if values and len(values) > 1
    ]
    if not single and not choices:
        return None
    if len(choices) > 1:
        choices = [{"all_of": [_checked(ProxyFilters, choice) for choice in choices]}]
    return _checked(ProxyFilters, dict(single, **(choices[0] if choices else {})))


def checked_options(**fields: Any) -> HealthCheckOptions:
    """Return the options of health checks that the options describe."""
    return _checked(HealthCheckOptions, fields)


def limit_of(text: str) -> int | None:
    """Parse how many leases a proxy may have at once; None for any number.

    Raises
    ------
    InvalidInputError
        If the text is neither a number from 1 on nor ``unlimited``.
    """
    wanted = text.strip().lower()
    if wanted == "unlimited":
        return None
    if _LIMIT.fullmatch(wanted) and 1 <= int(wanted) < 2**31:
        return int(wanted)
    raise InvalidInputError(
        f"--max-concurrency must be a number from 1 to {2**31 - 1}, or unlimited, not {text!r}"
    )


def length_of(text: str) -> timedelta:
    """Parse a length of time such as ``60s`` or ``5m``.

    Raises
    ------
    InvalidInputError
        If it is not valid, or longer than a hundred years.
    """
    try:
        length = _span(text.strip())
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{text.strip()!r} is not a length of time: give one such as 60s, 5m or 2h"
        ) from error
    if length > timedelta(seconds=MAX_DURATION_S):
        raise InvalidInputError(f"{text.strip()} is longer than a hundred years")
    return length


def seconds_to_wait(text: str) -> float:
    """Parse how long to wait, as :func:`length_of` does; ``0`` is not at all."""
    return 0.0 if text.strip() == "0" else length_of(text).total_seconds()


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
    return timedelta(**{_UNITS[span[2]]: int(span[1])})


def _checked(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model(**fields)
    except ValidationError as error:
        raise InvalidInputError("{}: {}".format(*complaint(error))) from error
