"""Run a program: a generator that yields requests instead of doing I/O.

A program yields each request and receives the result. If the request fails, the
exception is raised at the ``yield``. So logic that needs a database or a user's callback
is written once. :func:`run` carries out its requests in a thread, :func:`run_async`
in an event loop.

The simplest request is a call without arguments: :func:`call` makes it, and
:func:`call_async` also awaits its result if that is awaitable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from inspect import isawaitable, iscoroutinefunction
from typing import Any, TypeVar

T = TypeVar("T")
Request = TypeVar("Request")

Calls = Generator[Callable[[], Any], Any, T]
"""A program whose requests are calls."""


def run(program: Generator[Request, Any, T], do: Callable[[Request], Any]) -> T:
    """Run a program to its end, carrying out its requests with ``do``. Return its result."""
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
    """Run a program to its end, awaiting ``do`` for its requests. Return its result."""
    try:
        request = next(program)
        while True:
            try:
                answer = await do(request)
            except GeneratorExit:  # The loop is closed: nothing can be awaited.
                raise
            except BaseException as error:
                request = program.throw(error)
            else:
                request = program.send(answer)
    except StopIteration as end:
        result: T = end.value
        return result


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether the result of calling ``function`` must be awaited."""
    # An object may have a coroutine function as its own __call__.
    return iscoroutinefunction(function) or iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def call(function: Callable[[], Any]) -> Any:
    """Make a call that a program requests."""
    return function()


async def call_async(function: Callable[[], Any]) -> Any:
    """Make a call that a program requests, and await its result if that is awaitable."""
    answer = function()
    return await answer if isawaitable(answer) else answer


def result_within(future: Future[Any], seconds: float) -> Any:
    """Return the result of a future; None if there is none within so many seconds."""
    try:
        return future.result(max(0.0, seconds))
    except TimeoutError:
        return None


async def result_within_async(future: Future[Any], seconds: float) -> Any:
    """Await the result of a future that a thread may set; it is not cancelled with the task."""
    if not future.done():
        await asyncio.wait({asyncio.wrap_future(future)}, timeout=max(0.0, seconds))
    return future.result() if future.done() else None
