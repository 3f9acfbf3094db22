"""Convert command line input to the library's models, with readable errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from ..errors import InvalidInputError
from ..models import (
    MAX_DURATION_S,
    CoolDown,
    HealthCheckOptions,
    ProxyCredentials,
    ProxyFilters,
    ProxyPool,
)
from ..sources.entries import complaint

M = TypeVar("M", bound=BaseModel)

_SPAN = re.compile(r"([0-9]+)\s*([smhdw])")
_DURATION = re.compile(r"(-?)([0-9]+(?:\.[0-9]+)?)\s*([smhdw]?)")
_SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
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

    Raises
    ------
    InvalidInputError
        If one is empty, as of a variable that is not set: it would match every proxy.
    """
    if empty := [name for name, values in fields.items() if values and "" in values]:
        raise InvalidInputError(f"--{empty[0]} needs a value")
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


def duration_of(text: str | float) -> float:
    """Parse a duration such as ``30``, ``30s``, ``5m`` or ``2h``, and return its seconds.

    It is the ``parser`` of every option that takes one, whose name the error then has.

    Raises
    ------
    typer.BadParameter
        If it is not valid, negative, or longer than a hundred years.
    """
    stripped = str(text).strip()
    found = _DURATION.fullmatch(stripped)
    if found is None or found[1]:
        what = "is not a duration" if found is None else "is negative"
        raise typer.BadParameter(f"{stripped!r} {what}; give one such as 30 (seconds), 5m or 2h")
    seconds = float(found[2]) * _SECONDS_OF[found[3] or "s"]
    if seconds > MAX_DURATION_S:
        raise typer.BadParameter(f"{stripped!r} is longer than a hundred years")
    return seconds


_COOL_DOWN = {
    "base": "base_seconds",
    "factor": "factor",
    "max": "max_seconds",
    "jitter": "jitter",
    "after": "after",
}
"""What a rule for rests is made of, and the field of each part."""


def cool_down_of(text: str | dict[str, Any]) -> dict[str, Any]:
    """Parse parts of a rule for rests, such as ``base=30s,after=2``, to fields of a CoolDown.

    Raises
    ------
    typer.BadParameter
        If a part has no such name or no value, or is named twice.
    """
    if isinstance(text, dict):
        return text
    fields: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        field = _COOL_DOWN.get(name)
        if field is None or not value or field in fields:
            raise typer.BadParameter(
                f"{part.strip()!r}: give each of {', '.join(_COOL_DOWN)} once at most, as in "
                "base=30s,factor=2,max=15m,jitter=0.1,after=2"
            )
        fields[field] = duration_of(value) if field.endswith("_seconds") else value
    return fields


def checked_cool_down(known: CoolDown, changes: dict[str, Any]) -> CoolDown:
    """Return a rule for rests with some of its fields changed."""
    return _checked(CoolDown, {**known.model_dump(), **changes})


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
    return timedelta(seconds=int(span[1]) * _SECONDS_OF[span[2]])


def _checked(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model(**fields)
    except ValidationError as error:
        raise InvalidInputError("{}: {}".format(*complaint(error))) from error
