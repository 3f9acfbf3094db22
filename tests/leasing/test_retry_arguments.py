"""Retries take their arguments in the order of 0.11.0's reference and in that of its wheel."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

import pharox
from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InMemoryStorage,
    InvalidInputError,
    ProxyManager,
    RetryConfig,
    SelectorStrategy,
)

ASKED = ("nope", "crawler", 300, None, SelectorStrategy.LEAST_USED)
WHEEL = [
    *("pool_name", "consumer_name", "duration_seconds", "filters", "selector"),
    *("retry_config", "sleep_fn", "max_attempts", "backoff_seconds", "backoff_multiplier"),
    *("max_backoff_seconds", "lease_id"),
]


def acquire(*arguments: Any, **named: Any) -> Any:
    return ProxyManager(InMemoryStorage()).acquire_proxy_with_retry(*arguments, **named)


def hold(*arguments: Any, **named: Any) -> Any:
    with ProxyManager(InMemoryStorage()).with_retrying_lease(*arguments, **named) as lease:
        return lease


def acquire_awaited(*arguments: Any, **named: Any) -> Any:
    manager = AsyncProxyManager(AsyncInMemoryStorage())
    return asyncio.run(manager.acquire_proxy_with_retry(*arguments, **named))


def hold_awaited(*arguments: Any, **named: Any) -> Any:
    async def run() -> Any:
        manager = AsyncProxyManager(AsyncInMemoryStorage())
        async with manager.with_retrying_lease(*arguments, **named) as lease:
            return lease

    return asyncio.run(run())


def acquire_in_a_thread(*arguments: Any, **named: Any) -> Any:
    manager = ProxyManager(InMemoryStorage())
    return asyncio.run(pharox.acquire_proxy_with_retry_async(manager, *arguments, **named))


def hold_in_a_thread(*arguments: Any, **named: Any) -> Any:
    async def run() -> Any:
        manager = ProxyManager(InMemoryStorage())
        async with pharox.with_retrying_lease_async(manager, *arguments, **named) as lease:
            return lease

    return asyncio.run(run())


FORMS = [acquire, hold, acquire_awaited, hold_awaited, acquire_in_a_thread, hold_in_a_thread]
pytestmark = pytest.mark.parametrize("form", FORMS)
Form = Callable[..., Any]


def test_the_references_order(form: Form) -> None:
    """A number behind the selector is how often to ask; ``sleep_fn`` stands last."""
    pauses: list[float] = []
    assert form(*ASKED, 4, 1, 3.0, 5, pauses.append) is None
    assert pauses == [1, 3, 5]


def test_the_wheels_order(form: Form) -> None:
    """A config or None behind the selector, then ``sleep_fn``, then the numbers."""
    pauses: list[float] = []
    assert form(*ASKED, None, pauses.append, 4, 1, 3.0, 5) is None
    assert form(*ASKED, RetryConfig(3, 0.5), pauses.append) is None
    assert pauses == [1, 3, 5, 0.5, 1.0]


def test_what_is_left_out_is_as_ever(form: Form) -> None:
    """Both orders may end anywhere, and the rest may be named."""
    pauses: list[float] = []
    assert form(*ASKED, 3, sleep_fn=pauses.append) is None
    assert form(*ASKED, 3, 0.25, sleep_fn=pauses.append, max_backoff_seconds=0.3) is None
    assert form(*ASKED, sleep_fn=pauses.append, max_attempts=2) is None
    assert pauses == [0.5, 1.0, 0.25, 0.3, 0.5]


@pytest.mark.parametrize(
    ("arguments", "named", "error"),
    [
        ((0,), {}, InvalidInputError),
        ((2.5,), {}, InvalidInputError),
        ((True,), {}, InvalidInputError),
        ((3, -1), {}, InvalidInputError),
        ((3, "1"), {}, InvalidInputError),
        (("3",), {}, InvalidInputError),
        ((print,), {}, InvalidInputError),
        ((), {"retry_config": 3}, InvalidInputError),
        ((3, 0, 1, None, print, None), {}, TypeError),
        ((3,), {"retry_config": RetryConfig(1, 0)}, TypeError),
        ((3,), {"max_attempts": 3}, TypeError),
    ],
)
def test_what_makes_no_sense_is_told(
    form: Form, arguments: tuple[Any, ...], named: dict[str, Any], error: type[Exception]
) -> None:
    """By an error that says which argument is meant, before anything is asked."""
    with pytest.raises(error):
        form(*ASKED, *arguments, **named)


def test_the_signature_is_that_of_the_wheel(form: Form) -> None:
    """Whoever asks for it gets names and defaults, and a coroutine function is known as one."""
    functions: dict[Form, Callable[..., Any]] = {
        acquire: ProxyManager.acquire_proxy_with_retry,
        hold: ProxyManager.with_retrying_lease,
        acquire_awaited: AsyncProxyManager.acquire_proxy_with_retry,
        hold_awaited: AsyncProxyManager.with_retrying_lease,
        acquire_in_a_thread: pharox.acquire_proxy_with_retry_async,
        hold_in_a_thread: pharox.with_retrying_lease_async,
    }
    function = functions[form]
    parameters = inspect.signature(function).parameters
    later = ("self", "manager", "on_lost", "options")
    assert [name for name in parameters if name not in later] == WHEEL
    assert parameters["max_attempts"].default == 3
    assert inspect.iscoroutinefunction(function) is (form in (acquire_awaited, acquire_in_a_thread))
