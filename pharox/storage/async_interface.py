"""The interface of storage adapters with coroutines.

The methods are those of :class:`~pharox.storage.IStorage`, with one additional rule for
cancellation: a cancelled command was either not carried out or is complete when
``CancelledError`` is raised. If cancelled, ``acquire_lease``, ``acquire_set``, ``run_batch``
and ``create_lease`` leave no lease behind. ``return_lease``, ``return_leases`` and
``release_lease`` end their leases even then.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import ClassVar, TypeVar
from uuid import UUID

from ..effects import Calls, call_async, run_async
from ..effects.cancelling import CANCELLED, to_the_end, with_outcome
from ..errors import InvalidInputError, PharoxError
from ..models import (
    HealthCheckResult,
    HealthPolicy,
    HeldLease,
    Lease,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    QueueStats,
    SelectorStrategy,
    StickySession,
    TargetOutcomes,
    TargetSummary,
)
from . import defaults
from .reports import CoolDownRequest, Reported, ReportRequest
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    CommandOutcome,
    EndedLease,
    HealthOutcome,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
    given_up,
    new_leases,
)
from .validation import (
    check_age,
    check_statuses,
    held_page,
    pool_named,
    session_page,
    target_page,
)

T = TypeVar("T")


class IAsyncStorage(ABC):
    """Stores pools, proxies, consumers, leases and health checks, and decides on leases."""

    can_wait: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``wait_seconds`` of a request."""

    can_stick: ClassVar[bool] = False
    """Whether ``acquire_lease`` obeys ``sticky`` of a request."""

    @abstractmethod
    async def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        """Return the proxy that the selector offers next, without leasing it."""

    @abstractmethod
    async def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        """Lease exactly this proxy."""

    @abstractmethod
    async def ensure_consumer(self, consumer_name: str) -> UUID:
        """Return the consumer's id, registering the name if it is new."""

    @abstractmethod
    async def release_lease(self, lease: Lease) -> None:
        """End a lease. Only its id is used. A lease that has already ended is not changed."""

    @abstractmethod
    async def cleanup_expired_leases(self) -> int:
        """Expire all due leases, and return how many there were."""

    @abstractmethod
    async def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        """Record a health check. Return the updated proxy, or None if it is unknown."""

    @abstractmethod
    async def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        """Return the newest health check of a proxy, or None if there was none."""

    @abstractmethod
    async def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        """Return a pool's statistics, or None if there is no such pool."""

    async def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        """Return who waits for a proxy, as in ``IStorage``."""
        return []

    @abstractmethod
    async def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        """Register many proxies atomically, and return how many were new."""

    @abstractmethod
    async def save_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one with this id."""

    @abstractmethod
    async def get_pool(self, pool_id: str) -> ProxyPool:
        """Return the pool with this id, given as text; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    async def list_pools(self) -> Sequence[ProxyPool]:
        """Return all pools, ordered by name."""

    @abstractmethod
    async def delete_pool(self, pool_id: str) -> None:
        """Remove a pool, its proxies and their leases; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    async def save_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one with this id. Its leases are not changed."""

    @abstractmethod
    async def get_proxy(self, proxy_id: str) -> Proxy:
        """Return the proxy with this id, given as text; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    async def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        """Return a pool's proxies, ordered by id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    async def delete_proxy(self, proxy_id: str) -> None:
        """Remove a proxy and release its leases; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    async def get_lease(self, lease_id: str) -> Lease | None:
        """Return the lease with this id, given as text, or None."""

    @abstractmethod
    async def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        """Return the leases of one consumer (its id as text) or of all, oldest first."""

    async def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        """Return a page of the active leases, as in ``IStorage``."""
        page = held_page(pool_name, consumer_name, after, limit)
        return await run_async(defaults.list_held_leases(self, page), call_async)

    @abstractmethod
    async def save_health_record(self, record: ProxyHealthRecord) -> None:
        """Record a check that was made elsewhere. It does not change the proxy's status."""

    @abstractmethod
    async def list_health_records(
        self, proxy_id: UUID, limit: int = 100
    ) -> Sequence[ProxyHealthRecord]:
        """Return the newest health checks of a proxy, newest first."""

    async def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Find a proxy and lease it."""
        return await self._complete("acquire_lease", defaults.acquire_lease(self, request))

    async def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        """Lease several proxies at once: as many as requested, a minimum number, or none."""
        return await self._complete("acquire_set", defaults.acquire_set(self, request))

    async def run_batch(self, commands: Sequence[Command]) -> Sequence[CommandOutcome | Exception]:
        """Carry out commands. Return the outcome of each, in the same order."""
        return await self._complete("run_batch", defaults.run_batch(self, commands))

    async def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        """Extend leases. Return each renewed lease, or the error of its request, in order.

        Raises
        ------
        InvalidInputError
            If this storage cannot renew leases. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_RENEW.format(type(self).__name__))

    async def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        """Return the seconds until the next active lease of a pool, or of all, runs out, or None.

        This default cannot tell, and returns None.
        """
        return None

    async def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        """Return the seconds until something of a pool may be free by itself, at least 0.

        That is when the next active lease runs out, the next rest is over, or the next rest for the
        target. With a sticky session's key it is when its proxy may be free, or, if it is not
        bound, also when the next binding ends. None if there is none of these. The manager asks
        for it after a miss. This default knows leases only.
        """
        return await self.seconds_to_next_expiry(pool_name)

    async def report_outcomes(
        self, requests: Sequence[ReportRequest]
    ) -> Sequence[Reported | PharoxError]:
        """Record what became of requests under leases. Return each as recorded, or its error.

        Parameters
        ----------
        requests:
            Any number, also of ended leases; 500 at a time are recorded in one commit. Several
            of one proxy and target are recorded in order.

        Raises
        ------
        InvalidInputError
            If this storage cannot record outcomes. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_REPORT.format(type(self).__name__))

    async def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        """Have a proxy rest for one target, or end that. Return until when it rests.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        InvalidInputError
            If this storage does not know targets. This default does not.
        """
        raise InvalidInputError(defaults.CANNOT_REPORT.format(type(self).__name__))

    async def list_target_outcomes(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        proxy_id: UUID | None = None,
        cooling: bool = False,
        after: TargetOutcomes | None = None,
        limit: int = 1000,
    ) -> list[TargetOutcomes]:
        """Return a page of the pairs of proxy and target, as in ``IStorage``."""
        target_page(pool_name, target, after, limit, proxy_id, cooling=cooling)
        return []

    async def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        """Return a page of the targets of pools, as in ``IStorage``."""
        target_page(pool_name, target, after, limit)
        return []

    async def list_sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        """Return a page of the sticky sessions that live, ordered by the pool's id and key.

        Parameters
        ----------
        pool_name:
            Only sessions of this pool.
        after:
            The last session of the page before; None for the first page.
        limit:
            How many sessions to return at most. A shorter page is the last one.
        """
        session_page(pool_name, after, limit)
        return []

    async def forget_session(self, pool_name: str, key: str) -> UUID | None:
        """End a key's binding. Return the proxy that it was to, or None if there was none.

        Raises
        ------
        InvalidInputError
            If this storage cannot keep sessions. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_SESSIONS.format(type(self).__name__))

    async def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        """Have the key ``new`` take over the binding of ``old``, until it would have ended.

        Raises
        ------
        SessionNotFoundError
            If the old key is not bound.
        ConflictError
            If the new key is bound itself.
        InvalidInputError
            If this storage cannot keep sessions. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_SESSIONS.format(type(self).__name__))

    async def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        """Revoke leases. Return the end of each, or why it was not revoked, in order.

        Raises
        ------
        InvalidInputError
            If this storage cannot revoke leases. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_REVOKE.format(type(self).__name__))

    async def return_leases(
        self, leases: Sequence[Lease], *, reason: str | None = None, with_stats: bool = False
    ) -> Sequence[ReleaseResult]:
        """Release leases and return the result of each."""
        program = defaults.return_leases(self, leases, reason, with_stats=with_stats)
        return await self._complete("return_leases", program)

    async def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks. Return the outcome of each, in the same order."""
        return await run_async(defaults.record_health_checks(self, results, policy), call_async)

    async def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        """Lease a proxy no more, and remove it when its last lease ends.

        Raises
        ------
        InvalidInputError
            If this storage cannot drain proxies. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_DRAIN.format(type(self).__name__))

    async def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        """Set a proxy's status, as a person does. This can also set or lift a ban."""
        return await run_async(
            defaults.set_status(self, proxy_id, status, reason, for_seconds), call_async
        )

    async def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> AsyncIterator[Proxy]:
        """Yield the proxies that are due for a check, ordered by id within each pool."""
        age, wanted = check_age(stale_after), check_statuses(statuses)
        for pool in pool_named(pool_name, await self.list_pools()):
            for proxy in await self.list_proxies(str(pool.id)):
                if await run_async(defaults.is_due(self, proxy, age, wanted), call_async):
                    yield proxy

    async def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        """Release a lease and return the result."""
        program = defaults.return_lease(self, lease, reason, with_stats=with_stats)
        return await self._complete("return_lease", program)

    async def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        """Expire all due leases. Return how many, and those of them that are known in detail."""
        return await self.cleanup_expired_leases(), ()

    async def _complete(self, command: str, program: Calls[T]) -> T:
        """Run a command's program to its end. If the task is cancelled, give its leases back."""
        task = asyncio.ensure_future(run_async(program, call_async))
        outcome, cancelled = await to_the_end(task)
        if cancelled is None:
            return outcome
        for lease in new_leases(outcome):
            await self._give_up(lease)
        raise with_outcome(cancelled, command, outcome)

    async def _give_up(self, lease: Lease | None) -> None:
        """Release a lease that its task will never see. If that fails, it expires."""
        if lease is not None:
            with given_up(lease), suppress(asyncio.CancelledError):  # cancelled again
                await self.return_lease(lease, reason=CANCELLED)
