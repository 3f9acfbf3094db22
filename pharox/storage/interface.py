"""What a storage adapter does.

The abstract methods are those of 0.11.0, so an adapter written for it works
unchanged. The manager itself calls others: :meth:`IStorage.acquire_lease`,
:meth:`IStorage.return_lease`, :meth:`IStorage.expire_leases`, and of several leases
:meth:`IStorage.acquire_set` and :meth:`IStorage.run_batch`. Here they are written with
the abstract ones; an adapter that can decide in one go overrides them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from uuid import UUID

from ..effects import call, run
from ..models import (
    HealthCheckResult,
    HealthPolicy,
    Lease,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
)
from . import defaults
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    EndedLease,
    HealthOutcome,
    Outcome,
    ReleaseResult,
    SetAcquisition,
)
from .validation import check_age, check_statuses, pool_named


class IStorage(ABC):
    """Keeps pools, proxies, consumers, leases and health, and decides who gets what."""

    @abstractmethod
    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        """Return the proxy that the selector offers next, without leasing it.

        ROUND_ROBIN moves its cursor by this alone.

        Parameters
        ----------
        pool_name:
            The pool's unique name; an unknown one offers nothing.
        filters:
            What the proxy must match.
        selector:
            The order of offering; FIRST_AVAILABLE if None.
        """

    @abstractmethod
    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        """Lease this very proxy.

        Parameters
        ----------
        proxy:
            Only its id counts.
        consumer_name:
            Who leases; registered on first use.
        duration_seconds:
            The lease's length in seconds.

        Raises
        ------
        InvalidLeaseError
            If the duration makes no sense.
        ProxyNotFoundError
            If there is no such proxy (any more).
        ProxyUnavailableError
            If it is at capacity or not healthy.
        """

    @abstractmethod
    def ensure_consumer(self, consumer_name: str) -> UUID:
        """Return the consumer's id, registering the name if it is new."""

    @abstractmethod
    def release_lease(self, lease: Lease) -> None:
        """End a lease. Only its id counts; one that has ended already stays as it is."""

    @abstractmethod
    def cleanup_expired_leases(self) -> int:
        """Take back every proxy whose lease has run out, and return how many leases did."""

    @abstractmethod
    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        """Record a health check and return the proxy as it then stands; None if unknown.

        A result older than the newest one is recorded and changes nothing, and
        no result lifts a ban.
        """

    @abstractmethod
    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        """Return the newest health check of a proxy, or None if there was none."""

    @abstractmethod
    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        """Return a pool in numbers, or None if there is no such pool."""

    @abstractmethod
    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        """Register many proxies at once: all of them or, on an error, none.

        Those whose id is registered already are left as they are.

        Returns
        -------
        int
            How many were new.

        Raises
        ------
        PoolNotFoundError
            If any proxy's pool does not exist.
        """

    @abstractmethod
    def save_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one of this id."""

    @abstractmethod
    def get_pool(self, pool_id: str) -> ProxyPool:
        """Return a pool by the text of its id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def list_pools(self) -> Sequence[ProxyPool]:
        """Return all pools, by name."""

    @abstractmethod
    def delete_pool(self, pool_id: str) -> None:
        """Remove a pool, its proxies and their leases; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def save_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one of this id; its leases stay as they are.

        Raises
        ------
        PoolNotFoundError
            If the proxy's pool does not exist.
        """

    @abstractmethod
    def get_proxy(self, proxy_id: str) -> Proxy:
        """Return a proxy by the text of its id; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        """Return a pool's proxies, by id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def delete_proxy(self, proxy_id: str) -> None:
        """Remove a proxy and release its leases; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def get_lease(self, lease_id: str) -> Lease | None:
        """Return a lease by the text of its id, or None."""

    @abstractmethod
    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        """Return leases, oldest first, of one consumer (the text of its id) or of all."""

    @abstractmethod
    def save_health_record(self, record: ProxyHealthRecord) -> None:
        """Record an observation made elsewhere; it does not change the proxy's status."""

    @abstractmethod
    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        """Return the newest health checks of a proxy, newest first."""

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Find a proxy and lease it.

        This default asks :meth:`find_available_proxy` and :meth:`create_lease`
        in turn, so between the two another caller can be quicker; an adapter
        that cannot decide in one go pays for that with
        :class:`ProxyUnavailableError`. It grants no lease under a ``lease_id`` of
        the caller's.

        Raises
        ------
        LeaseEndedError
            If a lease was granted under the request's ``lease_id`` and has ended.
        ConflictError
            If it was granted to another consumer, or in another pool.
        """
        return run(defaults.acquire_lease(self, request), call)

    def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        """Lease several proxies at once: as many as are asked for, at least so many, or none.

        This default asks :meth:`acquire_lease` for one after the other, and gives all back
        with the reason ``too_few`` if they are not enough. So others see a part of a set
        for a moment, the log has the leases of a set that was not granted, and a miss in it
        is that of the lease that was missing. Distinct proxies are found by a predicate.
        It grants no set under ``lease_ids`` of the caller's.

        Raises
        ------
        LeaseEndedError
            If a lease was granted under one of the request's ``lease_ids`` and has ended.
        ConflictError
            If it was granted to another consumer, in another pool, or if the leases under
            these ids are fewer than the set needs.
        """
        return run(defaults.acquire_set(self, request), call)

    def run_batch(self, commands: Sequence[Command]) -> Sequence[Outcome | Exception]:
        """Carry out commands; return what each came to, in their order.

        They mean what they would mean one after another, in this order: leases that have
        run out are taken back, leases are given back, proxies are leased in the order of
        asking. A command that fails leaves the others alone, and its error is its answer.
        Each lease that ran out is told of in one answer: of the first command of its pool.

        This default calls the methods for single commands. It takes back what has run out
        in every pool if a proxy is asked for.

        Raises
        ------
        InvalidInputError
            If one of them is no command; then nothing is done.
        """
        return run(defaults.run_batch(self, commands), call)

    def return_leases(
        self, leases: Sequence[Lease], *, reason: str | None = None, with_stats: bool = False
    ) -> Sequence[ReleaseResult]:
        """Release leases and tell what came of each, as :meth:`return_lease` does.

        All of them are tried; then the error of one is raised, or those of several as an
        ``ExceptionGroup``.
        """
        return run(defaults.return_leases(self, leases, reason, with_stats=with_stats), call)

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks; return what each came to, in their order.

        Those of one proxy are recorded in the order in which they are given.
        This default asks :meth:`apply_health_check_result` for one after the
        other. It cannot count results in a row.

        Parameters
        ----------
        results:
            Any number, of any proxies; unknown ones have an outcome that says so.
        policy:
            When results become a status; every one at once if None.

        Raises
        ------
        InvalidInputError
            If this storage cannot follow the policy.
        """
        return run(defaults.record_health_checks(self, results, policy), call)

    def set_status(
        self, proxy_id: UUID, status: ProxyStatus, *, reason: str | None = None
    ) -> Proxy:
        """Decide a proxy's status, as a person does: also lift or lay a ban.

        This default has nowhere to keep the ``reason``.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        """
        return run(defaults.set_status(self, proxy_id, status, reason), call)

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        """Yield the proxies that are due to be checked, by id within each pool.

        Parameters
        ----------
        pool_name:
            Only of this pool; of all if None.
        stale_after:
            Only those not checked for so long (seconds), or never.
        statuses:
            Only those with one of these; all but BANNED if None.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        InvalidInputError
            If ``stale_after`` or a status makes no sense.
        """
        age, wanted = check_age(stale_after), check_statuses(statuses)
        pools = pool_named(pool_name, self.list_pools())
        return (
            proxy
            for pool in pools
            for proxy in self.list_proxies(str(pool.id))
            if run(defaults.is_due(self, proxy, age, wanted), call)
        )

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        """Release a lease and tell what came of it.

        ``lease`` ends with the recorded status and ``released_at`` either way.
        """
        return run(defaults.return_lease(self, lease, reason, with_stats=with_stats), call)

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        """Take back what has run out; return how many leases did, and those it can tell of."""
        return self.cleanup_expired_leases(), ()
