"""Convert command line input to the library's models, with readable errors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from typing import Annotated, Any, TypeVar

import typer
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..errors import InvalidInputError
from ..models import (
    MAX_DURATION_S,
    CoolDown,
    HealthCheckOptions,
    Pace,
    PoolLimits,
    ProxyCredentials,
    ProxyFilters,
    ProxyPool,
    RotationPolicy,
    TargetRules,
)
from ..models.budgets import BUDGETS
from ..models.moments import SECONDS_OF
from ..models.money import Price

M = TypeVar("M", bound=BaseModel)

_DURATION = re.compile(r"(-?)([0-9]+(?:\.[0-9]+)?)\s*([smhdw]?)")
_PRICE: TypeAdapter[Decimal] = TypeAdapter(Price, config=ConfigDict(defer_build=True))
_SIZE = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,12})?)\s*([kmgt]?)b?", re.IGNORECASE)
_LIMIT = re.compile("[0-9]{1,10}")
_STATUS = re.compile("[1-5][0-9]{2}")


CostPerGb = Annotated[
    str | None,
    typer.Option(
        "--cost-per-gb",
        metavar="PRICE",
        help="What 10^9 bytes cost that are reported, as a plain number: 3.5; '' for none.",
    ),
]
CostPerLease = Annotated[
    str | None,
    typer.Option("--cost-per-lease", metavar="PRICE", help="What each lease costs; '' for none."),
]

Weight = Annotated[
    int | None,
    typer.Option(
        "--weight",
        metavar="N",
        min=1,
        max=1000,
        help="How many leases it gets by the selector `weighted`, beside one of weight 1.",
    ),
]


def prices_of(cost_per_gb: str | None, cost_per_lease: str | None) -> dict[str, Decimal | None]:
    """Return the prices that are given, by the names of their fields."""
    given = {"cost_per_gb": cost_per_gb, "cost_per_lease": cost_per_lease}
    return {
        name: price_of(text, f"--{name.replace('_', '-')}")
        for name, text in given.items()
        if text is not None
    }


def checked_pool(**fields: Any) -> ProxyPool:
    """Return the pool that the options describe."""
    return _checked(ProxyPool, fields)


def checked_rules(**fields: Any) -> TargetRules:
    """Return the rules for a target that the options describe."""
    return _checked(TargetRules, fields)


def statuses_of(text: str) -> tuple[int, ...]:
    """Parse HTTP statuses such as ``403,429``; none if the text is empty.

    Raises
    ------
    InvalidInputError
        If one is not a status.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        if not _STATUS.fullmatch(part):
            raise InvalidInputError(f"{part!r} is not a status: give some such as 403,429")
    return tuple(map(int, parts))


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


def price_of(text: str | None, option: str) -> Decimal | None:
    """Parse a price, such as ``3.5``; None for an empty text.

    Raises
    ------
    InvalidInputError
        If it is not a number from 0 on with at most 9 decimal places and 15 digits.
    """
    if text is None or not text.strip():
        return None
    try:
        return _PRICE.validate_python(text.strip())
    except ValidationError as error:
        raise InvalidInputError(
            f"{option} must be a number such as 3.5, from 0 on, with at most 9 decimal places and "
            f"15 digits, not {text!r}"
        ) from error


def budgets_of(text: str | dict[str, Any]) -> dict[str, Any]:
    """Parse budgets, such as ``money=25,consumer-bytes=2GB``, to fields of a PoolLimits; 0 is None.

    Raises
    ------
    typer.BadParameter
        If one has no such name or no value, or is named twice.
    """
    if isinstance(text, dict):
        return text
    fields: dict[str, Any] = {}
    for name, value in _named_parts(text, BUDGETS, "money=25,bytes=10GB,consumer-money=2.5"):
        amount = _size_of(value) if name.endswith("bytes") else value
        fields[BUDGETS[name]] = None if value == "0" else amount
    return fields


def _size_of(text: str) -> int:
    """Parse a number of bytes, such as ``10GB``: a unit is a power of 1000."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a size; give one such as 500MB or 10GB")
    return int(Decimal(found[1]) * 1000 ** ("", "k", "m", "g", "t").index(found[2].lower()))


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
    seconds = float(found[2]) * SECONDS_OF[found[3] or "s"]
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
    example = "base=30s,factor=2,max=15m,jitter=0.1,after=2"
    for name, value in _named_parts(text, _COOL_DOWN, example):
        field = _COOL_DOWN[name]
        fields[field] = duration_of(value) if field.endswith("_seconds") else value
    return fields


_ROTATION = {
    "on": "on",
    "within": "within_seconds",
    "every": "every_seconds",
    "settle": "settle_seconds",
}
"""What a rule for rotations is made of, and the field of each part."""


def rotation_of(text: str | dict[str, Any]) -> dict[str, Any]:
    """Parse parts of a rule for rotations, such as ``on=release,every=4m``, to fields of one.

    Raises
    ------
    typer.BadParameter
        If a part has no such name or no value, or is named twice.
    """
    if isinstance(text, dict):
        return text
    fields: dict[str, Any] = {}
    example = "on=release,within=60s,every=4m,settle=10s"
    for name, value in _named_parts(text, _ROTATION, example):
        fields[_ROTATION[name]] = value if name == "on" else duration_of(value)
    return fields


def checked_rotation(known: RotationPolicy | None, changes: dict[str, Any]) -> RotationPolicy:
    """Return a rule for rotations with some of its fields changed."""
    before = {} if known is None else known.model_dump()
    if "on" not in {**before, **changes}:
        raise InvalidInputError("--rotate needs on=release or on=blocked")
    return _checked(RotationPolicy, {**before, **changes})


def _named_parts(text: str, names: Collection[str], example: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a text such as ``base=30s,after=2``: each of the names once at most."""
    seen: set[str] = set()
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in names or not value or name in seen:
            raise typer.BadParameter(
                f"{part.strip()!r}: give each of {', '.join(names)} once at most, as in {example}"
            )
        seen.add(name)
        yield name, value


_PACE = re.compile(r"(proxy|pair|consumer):([0-9]{1,10})/(.+)")


def pace_of(text: str) -> Pace:
    """Parse a pace such as ``proxy:5/60s``: whose starts, how many of them, and in how long.

    Raises
    ------
    InvalidInputError
        If it has another form, or a number is out of range.
    """
    found = _PACE.fullmatch(text.strip())
    if found is None:
        raise InvalidInputError(
            f"--pace must be proxy, pair or consumer, a number and a time, as in proxy:5/60s, "
            f"not {text!r}"
        )
    try:
        seconds = duration_of(found[3])
    except typer.BadParameter as error:
        raise InvalidInputError(f"--pace {text!r}: {error.message}") from error
    return _checked(Pace, {"per": found[1], "starts": int(found[2]), "seconds": seconds})


def checked_limits(known: PoolLimits | None, changes: dict[str, Any]) -> PoolLimits | None:
    """Return the limits of a pool with some of them changed; None if none is left."""
    limits = _checked(PoolLimits, {**(known or PoolLimits()).model_dump(), **changes})
    return None if limits == PoolLimits() else limits


def checked_cool_down(known: CoolDown, changes: dict[str, Any]) -> CoolDown:
    """Return a rule for rests with some of its fields changed."""
    return _checked(CoolDown, {**known.model_dump(), **changes})


def _checked(model: type[M], fields: dict[str, Any]) -> M:
    try:
        return model(**fields)
    except (ValidationError, InvalidInputError) as error:
        cause = error if isinstance(error, ValidationError) else error.__cause__
        if not isinstance(cause, ValidationError):
            raise
        from ..sources.entries import complaint  # noqa: PLC0415 - only of a bad value

        place, why = complaint(cause)
        words = f"{place}: {why}" if cause.errors()[0]["loc"] else why  # else of several fields
        raise InvalidInputError(words) from error
