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
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from ..effects import Calls, call_async, run_async
from ..effects.cancelling import CANCELLED, to_the_end, with_outcome
from ..errors import InvalidInputError, PharoxError
from ..models import (
    ApiToken,
    DueRotation,
    GatewayExit,
    HealthCheckResult,
    HealthPolicy,
    HeldLease,
    KnownTargetRules,
    Lease,
    PoolMove,
    PoolPlace,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxySource,
    ProxyStatus,
    QueueStats,
    RotationAnswer,
    RotationClaims,
    SelectorStrategy,
    SourceStatus,
    StickySession,
    TargetOutcomes,
    TargetRules,
    TargetSummary,
    Usage,
    check_name,
)
from . import defaults
from .moving import MoveOrder
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
from .sources import HELD_S, RefreshResult, SourceClaim, SyncReport, source_unknown
from .validation import (
    check_age,
    check_claim,
    check_statuses,
    check_within,
    held_page,
    pool_named,
    session_page,
    target_page,
    usage_wish,
)

T = TypeVar("T")


class IAsyncStorage(ABC):
    """Stores pools, proxies, consumers, leases and health checks, and decides on leases."""

    can_wait: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``wait_seconds`` of a request."""

    can_stick: ClassVar[bool] = False
    """Whether ``acquire_lease`` obeys ``sticky`` of a request."""

    can_fall_back: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``fallback`` of a request."""

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
            If the proxy is a template with ``{session}``, whose exits would all rest, or this
            storage does not know targets. This default does not.
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

    async def count_unclear_targets(self, proxy_id: UUID) -> int:
        """Return at how many targets a proxy's last request failed, nobody knows why.

        Only failures of the last ten minutes count that are later than any success of the proxy.
        A storage that cannot record outcomes knows of none.
        """
        return 0

    async def set_target_rules(self, rules: TargetRules) -> bool:
        """Say what answers of a target mean, for the whole fleet. Return if that is a change.

        Managers read all rules every 30 seconds at most. The rules of one target replace those
        that it had.

        Raises
        ------
        InvalidInputError
            If these are no rules, or a thousand targets have some, or this storage cannot keep
            rules. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_RULES.format(type(self).__name__))

    async def unset_target_rules(self, target: str) -> bool:
        """Have the default rules hold for a target again. Return whether it had rules.

        Raises
        ------
        InvalidInputError
            If it is neither a host, nor ``*.`` and a host, or this storage cannot keep rules. This
            default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_RULES.format(type(self).__name__))

    async def list_target_rules(self) -> list[KnownTargetRules]:
        """Return the rules of all targets that have some, by target."""
        return []

    async def place_pool(
        self, pool_name: str, ledger: str, *, instead_of: str | None = None
    ) -> bool:
        """Record which ledger of a fleet a pool is in. Return whether that is new.

        This is for the home ledger of a fleet, which keeps the directory of all its pools.

        Parameters
        ----------
        pool_name:
            The pool, which need not be in this ledger.
        ledger:
            The ledger's name in the settings of the fleet.
        instead_of:
            The ledger that the pool was in, if it moves.

        Raises
        ------
        ConflictError
            If the directory has the pool in another ledger, which the error's ``ledger`` names.
        InvalidInputError
            If a name is not valid, or this storage cannot keep a directory. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_PLACE_POOLS.format(type(self).__name__))

    async def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        """Return which ledgers pools are in, ordered by the pools' names: the named ones, or all.

        A pool that was never placed is left out.
        """
        return []

    async def save_source(self, source: ProxySource) -> bool:
        """Add a source of a pool's proxies, or change its settings. Return if that is a change.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        SecretKeyError
            If there is no key to encrypt its URL with.
        InvalidInputError
            If a source of the name is of another pool, or a thousand sources exist, or this storage
            cannot keep sources. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_SOURCES.format(type(self).__name__))

    async def get_source(self, name: str) -> ProxySource:
        """Return the settings of a source, with its URL and its headers.

        Raises
        ------
        PharoxError
            If there is no such source.
        SecretKeyError
            If no key can decrypt them.
        """
        raise source_unknown(check_name(name, "source"))

    async def remove_source(self, name: str) -> bool:
        """Remove a source; its proxies stay in the pool. Return whether there was one."""
        check_name(name, "source")
        return False

    async def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        """Return all sources, or those of a pool, by name, and how their refreshes went."""
        return []

    async def claim_source(
        self, name: str, *, for_seconds: float = HELD_S, only_due: bool = False
    ) -> SourceClaim | None:
        """Claim a source, so that nobody else refreshes it until the claim is given back.

        Parameters
        ----------
        for_seconds:
            After how long the claim runs out if nothing is heard of its holder.
        only_due:
            Whether only a source is claimed whose list is to be fetched now.

        Returns
        -------
        SourceClaim or None
            None if somebody else has it, or it is not due.

        Raises
        ------
        PharoxError
            If there is no such source.
        SecretKeyError
            If no key can decrypt its URL.
        """
        raise source_unknown(check_name(name, "source"))

    async def sync_source(
        self,
        claim: SourceClaim,
        listed: Sequence[Proxy],
        *,
        keeps_unlisted: bool = False,
        dry_run: bool = False,
    ) -> SyncReport:
        """Bring the proxies of a claimed source in step with its list.

        Parameters
        ----------
        listed:
            The whole list. Their ``source`` has to be the name of the source.
        keeps_unlisted:
            Whether to remove nothing.
        dry_run:
            Whether to write nothing, and to return what would be done.

        Raises
        ------
        ConflictError
            If the claim was lost meanwhile.
        """
        raise source_unknown(claim.source.name)

    async def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        """Record what a refresh found, if it is new, and give the claim back.

        ``result`` is None if nothing was found out, as of a refresh that was stopped. Returns
        False if the claim was lost: then nothing is recorded.
        """
        return False

    async def add_api_token(self, token: ApiToken) -> None:
        """Store a token that :meth:`pharox.ApiToken.draw` has drawn, from when on it is good.

        Raises
        ------
        ConflictError
            If there is one with this id.
        InvalidInputError
            If it is none, or there are a thousand, or this storage cannot keep tokens. This default
            cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_TOKENS.format(type(self).__name__))

    async def withdraw_api_token(self, token_id: UUID | str) -> bool:
        """Have a token be refused. Return whether there was one with this id.

        Who serves the API refuses it ten seconds later at most.

        Raises
        ------
        InvalidInputError
            If it is no id, or this storage cannot keep tokens. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_TOKENS.format(type(self).__name__))

    async def list_api_tokens(self) -> list[ApiToken]:
        """Return the tokens that were not withdrawn, by consumer and issue."""
        return []

    async def record_action(
        self, action: str, subject: str, reason: str, *, pool_id: UUID | None = None
    ) -> None:
        """Record that a person did something, and why.

        What is done has events of its own, if any; give both one ``correlation_id`` by
        :func:`pharox.attributed`, which also says who.

        Parameters
        ----------
        action:
            What, such as ``rebuild``.
        subject:
            To what, such as the name of a pool.
        pool_id:
            The pool that it concerns, if one.

        Raises
        ------
        InvalidInputError
            If a text cannot be stored, or this storage cannot record actions. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_RECORD_ACTIONS.format(type(self).__name__))

    async def carry_out_move(self, order: MoveOrder) -> Any:
        """Carry out one step of a pool's move; use :func:`pharox.fleet.move_pool_async`.

        Parameters
        ----------
        order:
            A step of :mod:`pharox.storage.moving`, which says what it returns.

        Raises
        ------
        InvalidInputError
            If this storage cannot move pools. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_MOVE_POOLS.format(type(self).__name__))

    async def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        """Return the moves of pools to and from other ledgers, the last one first.

        Parameters
        ----------
        pool_name:
            Only those of pools that had this name.
        """
        return []

    async def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        """Return what was used of proxies, as in ``IStorage``."""
        usage_wish(by, pool_name, since, until, limit)
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

    async def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
        """Have a proxy take another exit by its ``rotate_url``: it rests until it has one.

        Nobody is granted the proxy before, or before ``within_seconds`` are over, None for what its
        pool says, else 60. The link is called by whoever claims it, once no lease holds the proxy.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        ConflictError
            If its link may not be called before that.
        InvalidInputError
            If it has no link, or this storage does not know links. This default does not.
        """
        check_within(within_seconds)
        raise InvalidInputError(defaults.CANNOT_ROTATE_PROXIES.format(type(self).__name__))

    async def claim_rotations(
        self, proxy_ids: Collection[UUID] | None = None, *, seconds: float = 35.0, most: int = 10
    ) -> RotationClaims:
        """Claim links that are to be called now: nobody else calls them for so many ``seconds``.

        Only those of proxies that no lease holds; each rests while it is claimed.

        Parameters
        ----------
        proxy_ids:
            Only those of these proxies.
        seconds:
            For how long they are claimed. Whoever calls one has to give up before.
        most:
            How many to claim at most.
        """
        check_claim(seconds, most)
        return RotationClaims()

    async def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        """Record what came of calling a claimed link. Return False if it is not claimed any more.

        A proxy that has another exit may be leased again, unless its pool has it rest. After a
        failure its link is due again after ``retry_after_seconds``, or 5; if that is not before the
        bound, the rotation is given up and the proxy may be leased with the exit that it has.
        """
        return False

    async def rotate_exit(self, lease_id: UUID) -> GatewayExit:
        """Have a lease of a template take another exit, and return it.

        The sticky session that keeps the exit takes the same one.

        Raises
        ------
        LeaseEndedError
            If the lease has ended or run out, or there is none with this id.
        InvalidInputError
            If its proxy is no template with ``{session}``, or this storage does not know
            templates. This default does not.
        """
        raise InvalidInputError(defaults.CANNOT_ROTATE.format(type(self).__name__))

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
