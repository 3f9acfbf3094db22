"""A manager that blocks, for code that awaits: each call goes to a thread.

For any storage with methods that block. With :class:`pharox.AsyncProxyManager`
nothing needs a thread.

A thread cannot be cancelled. So a task that is cancelled waits until the call
under way is over, and a lease that it was granted is given back before the
cancellation goes on its way. A pause between two attempts ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from .manager import ProxyManager
from .models import Lease, ProxyFilters, RetryConfig, SelectorStrategy
from .programs import call, run

T = TypeVar("T")
logger = logging.getLogger("pharox")


async def acquire_proxy_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = 300,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
) -> Lease | None:
    """Do as :meth:`ProxyManager.acquire_proxy` without blocking the event loop."""
    ask = (pool_name, consumer_name, duration_seconds, filters, selector)
    return await _acquired(manager, partial(manager.acquire_proxy, *ask), threading.Event())


async def acquire_proxy_with_retry_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = 300,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    retry_config: RetryConfig | None = None,
    sleep_fn: Callable[[float], None] | None = None,
    max_attempts: int = 3,
    backoff_seconds: float = 0.5,
    backoff_multiplier: float = 2.0,
    max_backoff_seconds: float | None = None,
) -> Lease | None:
    """Do as :meth:`ProxyManager.acquire_proxy_with_retry` without blocking the event loop."""
    no_more = threading.Event()

    def sleep(seconds: float) -> None:
        if sleep_fn is not None:
            sleep_fn(seconds)
        else:
            no_more.wait(seconds)
        if no_more.is_set():
            raise _NoMoreError

    acquire = partial(
        manager.acquire_proxy_with_retry,
        pool_name,
        consumer_name,
        duration_seconds,
        filters,
        selector,
        retry_config,
        sleep,
        max_attempts,
        backoff_seconds,
        backoff_multiplier,
        max_backoff_seconds,
    )
    return await _acquired(manager, acquire, no_more)


async def release_proxy_async(manager: ProxyManager, lease: Lease) -> None:
    """Do as :meth:`ProxyManager.release_proxy` without blocking the event loop.

    It is released also if the task is cancelled meanwhile.
    """
    _, cancelled = await _to_the_end(partial(manager.release_proxy, lease))
    if cancelled is not None:
        raise cancelled


@asynccontextmanager
async def with_lease_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = 300,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
) -> AsyncIterator[Lease | None]:
    """Do as :meth:`ProxyManager.with_lease` without blocking the event loop."""
    lease = await acquire_proxy_async(
        manager, pool_name, consumer_name, duration_seconds, filters, selector
    )
    async with _held(manager, lease) as held:
        yield held


@asynccontextmanager
async def with_retrying_lease_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = 300,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    retry_config: RetryConfig | None = None,
    sleep_fn: Callable[[float], None] | None = None,
    max_attempts: int = 3,
    backoff_seconds: float = 0.5,
    backoff_multiplier: float = 2.0,
    max_backoff_seconds: float | None = None,
) -> AsyncIterator[Lease | None]:
    """Do as :meth:`ProxyManager.with_retrying_lease` without blocking the event loop."""
    lease = await acquire_proxy_with_retry_async(
        manager,
        pool_name,
        consumer_name,
        duration_seconds,
        filters,
        selector,
        retry_config,
        sleep_fn,
        max_attempts,
        backoff_seconds,
        backoff_multiplier,
        max_backoff_seconds,
    )
    async with _held(manager, lease) as held:
        yield held


class _NoMoreError(Exception):
    """The task that asked was cancelled; nobody wants another attempt."""


async def _acquired(
    manager: ProxyManager, acquire: Callable[[], Lease | None], no_more: threading.Event
) -> Lease | None:
    def unless_too_late() -> Lease | None:
        if no_more.is_set():  # cancelled before a thread was free
            raise _NoMoreError
        return acquire()

    lease, cancelled = await _to_the_end(unless_too_late, no_more.set)
    if cancelled is None:
        return lease
    if lease is not None:
        await _to_the_end(lambda: run(manager._giving_up(lease), call))
    raise cancelled


@asynccontextmanager
async def _held(manager: ProxyManager, lease: Lease | None) -> AsyncIterator[Lease | None]:
    try:
        yield lease
    except BaseException as error:
        after = partial(manager._releasing_after, error, lease)
        _, cancelled = await _to_the_end(lambda: run(after(), call))
        if cancelled is not None:
            raise cancelled from error
        raise
    if lease is not None:
        await release_proxy_async(manager, lease)


async def _to_the_end(
    function: Callable[[], T], when_cancelled: Callable[[], None] = lambda: None
) -> tuple[T, asyncio.CancelledError | None]:
    """Call in a thread and wait for it, through all cancellations; return the last of them too.

    What it raises once the task was cancelled is logged, and the cancellation raised.
    """
    # A future, not a task: a loop that shuts down cancels all of its tasks.
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, copy_context().run, function)
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            return await asyncio.shield(future), cancelled
        except asyncio.CancelledError as error:
            cancelled = error
            when_cancelled()
        except Exception as error:
            if cancelled is None:
                raise
            if not isinstance(error, _NoMoreError):
                logger.exception("pharox.call.failed: of a cancelled task")
            raise cancelled from error
