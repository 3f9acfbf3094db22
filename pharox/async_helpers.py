"""Use a blocking manager from asyncio: each call runs in a thread.

This works with any blocking storage. :class:`pharox.AsyncProxyManager` needs no
threads.

A thread cannot be cancelled. A cancelled task therefore waits for its running
call, and releases a lease that the call was granted before the cancellation is
raised. It does not wait for a call that has not started, unless that call is a
release. The PostgreSQL storage waits for the database no longer than it does for a
cancelled task. Pauses between two attempts take no thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import TypeVar, Unpack
from uuid import UUID

from .effects import Calls, call, call_async, is_async, run, run_async
from .effects.cancelling import CancelledCall, call_in_thread, to_the_end
from .errors import InvalidInputError
from .manager import ProxyManager
from .manager.blocks import held_by_task
from .manager.leasing import AcquireArguments, if_given, releasing_after, retrying
from .manager.options import LeaseOptions, OnLost, check_on_lost
from .manager.retrying import checked_config, in_both_orders
from .models import (
    DEFAULT_DURATION_S,
    Lease,
    Outcome,
    ProxyFilters,
    Response,
    RetryConfig,
    SelectorStrategy,
)
from .storage.requests import Acquisition

T = TypeVar("T")


async def acquire_proxy_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = DEFAULT_DURATION_S,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    *,
    lease_id: UUID | None = None,
    **options: Unpack[LeaseOptions],
) -> Lease | None:
    """Do as :meth:`ProxyManager.acquire_proxy` without blocking the event loop."""
    _check_blocks(manager)

    def acquire() -> Acquisition:
        request = (pool_name, consumer_name, duration_seconds, filters, selector)
        if lease_id is None:  # the method, as a subclass may override it
            return Acquisition(manager.acquire_proxy(*request, **options))
        return run(manager._acquiring(AcquireArguments(*request, lease_id, **options)), call)

    acquisition, cancelled = await _in_a_thread(acquire)
    lease = acquisition.lease
    if cancelled is None:
        return lease
    if lease is not None and acquisition.is_new:
        with suppress(asyncio.CancelledError):  # cancelled again: already cancelled
            await _in_a_thread(lambda: run(manager._giving_up(lease), call), certain=True)
    raise cancelled


@in_both_orders
async def acquire_proxy_with_retry_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = DEFAULT_DURATION_S,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    retry_config: RetryConfig | None = None,
    sleep_fn: Callable[[float], None] | None = None,
    max_attempts: int = 3,
    backoff_seconds: float = 0.5,
    backoff_multiplier: float = 2.0,
    max_backoff_seconds: float | None = None,
    *,
    lease_id: UUID | None = None,
    **options: Unpack[LeaseOptions],
) -> Lease | None:
    """Do as :meth:`ProxyManager.acquire_proxy_with_retry` without blocking the event loop."""
    config = checked_config(
        retry_config, max_attempts, backoff_seconds, backoff_multiplier, max_backoff_seconds
    )
    request = (pool_name, consumer_name, duration_seconds, filters, selector)

    def attempt() -> Calls[Lease | None]:
        answer: Lease | None = yield partial(
            acquire_proxy_async, manager, *request, lease_id=lease_id, **options
        )
        return answer

    # Sleep in the loop: sleeping threads would be missing for releases.
    async def sleep(seconds: float) -> None:
        if sleep_fn is None:
            await asyncio.sleep(seconds)
        else:
            await asyncio.to_thread(sleep_fn, seconds)

    program = retrying(attempt, config, sleep, is_enough=lambda lease: lease is not None)
    return await run_async(program, call_async)


async def release_proxy_async(
    manager: ProxyManager, lease: Lease, outcome: Outcome | Response | None = None
) -> None:
    """Do as :meth:`ProxyManager.release_proxy` without blocking the event loop.

    The lease is released even if the task is cancelled meanwhile.
    """
    _check_blocks(manager)
    release = partial(manager.release_proxy, lease, **if_given(outcome=outcome))
    _, cancelled = await _in_a_thread(release, certain=True)
    if cancelled is not None:
        raise cancelled


@asynccontextmanager
async def with_lease_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = DEFAULT_DURATION_S,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    *,
    lease_id: UUID | None = None,
    on_lost: OnLost = "cancel",
    **options: Unpack[LeaseOptions],
) -> AsyncIterator[Lease | None]:
    """Do as :meth:`ProxyManager.with_lease` without blocking the event loop."""
    check_on_lost(on_lost)
    lease = await acquire_proxy_async(
        manager,
        pool_name,
        consumer_name,
        duration_seconds,
        filters,
        selector,
        lease_id=lease_id,
        **options,
    )
    async with _held(manager, lease, on_lost):
        yield lease


@in_both_orders
@asynccontextmanager
async def with_retrying_lease_async(
    manager: ProxyManager,
    pool_name: str,
    consumer_name: str | None = None,
    duration_seconds: int = DEFAULT_DURATION_S,
    filters: ProxyFilters | None = None,
    selector: SelectorStrategy | None = None,
    retry_config: RetryConfig | None = None,
    sleep_fn: Callable[[float], None] | None = None,
    max_attempts: int = 3,
    backoff_seconds: float = 0.5,
    backoff_multiplier: float = 2.0,
    max_backoff_seconds: float | None = None,
    *,
    lease_id: UUID | None = None,
    on_lost: OnLost = "cancel",
    **options: Unpack[LeaseOptions],
) -> AsyncIterator[Lease | None]:
    """Do as :meth:`ProxyManager.with_retrying_lease` without blocking the event loop."""
    check_on_lost(on_lost)
    lease = await acquire_proxy_with_retry_async(
        manager,
        pool_name,
        consumer_name,
        duration_seconds,
        filters,
        selector,
        retry_config=retry_config,
        sleep_fn=sleep_fn,
        max_attempts=max_attempts,
        backoff_seconds=backoff_seconds,
        backoff_multiplier=backoff_multiplier,
        max_backoff_seconds=max_backoff_seconds,
        lease_id=lease_id,
        **options,
    )
    async with _held(manager, lease, on_lost):
        yield lease


def _check_blocks(manager: ProxyManager) -> None:
    if is_async(manager.release_proxy):
        raise InvalidInputError("await this manager directly, without a helper")


async def _in_a_thread(
    function: Callable[[], T], *, certain: bool = False
) -> tuple[T, asyncio.CancelledError | None]:
    """Make a call in a thread; a cancellation may prevent it unless it is ``certain``."""
    begun = CancelledCall(certain=certain)

    def carry_out() -> T:
        if not begun.begin():
            # Cancelled before a thread was free; nobody waits for this.
            return None  # type: ignore[return-value]
        call_in_thread.set(begun)
        return function()

    # A future, not the task of asyncio.to_thread: a loop that shuts down cancels tasks.
    loop = asyncio.get_running_loop()
    future = loop.run_in_executor(None, copy_context().run, carry_out)
    return await to_the_end(future, begun.cancel)


def _held(
    manager: ProxyManager, lease: Lease | None, on_lost: OnLost
) -> AbstractAsyncContextManager[None]:
    async def release() -> None:
        if lease is not None:
            await release_proxy_async(manager, lease)

    async def release_after(error: BaseException) -> None:
        after = releasing_after(error, manager.release_proxy, lease)
        _, cancelled = await _in_a_thread(lambda: run(after, call), certain=True)
        if cancelled is not None:
            raise cancelled from error

    leases = [] if lease is None else [lease]
    storage = manager.storage if lease is None else manager._storage_of(lease)
    return held_by_task(storage, leases, on_lost, release=release, release_after=release_after)
