"""Validate texts, names, datetimes and durations, for all models and calls."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from ..errors import InvalidInputError, InvalidLeaseError
from .model import Model

MAX_NAME_LENGTH = 500
"""For pools, consumers and hosts. An index entry is limited to a few thousand bytes."""

MAX_REMARK_LENGTH = 1000
"""For a reason or a description that is recorded from now on: the log keeps it forever."""

MAX_TEXT_LENGTH = 100_000
"""For every text, in characters: the log keeps it forever, and sends it to every reader."""

MAX_DURATION_S = 100 * 365 * 86_400
"""The longest lease: a hundred years, which every storage can represent."""


def utc_now() -> datetime:
    """Return the current time of this machine, in UTC."""
    return datetime.now(UTC)


def _in_utc(moment: datetime) -> datetime:
    try:
        in_utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("a moment must be between the years 1900 and 9000") from error
    if not 1900 <= in_utc.year <= 9000:  # every storage can represent these, in any zone
        raise ValueError("a moment must be between the years 1900 and 9000")
    return in_utc


def check_text(value: str) -> str:
    """Return ``value`` if every storage can hold it.

    Raises
    ------
    InvalidInputError
        If it is too long, or has a NUL or an unpaired surrogate. It is also a ``ValueError``,
        so that pydantic reports it with the field's name.
    """
    if not isinstance(value, str):
        raise InvalidInputError(f"a text is needed, not a {type(value).__name__}", value=value)
    if len(value) > MAX_TEXT_LENGTH:
        raise InvalidInputError(f"a text has at most {MAX_TEXT_LENGTH} characters")
    if "\x00" in value:
        raise InvalidInputError("text cannot contain a NUL character", value=value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError("text cannot contain an unpaired surrogate") from error
    return value


def check_remark(value: str, what: str) -> str:
    """Return a reason or a description that is to be recorded, if it is valid.

    Raises
    ------
    InvalidInputError
        If it is too long, or cannot be stored.
    """
    if isinstance(value, str) and len(value) > MAX_REMARK_LENGTH:
        raise InvalidInputError(f"a {what} has at most {MAX_REMARK_LENGTH} characters")
    return check_text(value)


def check_name(value: str, what: str) -> str:
    """Return the name of a pool or consumer if valid, else raise :class:`InvalidInputError`."""
    if not isinstance(value, str):
        raise _no_name(value, what)
    if not value.strip():
        raise InvalidInputError(f"a {what} name cannot be empty", name=value)
    if len(value) > MAX_NAME_LENGTH:
        raise InvalidInputError(f"a {what} name has at most {MAX_NAME_LENGTH} characters")
    return check_text(value)


def _no_name(value: object, what: str) -> InvalidInputError:
    """Return the error for what is no text; of a ProxyPool, its name is wanted."""
    kind = "None" if value is None else f"a {type(value).__name__}"
    hint = "; give its .name" if isinstance(getattr(value, "name", None), str) else ""
    return InvalidInputError(f"a {what} name must be a text, not {kind}{hint}", name=value)


def check_whole(value: int, name: str) -> int:
    """Return ``value`` if it is a whole number, else raise :class:`InvalidInputError`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInputError(f"{name} must be a whole number", value=value)
    return value


def check_pause(seconds: float, name: str) -> float:
    """Return ``seconds`` if it is a valid pause, else raise :class:`InvalidInputError`."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not is_number or seconds != seconds:  # noqa: PLR0124 - NaN
        raise InvalidInputError(f"{name} must be a number of seconds", value=seconds)
    if seconds < 0:
        raise InvalidInputError(f"{name} must not be negative", value=seconds)
    if seconds > MAX_DURATION_S:
        raise InvalidInputError(f"{name} must be at most a hundred years", value=seconds)
    return seconds


def check_duration(duration_seconds: float) -> float:
    """Return a lease's duration if valid, else raise :class:`InvalidLeaseError`."""
    if isinstance(duration_seconds, bool) or not isinstance(duration_seconds, int | float):
        raise InvalidLeaseError("duration_seconds must be a number", duration=duration_seconds)
    if not 0 < duration_seconds <= MAX_DURATION_S:  # also rejects NaN
        raise InvalidLeaseError(
            f"duration_seconds must be greater than zero and at most {MAX_DURATION_S}",
            duration=duration_seconds,
        )
    return duration_seconds


def check_aware(moment: datetime) -> datetime:
    """Return ``moment`` if it has a time zone, else raise :class:`InvalidInputError`."""
    if not isinstance(moment, datetime):
        raise InvalidInputError("a moment must be a datetime with a time zone", value=moment)
    if moment.tzinfo is None:
        raise InvalidInputError("a moment needs a time zone; this datetime has none", value=moment)
    return moment


UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Text = Annotated[str, AfterValidator(check_text)]
Name = Annotated[str, AfterValidator(lambda value: check_name(value, "pool or consumer"))]


def _to_a_tenth_of_a_millimetre(degrees: float) -> float:
    """Round a coordinate: squaring a smaller one underflows in PostgreSQL."""
    return round(degrees, 9)


Latitude = Annotated[
    float,
    Field(ge=-90, le=90, allow_inf_nan=False),
    AfterValidator(_to_a_tenth_of_a_millimetre),
]
Longitude = Annotated[
    float,
    Field(ge=-180, le=180, allow_inf_nan=False),
    AfterValidator(_to_a_tenth_of_a_millimetre),
]
Asn = Annotated[int, Field(ge=0, le=2**32 - 1)]
MaxConcurrency = Annotated[int, Field(gt=0, le=2**31 - 1)]
Weight = Annotated[int, Field(ge=1, le=1000)]


class Confidential(Model):
    """A model whose errors do not quote inputs: an input may be a misplaced password."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @model_validator(mode="wrap")
    @classmethod
    def _without_input(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise _without_inputs(error) from None


def _without_inputs(error: ValidationError) -> ValidationError:
    """Return the same errors without the input values."""
    kept = [
        InitErrorDetails(
            type=PydanticCustomError(fault["type"], fault["msg"]),
            loc=fault["loc"],
            input=None,
        )
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ValidationError.from_exception_data(error.title, kept, hide_input=True)
