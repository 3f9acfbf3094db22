"""Sweep: check proxies and record the results.

The checker yields lists of ready results, and each list is recorded at once. While one
list is being written the next one fills, so a busy sweep writes in batches and a slow
one writes each result immediately. Nothing is yielded before it is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from datetime import timedelta
from functools import partial
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction
from itertools import islice
from typing import Any, TypeVar

from ..errors import InvalidInputError
from ..manager import ProxyManager
from ..manager.async_proxy_manager import AsyncProxyManager
from ..models import HealthCheckOptions, HealthCheckResult, HealthPolicy, Proxy, ProxyStatus
from ..storage.async_interface import IAsyncStorage
from ..storage.interface import IStorage
from ..storage.requests import HealthOutcome
from .checker import CONCURRENCY, HealthChecker, Proxies
from .streaming import each_of

T = TypeVar("T")

_PAGE = 500
_PAUSE_S = 0.25
"""How long a sweep waits before it calls ``pause_when`` again."""


class HealthCheckOrchestrator:
    """Checks proxies and records the results in a storage's ledger.

    Parameters
    ----------
    storage:
        The storage of the ledger, blocking or async.
    checker:
        The checker; one with default options if None.
    manager:
        A manager to use instead of ``storage``, whose health and expire callbacks
        are called.
    policy:
        When results change a status; each one does if None.
    pause_when:
        A sweep starts no check while this returns True; running checks continue. It is
        called a few times a second, in a thread unless it is a coroutine function.

    Raises
    ------
    InvalidInputError
        If there is neither storage nor manager, if they do not belong together, or
        if ``pause_when`` is not callable.
    """

    def __init__(
        self,
        storage: IStorage | IAsyncStorage | None = None,
        checker: HealthChecker | None = None,
        *,
        manager: ProxyManager | AsyncProxyManager | None = None,
        policy: HealthPolicy | None = None,
        pause_when: Callable[[], bool | Awaitable[bool]] | None = None,
    ) -> None:
        kept = storage if manager is None else manager.storage
        if kept is None or (storage is not None and kept is not storage):
            raise InvalidInputError("give either a storage or a manager")
        if pause_when is not None and not callable(pause_when):
            raise InvalidInputError("pause_when must be a function", value=pause_when)
        self._storage: Any = kept
        self._ledger: Any = manager or kept
        self._checker = checker or HealthChecker()
        self._policy = policy
        self._pause_when = pause_when

    @property
    def checker(self) -> HealthChecker:
        """The checker of this orchestrator."""
        return self._checker

    def apply_result(self, result: HealthCheckResult) -> Proxy | None:
        """Record a result; return the updated proxy, or None if it is unknown.

        Raises
        ------
        TypeError
            If the storage is async: await :meth:`apply_result_async`.
        """
        if iscoroutinefunction(self._ledger.record_health_checks):
            raise TypeError("this storage is async: await apply_result_async() instead")
        (outcome,) = self._ledger.record_health_checks([result], self._policy)
        return self._storage.get_proxy(str(result.proxy_id)) if outcome.known else None

    async def apply_result_async(self, result: HealthCheckResult) -> Proxy | None:
        """Record a result; return the updated proxy, or None if it is unknown."""
        with _Calls() as calls:
            record = self._ledger.record_health_checks
            (outcome,) = await calls.call(record, [result], self._policy)
            if not outcome.known:
                return None
            proxy: Proxy = await calls.call(self._storage.get_proxy, str(result.proxy_id))
            return proxy

    async def check_proxy(
        self, proxy: Proxy, options: HealthCheckOptions | None = None
    ) -> HealthCheckResult:
        """Check one proxy and record the result."""
        result = await self._checker.check_proxy(proxy, options=options)
        with _Calls() as calls:
            await calls.call(self._ledger.record_health_checks, [result], self._policy)
        return result

    async def stream_health_checks(
        self,
        proxies: Proxies,
        options: HealthCheckOptions | None = None,
        *,
        concurrency: int = CONCURRENCY,
        per_host: int | None = None,
    ) -> AsyncGenerator[HealthCheckResult, None]:
        """Check proxies and record the results; yield them as they come.

        As :meth:`sweep`, but yields the results alone.
        """
        swept = self.sweep(proxies, options, concurrency=concurrency, per_host=per_host)
        async with aclosing(swept):
            async for outcome in swept:
                yield outcome.result

    async def sweep(
        self,
        proxies: Proxies | None = None,
        options: HealthCheckOptions | None = None,
        *,
        concurrency: int = CONCURRENCY,
        per_host: int | None = None,
    ) -> AsyncGenerator[HealthOutcome, None]:
        """Expire leases that ran out, then check proxies and record the results.

        Parameters
        ----------
        proxies:
            The proxies, consumed as needed; those of :meth:`due` if None.
        options:
            Options of the checks, instead of the checker's own.
        concurrency:
            How many checks to run at once.
        per_host:
            How many of them per proxy host; any number if None.

        Yields
        ------
        HealthOutcome
            The outcome of each check, once it is recorded.

        Raises
        ------
        Exception
            An exception of a manager's callback. The results passed to it are recorded
            by then.
        """
        with _Calls() as calls:
            await calls.call(self._ledger.cleanup_expired_leases)
            wanted = self.due() if proxies is None else proxies
            if self._pause_when is not None:
                wanted = self._with_pauses(wanted, self._pause_when, calls)
            chunks = self._checker.stream_chunks(
                wanted, options, concurrency=concurrency, per_host=per_host
            )
            async with aclosing(chunks):
                async for results in chunks:
                    record = self._ledger.record_health_checks
                    for outcome in await calls.call(record, results, self._policy):
                        yield outcome

    async def due(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> AsyncGenerator[Proxy, None]:
        """Yield the proxies that are due for a check.

        Parameters are those of the storage's ``load_proxies_for_healthchecks``. A
        blocking storage is read in a thread.
        """
        with _Calls() as calls:
            load = self._storage.load_proxies_for_healthchecks
            choice = {"stale_after": stale_after, "statuses": statuses}
            if isasyncgenfunction(load):
                loaded = load(pool_name, **choice)
            else:
                loaded = await calls.call(partial(load, pool_name, **choice))
            found = loaded if isinstance(loaded, AsyncIterable) else calls.each(loaded)
            async with aclosing(each_of(found)) as due:
                async for proxy in due:
                    yield proxy

    @staticmethod
    async def _with_pauses(
        proxies: Proxies,
        pause_when: Callable[[], bool | Awaitable[bool]],
        calls: _Calls,
    ) -> AsyncGenerator[Proxy, None]:
        """Yield the proxies, but wait while ``pause_when`` returns True."""
        loop = asyncio.get_running_loop()
        asked = -_PAUSE_S
        async with aclosing(each_of(proxies)) as all_of_them:
            async for proxy in all_of_them:
                if loop.time() - asked >= _PAUSE_S:
                    while await calls.call(pause_when):
                        await asyncio.sleep(_PAUSE_S)
                    asked = loop.time()
                yield proxy


class _Calls:
    """Calls blocking functions in a thread of its own, and awaits coroutines.

    The loop's default threads resolve host names, and a slow lookup must not delay
    the recording of results.
    """

    def __enter__(self) -> _Calls:
        self._thread = ThreadPoolExecutor(1, "pharox-health")
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=False)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of ``function``, awaited if necessary."""
        if iscoroutinefunction(function):
            return await function(*arguments)
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self._thread, copy_context().run, function, *arguments)
        return await answer if isawaitable(answer) else answer

    async def each(self, items: Iterator[T]) -> AsyncGenerator[T, None]:
        """Yield the items of an iterator that may block, read a page at a time."""
        while page := await self.call(list, islice(items, _PAGE)):
            for item in page:
                yield item
