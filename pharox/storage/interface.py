"""The interface of storage adapters.

The abstract methods are those of 0.11.0, so an adapter written for it works
unchanged. The manager calls other methods: :meth:`IStorage.acquire_lease`,
:meth:`IStorage.return_lease`, :meth:`IStorage.expire_leases`, and for several leases
:meth:`IStorage.acquire_set` and :meth:`IStorage.run_batch`. Their defaults call
the abstract methods. An adapter that can decide atomically overrides them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import ClassVar
from uuid import UUID

from ..effects import call, run
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
)
from .validation import (
    check_age,
    check_statuses,
    held_page,
    pool_named,
    session_page,
    target_page,
)


class IStorage(ABC):
    """Stores pools, proxies, consumers, leases and health checks, and decides on leases."""

    can_wait: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``wait_seconds`` of a request."""

    can_stick: ClassVar[bool] = False
    """Whether ``acquire_lease`` obeys ``sticky`` of a request."""

    @abstractmethod
    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        """Return the proxy that the selector offers next, without leasing it.

        With ROUND_ROBIN this call moves the cursor.

        Parameters
        ----------
        pool_name:
            The pool's unique name. For an unknown pool None is returned.
        filters:
            Conditions that the proxy must meet.
        selector:
            The order in which proxies are offered; FIRST_AVAILABLE if None.
        """

    @abstractmethod
    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        """Lease exactly this proxy.

        Parameters
        ----------
        proxy:
            The proxy. Only its id is used.
        consumer_name:
            The consumer, which is registered on first use.
        duration_seconds:
            The lease's length in seconds.

        Raises
        ------
        InvalidLeaseError
            If the duration is invalid.
        ProxyNotFoundError
            If the proxy does not exist, or no longer exists.
        ProxyUnavailableError
            If it is at capacity or not healthy.
        """

    @abstractmethod
    def ensure_consumer(self, consumer_name: str) -> UUID:
        """Return the consumer's id, registering the name if it is new."""

    @abstractmethod
    def release_lease(self, lease: Lease) -> None:
        """End a lease. Only its id is used. A lease that has already ended is not changed."""

    @abstractmethod
    def cleanup_expired_leases(self) -> int:
        """Expire all due leases, and return how many there were."""

    @abstractmethod
    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        """Record a health check. Return the updated proxy, or None if it is unknown.

        A result older than the newest one is recorded but changes nothing. No result
        lifts a ban.
        """

    @abstractmethod
    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        """Return the newest health check of a proxy, or None if there was none."""

    @abstractmethod
    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        """Return a pool's statistics, or None if there is no such pool."""

    def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        """Return who waits for a proxy, in the named pool or in all, ordered by pool name.

        A pool in which nobody waits is left out. By default nobody does.
        """
        return []

    @abstractmethod
    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        """Register many proxies atomically.

        Proxies whose id is already registered are not changed.

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
        """Register a pool, or change the one with this id."""

    @abstractmethod
    def get_pool(self, pool_id: str) -> ProxyPool:
        """Return the pool with this id, given as text; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def list_pools(self) -> Sequence[ProxyPool]:
        """Return all pools, ordered by name."""

    @abstractmethod
    def delete_pool(self, pool_id: str) -> None:
        """Remove a pool, its proxies and their leases; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def save_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one with this id. Its leases are not changed.

        Raises
        ------
        PoolNotFoundError
            If the proxy's pool does not exist.
        """

    @abstractmethod
    def get_proxy(self, proxy_id: str) -> Proxy:
        """Return the proxy with this id, given as text; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        """Return a pool's proxies, ordered by id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def delete_proxy(self, proxy_id: str) -> None:
        """Remove a proxy and release its leases; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def get_lease(self, lease_id: str) -> Lease | None:
        """Return the lease with this id, given as text, or None."""

    @abstractmethod
    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        """Return the leases of one consumer (its id as text) or of all, oldest first."""

    def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        """Return a page of the active leases, ordered by the ids of pool, proxy and lease.

        It reads active leases only, so its cost does not grow with the history. This default
        reads all leases.

        Parameters
        ----------
        pool_name, consumer_name:
            Only leases in this pool, and of this consumer.
        after:
            The last lease of the page before, which may have ended since; None for the first page.
        limit:
            How many leases to return at most. A shorter page is the last one.
        """
        page = held_page(pool_name, consumer_name, after, limit)
        return run(defaults.list_held_leases(self, page), call)

    @abstractmethod
    def save_health_record(self, record: ProxyHealthRecord) -> None:
        """Record a check that was made elsewhere. It does not change the proxy's status."""

    @abstractmethod
    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        """Return the newest health checks of a proxy, newest first."""

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Find a proxy and lease it.

        This default calls :meth:`find_available_proxy`, then :meth:`create_lease`. Another
        caller can take the proxy in between, which raises
        :class:`ProxyUnavailableError`. It does not support a ``lease_id`` that the caller
        chooses.

        Raises
        ------
        LeaseEndedError
            If a lease was granted under the request's ``lease_id`` and has ended.
        ConflictError
            If it was granted to another consumer, or in another pool.
        """
        return run(defaults.acquire_lease(self, request), call)

    def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        """Lease several proxies at once: as many as requested, a minimum number, or none.

        This default calls :meth:`acquire_lease` repeatedly, and releases all leases with
        the reason ``too_few`` if they are not enough. So others can see a part of a set, the
        log has the leases of a set that was not granted, and its miss is that of the
        single missing lease. It finds distinct proxies with a predicate. It does not support
        ``lease_ids`` that the caller chooses.

        Raises
        ------
        LeaseEndedError
            If a lease was granted under one of the request's ``lease_ids`` and has ended.
        ConflictError
            If it was granted to another consumer, in another pool, or if the leases under
            these ids are fewer than the set needs.
        """
        return run(defaults.acquire_set(self, request), call)

    def run_batch(self, commands: Sequence[Command]) -> Sequence[CommandOutcome | Exception]:
        """Carry out commands. Return the outcome of each, in the same order.

        The effect is that of single commands in this order: due leases expire, leases are
        released, proxies are leased in the order of the requests. A command that fails does not
        affect the others; its error is its outcome. Each expired lease is reported in
        one outcome: that of the first command of its pool that is carried out
        and does not fail.

        This default calls the methods for single commands. It expires the due leases
        of all pools if a proxy is requested.

        Raises
        ------
        InvalidInputError
            If one of them is not a command; then nothing is done.
        """
        return run(defaults.run_batch(self, commands), call)

    def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        """Extend leases. Return each renewed lease, or the error of its request, in order.

        A lease that has ended is not renewed: its outcome is a :class:`LeaseEndedError`. The
        caller's lease gets what is recorded of it, renewed or not.

        Parameters
        ----------
        requests:
            Any number; 500 at a time are renewed in one commit.
        wait:
            Whether to wait for a lease that another session is ending or renewing. If not,
            its outcome is a :class:`LeaseBusyError`.

        Raises
        ------
        InvalidInputError
            If this storage cannot renew leases. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_RENEW.format(type(self).__name__))

    def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        """Return the seconds until the next active lease runs out, at least 0.

        It is one of the named pool, which the manager asks for after a miss, or of any, which
        a keeper asks for. None if there is no active lease, or if this storage cannot tell.
        This default cannot.
        """
        return None

    def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        """Return the seconds until something of a pool may be free by itself, at least 0.

        That is when the next active lease runs out, the next rest is over, or the next rest for the
        target. With a sticky session's key it is when its proxy may be free, or, if it is not
        bound, also when the next binding ends. None if there is none of these. The manager asks
        for it after a miss. This default knows leases only.
        """
        return self.seconds_to_next_expiry(pool_name)

    def report_outcomes(
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

    def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        """Have a proxy rest for one target, or end that. Return until when it rests.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        InvalidInputError
            If this storage does not know targets. This default does not.
        """
        raise InvalidInputError(defaults.CANNOT_REPORT.format(type(self).__name__))

    def list_target_outcomes(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        proxy_id: UUID | None = None,
        cooling: bool = False,
        after: TargetOutcomes | None = None,
        limit: int = 1000,
    ) -> list[TargetOutcomes]:
        """Return a page of the pairs of proxy and target that outcomes were reported of.

        They are ordered by the ids of pool and proxy, then by target. A pair is known until it
        is pruned, also after its proxy was removed. A storage that cannot record outcomes has none.

        Parameters
        ----------
        pool_name, target, proxy_id:
            Only pairs of this pool, this target (a host, or a URL with one) and this proxy.
        cooling:
            Only pairs that rest now.
        after:
            The last pair of the page before; None for the first page.
        limit:
            How many pairs to return at most. A shorter page is the last one.
        """
        target_page(pool_name, target, after, limit, proxy_id, cooling=cooling)
        return []

    def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        """Return a page of the targets of pools: how many proxies rest, and how they fared there.

        Targets are ordered by the pool's id, then by name. ``after`` is the last of the page
        before, None for the first page; a page shorter than ``limit`` is the last one. All pairs
        of the targets are read.
        """
        target_page(pool_name, target, after, limit)
        return []

    def list_sessions(
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

    def forget_session(self, pool_name: str, key: str) -> UUID | None:
        """End a key's binding. Return the proxy that it was to, or None if there was none.

        Raises
        ------
        InvalidInputError
            If this storage cannot keep sessions. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_SESSIONS.format(type(self).__name__))

    def inherit_session(self, pool_name: str, old: str, new: str) -> None:
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

    def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        """Revoke leases. Return the end of each, or why it was not revoked, in order.

        The outcome of a lease that has ended or run out, or of an id that was given before, is a
        :class:`LeaseEndedError`, which says how and when; then nothing is recorded. What others
        have locked is waited for, each lease in a commit of its own.

        Parameters
        ----------
        request:
            The ids of any number of leases, of which 500 are revoked in one commit, and the reason.

        Raises
        ------
        InvalidInputError
            If this storage cannot revoke leases. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_REVOKE.format(type(self).__name__))

    def return_leases(
        self, leases: Sequence[Lease], *, reason: str | None = None, with_stats: bool = False
    ) -> Sequence[ReleaseResult]:
        """Release leases and return the result of each, as :meth:`return_lease` does.

        All of them are tried. Then a single error is raised as it is, several as an
        ``ExceptionGroup``.
        """
        return run(defaults.return_leases(self, leases, reason, with_stats=with_stats), call)

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks. Return the outcome of each, in the same order.

        The checks of one proxy are recorded in the given order. This default calls
        :meth:`apply_health_check_result` for each check. It cannot count consecutive
        results.

        Parameters
        ----------
        results:
            Any number, for any proxies. The outcome says if a proxy is unknown.
        policy:
            When results change a status; if None, every result does at once.

        Raises
        ------
        InvalidInputError
            If this storage does not support the policy.
        """
        return run(defaults.record_health_checks(self, results, policy), call)

    def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        """Set a proxy's status, as a person does. This can also set or lift a ban.

        This default does not store the ``reason``.

        Parameters
        ----------
        for_seconds:
            How long a ban lasts, counted by the storage's clock; until it is lifted if None. It
            ends by itself: the proxy gets the status back that it had before, or ACTIVE if it
            was banned without an end. A status that is set in between cancels that.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        InvalidInputError
            If the status or ``for_seconds`` is invalid, or this storage cannot end a ban. This
            default cannot.
        """
        return run(defaults.set_status(self, proxy_id, status, reason, for_seconds), call)

    def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        """Lease a proxy no more, and remove it when its last lease ends; at once if it has none.

        Until then it is BANNED, and its leases go on. Any change of the proxy undoes it, such as
        lifting the ban with :meth:`set_status`.

        Returns
        -------
        Proxy or None
            The proxy with its leases, or None if it is removed.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        InvalidInputError
            If this storage cannot drain proxies. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_DRAIN.format(type(self).__name__))

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        """Yield the proxies that are due for a check, ordered by id within each pool.

        Parameters
        ----------
        pool_name:
            Only proxies of this pool; of all pools if None.
        stale_after:
            Only proxies not checked for this long (seconds), or never.
        statuses:
            Only proxies with one of these statuses; all but BANNED if None.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        InvalidInputError
            If ``stale_after`` or a status is invalid.
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
        """Release a lease and return the result.

        ``lease`` gets the recorded status and ``released_at``, even if it had ended before.
        """
        return run(defaults.return_lease(self, lease, reason, with_stats=with_stats), call)

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        """Expire all due leases. Return how many, and those of them that are known in detail."""
        return self.cleanup_expired_leases(), ()
