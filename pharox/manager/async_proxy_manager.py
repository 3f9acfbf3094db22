"""AsyncProxyManager: lease and release proxies and notify callbacks, for asyncio.

The logic is in :mod:`pharox.manager.leasing`; here it is awaited. A task may be
cancelled wherever it waits. A cancelled acquisition leaves no lease behind, a
cancelled release still releases, and callbacks are notified of what was committed
in both cases.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, Unpack
from uuid import UUID

from ..effects import Calls, call_async, run_async
from ..models import (
    DEFAULT_DURATION_S,
    AcquireEventPayload,
    ExpireEventPayload,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    Lease,
    Outcome,
    ProxyFilters,
    ReleaseEventPayload,
    Response,
    RetryConfig,
    RevokeEventPayload,
    RotationAnswer,
    SelectorStrategy,
    StickySession,
)
from ..storage.async_interface import IAsyncStorage
from ..storage.reports import Reported
from ..storage.requests import HealthOutcome
from ..storage.validation import check_storage
from .blocks import held_by_task
from .keeper import AsyncKeeper, Keeping, keeper_of
from .leasing import (
    AcquireArguments,
    AcquireSetArguments,
    Leasing,
    fleet_subscriptions,
    if_given,
    releasing_after,
)
from .options import LeaseOptions, OnLost, PoolOptions, check_on_lost, known_options
from .pool_handle import AsyncPoolHandle
from .reporting import REPORTED_FAILURES
from .retrying import checked_config, in_both_orders
from .rotator import Rotator, TaskRotator, fetch_in_loop, rotator_of
from .ruling import OutcomeOf
from .tally import Tally, TaskTally, tally_of

if TYPE_CHECKING:
    from ..ledger.subscriptions import BoundSubscription
    from .clients import OpeningClient


class AsyncProxyManager(Leasing[IAsyncStorage]):
    """Leases proxies of a storage's pools, as :class:`pharox.ProxyManager` does.

    Its only state is the registered callbacks, so tasks can share one manager. A
    callback may be a coroutine function; it is awaited before the next one is called.

    Parameters
    ----------
    storage:
        Where the ledger is kept.
    reported_failures:
        As for :class:`pharox.ProxyManager`.
    outcome_of:
        As for :class:`pharox.ProxyManager`. It is not awaited.

    Raises
    ------
    InvalidInputError
        If it is not a storage, or a blocking one.
    """

    def __init__(
        self,
        storage: IAsyncStorage,
        *,
        reported_failures: HealthPolicy | None = REPORTED_FAILURES,
        outcome_of: OutcomeOf | None = None,
    ) -> None:
        check_storage(storage, awaited=True)
        super().__init__(storage, reported_failures=reported_failures, outcome_of=outcome_of)
        self._running: set[asyncio.Task[Any]] = set()

    async def acquire_proxy(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        lease_id: UUID | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Lease | None:
        """Lease a proxy of a pool; None if nothing was free.

        Parameters and errors are those of :meth:`pharox.ProxyManager.acquire_proxy`.
        A task that is cancelled meanwhile has no lease.
        """
        arguments = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            lease_id,
            **known_options("acquire_proxy", options),
        )
        return (await run_async(self._acquiring(arguments), call_async)).lease

    async def acquire_proxies(
        self,
        pool_name: str,
        count: int,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        **options: Unpack[LeaseOptions],
    ) -> list[Lease]:
        """Lease several proxies of a pool at once, or none.

        Parameters and errors are those of :meth:`pharox.ProxyManager.acquire_proxies`.
        A task that is cancelled meanwhile has no lease.
        """
        arguments = AcquireSetArguments(
            pool_name,
            count,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            at_least,
            distinct,
            lease_ids,
            **known_options("acquire_proxies", options),
        )
        return (await run_async(self._acquiring_set(arguments), call_async)).leases

    @in_both_orders
    async def acquire_proxy_with_retry(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], Any] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
        *,
        lease_id: UUID | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Lease | None:
        """Lease a proxy, asking again after a pause while nothing is free.

        Parameters and errors are those of
        :meth:`pharox.ProxyManager.acquire_proxy_with_retry`; ``sleep_fn`` may be a
        coroutine function, and is ``asyncio.sleep`` if None.
        """
        config = checked_config(
            retry_config, max_attempts, backoff_seconds, backoff_multiplier, max_backoff_seconds
        )
        arguments = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            lease_id,
            **known_options("acquire_proxy_with_retry", options),
        )
        program = self._acquiring_again(arguments, config, sleep_fn or asyncio.sleep)
        return await run_async(program, call_async)

    async def renew_lease(self, lease: Lease, duration_seconds: float | None = None) -> Lease:
        """Extend a lease: it then lasts ``duration_seconds`` from now.

        As :meth:`ProxyManager.renew_lease`.
        """
        (renewed,) = await run_async(self._renewing([lease], duration_seconds), call_async)
        return renewed

    async def renew_leases(
        self, leases: Iterable[Lease], duration_seconds: float | None = None
    ) -> list[Lease]:
        """Extend leases, each as :meth:`renew_lease` does: up to 500 in one commit."""
        return await run_async(self._renewing(leases, duration_seconds), call_async)

    async def release_proxy(self, lease: Lease, outcome: Outcome | Response | None = None) -> None:
        """Give a lease back, even if the task is cancelled meanwhile.

        As :meth:`pharox.ProxyManager.release_proxy`.
        """
        await run_async(self._releasing(lease, outcome), call_async)

    async def release_proxies(
        self, leases: Iterable[Lease], outcomes: Iterable[Outcome | Response | None] | None = None
    ) -> None:
        """Give all these leases back, even if the task is cancelled meanwhile.

        As :meth:`pharox.ProxyManager.release_proxies`.
        """
        await run_async(self._releasing_all(leases, outcomes), call_async)

    async def report(self, lease: Lease, outcome: Outcome | Response) -> Reported | None:
        """Record what became of a request, or of several alike, through a leased proxy.

        As :meth:`pharox.ProxyManager.report`. An outcome that is being written is recorded even
        if the task is cancelled meanwhile.
        """
        return await run_async(self._reporting(lease, outcome), call_async)

    async def report_outcomes(
        self, reports: Iterable[tuple[Lease, Outcome | Response]]
    ) -> list[Reported]:
        """Record outcomes now, successes as well: up to 500 in one commit.

        As :meth:`pharox.ProxyManager.report_outcomes`.
        """
        return await run_async(self._reporting_all(reports), call_async)

    async def flush_reports(self) -> None:
        """Write the successes that are counted and not written yet, of all this storage's managers.

        As :meth:`pharox.ProxyManager.flush_reports`.
        """
        await run_async(self._flushing_reports(), call_async)

    async def revoke_lease(self, lease_id: UUID | str, reason: str) -> Lease:
        """End a lease of somebody else, whose proxy can then be leased.

        As :meth:`ProxyManager.revoke_lease`.
        """
        (revoked,) = await run_async(self._revoking([lease_id], reason), call_async)
        return revoked

    async def revoke_leases(self, lease_ids: Iterable[UUID | str], reason: str) -> list[Lease]:
        """End leases of others, each as :meth:`revoke_lease` does: up to 500 in one commit."""
        return await run_async(self._revoking(lease_ids, reason), call_async)

    async def sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        """Return a page of the sticky sessions that live, as :meth:`ProxyManager.sessions` does."""
        return await run_async(self._sessions(pool_name, after, limit), call_async)

    async def rotate(self, lease: Lease) -> Lease:
        """Have a lease take another exit, as :meth:`ProxyManager.rotate` does."""
        return await run_async(self._rotating(lease), call_async)

    async def rotate_proxy(
        self, proxy_id: UUID | str, *, within_seconds: float | None = None
    ) -> RotationAnswer:
        """Have a proxy take another exit, as :meth:`ProxyManager.rotate_proxy` does."""
        program = self._rotating_proxy(proxy_id, within_seconds, fetch_in_loop, asyncio.sleep)
        return await run_async(program, call_async)

    async def rotate_due(self) -> list[RotationAnswer]:
        """Call all links that are due now, as :meth:`ProxyManager.rotate_due` does."""
        return await run_async(self._calling_due(fetch_in_loop), call_async)

    async def forget_session(self, pool_name: str, key: str) -> bool:
        """End the binding of a sticky session's key. Return whether it was bound."""
        return await run_async(self._forgetting(pool_name, key), call_async)

    async def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        """Have a key take over a binding, as :meth:`ProxyManager.inherit_session` does."""
        await run_async(self._inheriting(pool_name, old, new), call_async)

    async def cleanup_expired_leases(self) -> int:
        """Expire all leases that have run out, and return how many there were."""
        return await run_async(self._cleaning_up(), call_async)

    async def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks, those of one proxy in their order, and notify the callbacks.

        As :meth:`pharox.ProxyManager.record_health_checks`.
        """
        return await run_async(self._recording(results, policy), call_async)

    @asynccontextmanager
    async def with_lease(
        self,
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
        """Lease a proxy for a block; yields None if nothing was free.

        Parameters are those of :meth:`acquire_proxy`, and ``on_lost`` is
        :data:`pharox.OnLost`. An exception of the block is never replaced by one of a
        callback.

        Raises
        ------
        LeaseLostError
            If a lease that is kept alive was lost: the task is cancelled where it waits, and
            the cancellation becomes this error at the end of the block.
        """
        check_on_lost(on_lost)
        lease = await self.acquire_proxy(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            **if_given(lease_id=lease_id),
            **known_options("with_lease", options),
        )
        async with self._held(lease, self.release_proxy, on_lost):
            yield lease

    @asynccontextmanager
    async def with_leases(
        self,
        pool_name: str,
        count: int,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        at_least: int | None = None,
        distinct: bool = True,
        lease_ids: Sequence[UUID] | None = None,
        on_lost: OnLost = "cancel",
        **options: Unpack[LeaseOptions],
    ) -> AsyncIterator[list[Lease]]:
        """Lease several proxies for a block; yields an empty list if too few were free.

        Parameters are those of :meth:`acquire_proxies` and :meth:`with_lease`. All leases
        are given back in the end. An exception of the block is never replaced by one of a callback.
        """
        check_on_lost(on_lost)
        leases = await self.acquire_proxies(
            pool_name,
            count,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            at_least=at_least,
            distinct=distinct,
            lease_ids=lease_ids,
            **known_options("with_leases", options),
        )
        # A copy: the block may change the list that it got.
        async with self._held([*leases], self.release_proxies, on_lost):
            yield leases

    @in_both_orders
    @asynccontextmanager
    async def with_retrying_lease(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], Any] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
        *,
        lease_id: UUID | None = None,
        on_lost: OnLost = "cancel",
        **options: Unpack[LeaseOptions],
    ) -> AsyncIterator[Lease | None]:
        """Lease a proxy for a block, with the retries of :meth:`acquire_proxy_with_retry`."""
        check_on_lost(on_lost)
        lease = await self.acquire_proxy_with_retry(
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
            **if_given(lease_id=lease_id),
            **known_options("with_retrying_lease", options),
        )
        async with self._held(lease, self.release_proxy, on_lost):
            yield lease

    def client(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = DEFAULT_DURATION_S,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        retry_config: RetryConfig | None = None,
        client_options: Mapping[str, Any] | None = None,
        report: bool = True,
        **options: Unpack[LeaseOptions],
    ) -> OpeningClient:
        """Lease a proxy and return an HTTP client that goes through it.

        ``async with manager.client("pool") as client:`` leases and gives back;
        ``await manager.client("pool")`` leases, and ``aclose()`` gives back.
        Parameters and errors are those of :meth:`pharox.ProxyManager.client`.

        Returns
        -------
        OpeningClient
            Enter or await it once to get the ``httpx.AsyncClient``.
        """
        from .clients import (  # noqa: PLC0415 - httpx takes a while to import
            AsyncLeasedClient,
            OpeningClient,
            opening_client,
        )

        options = self._client_options(options, retry_config)
        request = AcquireArguments(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            None,
            **known_options("client", options),
        )
        return OpeningClient(
            opening_client(
                self,
                AsyncLeasedClient,
                request,
                retry_config,
                client_options,
                asyncio.sleep,
                report=report,
            )
        )

    def pool(
        self,
        pool_name: str,
        *,
        on_lost: OnLost = "cancel",
        **options: Unpack[PoolOptions],
    ) -> AsyncPoolHandle:
        """Return a handle of a pool, which holds a worker's defaults.

        As :meth:`pharox.ProxyManager.pool`; its blocks are ``async with``.
        """
        return AsyncPoolHandle(self, pool_name, on_lost, options)

    async def subscribe(
        self,
        name: str | None = None,
        *,
        on_acquire: Callable[[AcquireEventPayload], Any] | None = None,
        on_release: Callable[[ReleaseEventPayload], Any] | None = None,
        on_expire: Callable[[ExpireEventPayload], Any] | None = None,
        on_revoke: Callable[[RevokeEventPayload], Any] | None = None,
        on_health: Callable[[HealthEventPayload], Any] | None = None,
        start: Literal["beginning", "now"] | int = "now",
        pool: str | UUID | None = None,
    ) -> BoundSubscription:
        """Notify callbacks, from the log, of what every manager does.

        As :meth:`pharox.ProxyManager.subscribe`; await ``run_async()`` of the returned
        subscription.
        """
        callbacks = {
            "on_acquire": on_acquire,
            "on_release": on_release,
            "on_expire": on_expire,
            "on_revoke": on_revoke,
            "on_health": on_health,
        }
        fleet = fleet_subscriptions()
        blocking = await fleet.for_threads(self._storage)
        bound: BoundSubscription = fleet.fleet_subscription(
            blocking, name, callbacks, start=start, pool=pool
        )
        return bound

    def _held(
        self,
        held: Lease | list[Lease] | None,
        release: Callable[[Any], Awaitable[None]],
        on_lost: OnLost,
    ) -> AbstractAsyncContextManager[None]:
        """Release what is held when the block ends."""

        async def release_all() -> None:
            if held:
                await release(held)

        async def release_after(error: BaseException) -> None:
            await run_async(releasing_after(error, release, held), call_async)

        leases = [held] if isinstance(held, Lease) else held or []
        return held_by_task(
            self._storage, leases, on_lost, release=release_all, release_after=release_after
        )

    def _keeper(self) -> Keeping:
        return keeper_of(self._storage, AsyncKeeper)

    def _tally(self) -> Tally:
        return tally_of(self._storage, TaskTally)

    def _rotator(self) -> Rotator:
        return rotator_of(self._storage, TaskRotator)

    def _run_later(self, program: Calls[Any]) -> None:
        task = asyncio.get_running_loop().create_task(run_async(program, call_async))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
