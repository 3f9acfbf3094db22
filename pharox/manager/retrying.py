"""Accept the arguments of an acquisition with retries in both orders of 0.11.0.

Its reference lists ``max_attempts`` right after ``selector``, and ``sleep_fn``
last; its wheel has ``retry_config`` and ``sleep_fn`` first. The signatures here are
the wheel's. A number in the place of ``retry_config`` means the reference's order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction, signature
from numbers import Number
from typing import Any, TypeVar, cast

from ..errors import InvalidInputError
from ..models import RetryConfig

F = TypeVar("F", bound=Callable[..., Any])

REFERENCE_ORDER = (
    "max_attempts",
    "backoff_seconds",
    "backoff_multiplier",
    "max_backoff_seconds",
    "sleep_fn",
)
"""The parameters after ``selector``, as 0.11.0's reference lists them."""


def in_both_orders(function: F) -> F:
    """Decorate a function to accept the reference's order of arguments as well."""
    place = list(signature(function).parameters).index("retry_config")
    if iscoroutinefunction(function):

        @wraps(function)
        async def awaited(*arguments: Any, **named: Any) -> Any:
            arguments, others = _split(function, place, arguments, named)
            return await function(*arguments, **named, **others)

        return cast("F", awaited)

    @wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        arguments, others = _split(function, place, arguments, named)
        return function(*arguments, **named, **others)

    return cast("F", called)


def _split(
    function: Callable[..., Any], place: int, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments before the retries, and those of the reference by name."""
    if len(arguments) <= place or not isinstance(arguments[place], Number):
        return arguments, {}
    common, others = arguments[:place], arguments[place:]
    if len(others) > len(REFERENCE_ORDER):
        raise TypeError(f"{function.__name__}() takes no arguments after sleep_fn")
    found = dict(zip(REFERENCE_ORDER, others, strict=False))
    # The same argument by keyword too, or a config that contains it.
    if twice := [name for name in (*found, "retry_config") if named.get(name) is not None]:
        raise TypeError(f"{function.__name__}() got multiple values for argument {twice[0]!r}")
    return common, found


def checked_config(
    retry_config: RetryConfig | None,
    max_attempts: int,
    backoff_seconds: float,
    backoff_multiplier: float,
    max_backoff_seconds: float | None,
) -> RetryConfig:
    """Return the config if one is given, else one made of the numbers.

    Raises
    ------
    InvalidInputError
        If they are not valid.
    """
    if retry_config is None:
        return RetryConfig(max_attempts, backoff_seconds, backoff_multiplier, max_backoff_seconds)
    if not isinstance(retry_config, RetryConfig):
        raise InvalidInputError(
            f"retry_config must be a RetryConfig, not a {type(retry_config).__name__}"
        )
    return retry_config
