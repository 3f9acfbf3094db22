"""What a person typed, as the library's models, or an error that says what is wrong with it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ..errors import InvalidInputError
from ..models import ProxyFilters, ProxyPool
from ..sources.entries import complaint

M = TypeVar("M", bound=BaseModel)

_SPAN = re.compile(r"([0-9]+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def checked_pool(**fields: Any) -> ProxyPool:
    """Return the pool that the options describe."""
    return _checked(ProxyPool, fields)


def checked_filters(**fields: Any) -> ProxyFilters | None:
    """Return the filters that the options describe, or None if none is given."""
    given = {name: value for name, value in fields.items() if value is not None}
    return _checked(ProxyFilters, given) if given else None


def moment_before(text: str, now: datetime) -> datetime:
    """Return the moment that a text names.

    Parameters
    ----------
    text:
        ISO 8601 with a time zone, or how long before now, such as ``30d`` or ``12h``.
    now:
        What a span counts from.

    Raises
    ------
    InvalidInputError
        If it is neither, or lies outside of the calendar.
    """
    try:
        if span := _SPAN.fullmatch(text.strip()):
            return now - timedelta(**{_UNITS[span[2]]: int(span[1])})
        moment = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{text!r} is no moment: give one such as 2026-01-31T12:00Z, or a span such as 30d"
        ) from error
    if moment.tzinfo is None:
        raise InvalidInputError(f"{text!r} has no time zone: add one, such as Z or +02:00")
    return moment


def _checked(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model(**fields)
    except ValidationError as error:
        raise InvalidInputError("{}: {}".format(*complaint(error))) from error
