"""Run a program: logic that asks for what it needs instead of doing it.

A program is a generator. It yields what it wants done and receives the answer;
what goes wrong is raised inside of it, where it was yielded. So logic that
needs a database or somebody's callback stands once, and what is yielded is
carried out in a thread or in an event loop: by :func:`run` or :func:`run_async`.

The simplest request is a call without arguments: :func:`call` makes it, and
:func:`call_async` also awaits what it returns if that is to be awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable, iscoroutinefunction
from typing import Any, TypeVar

T = TypeVar("T")
Request = TypeVar("Request")

Calls = Generator[Callable[[], Any], Any, T]
"""A program that asks for calls."""


def run(program: Generator[Request, Any, T], do: Callable[[Request], Any]) -> T:
    """Run a program to its end, doing what it asks for, and return what it returns."""
    try:
        request = next(program)
        while True:
            try:
                answer = do(request)
            except BaseException as error:
                request = program.throw(error)
            else:
                request = program.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_async(
    program: Generator[Request, Any, T], do: Callable[[Request], Awaitable[Any]]
) -> T:
    """Run a program to its end, awaiting what it asks for, and return what it returns."""
    try:
        request = next(program)
        while True:
            try:
                answer = await do(request)
            except GeneratorExit:  # The loop is gone: nothing can be awaited any more.
                raise
            except BaseException as error:
                request = program.throw(error)
            else:
                request = program.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether what a call of this returns is to be awaited."""
    # An object may have a coroutine function as its own __call__.
    return iscoroutinefunction(function) or iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def call(function: Callable[[], Any]) -> Any:
    """Make a call that a program asks for."""
    return function()


async def call_async(function: Callable[[], Any]) -> Any:
    """Make a call that a program asks for, and await its answer if need be."""
    answer = function()
    return await answer if isawaitable(answer) else answer
