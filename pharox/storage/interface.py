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
from typing import Any, ClassVar
from uuid import UUID

from ..effects import call, run
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


class IStorage(ABC):
    """Stores pools, proxies, consumers, leases and health checks, and decides on leases."""

    can_wait: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``wait_seconds`` of a request."""

    can_stick: ClassVar[bool] = False
    """Whether ``acquire_lease`` obeys ``sticky`` of a request."""

    can_fall_back: ClassVar[bool] = False
    """Whether ``acquire_lease`` and ``acquire_set`` obey ``fallback`` of a request."""

    @abstractmethod
    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        """Return the proxy that the selector offers next, without leasing it.

        With ROUND_ROBIN this call moves the cursor. The limits of the pool bound leases, not what
        is shown: a lease of this proxy may be refused for one.

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
            If the proxy is a template with ``{session}``, whose exits would all rest, or this
            storage does not know targets. This default does not.
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
            Only pairs of this pool, this target (a host, or a URL with one) and this proxy. An
            unknown one has none.
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

    def count_unclear_targets(self, proxy_id: UUID) -> int:
        """Return at how many targets a proxy's last request failed, nobody knows why.

        Only failures of the last ten minutes count that are later than any success of the proxy.
        A storage that cannot record outcomes knows of none.
        """
        return 0

    def set_target_rules(self, rules: TargetRules) -> bool:
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

    def unset_target_rules(self, target: str) -> bool:
        """Have the default rules hold for a target again. Return whether it had rules.

        Raises
        ------
        InvalidInputError
            If it is neither a host, nor ``*.`` and a host, or this storage cannot keep rules. This
            default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_RULES.format(type(self).__name__))

    def list_target_rules(self) -> list[KnownTargetRules]:
        """Return the rules of all targets that have some, by target."""
        return []

    def place_pool(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
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

    def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        """Return which ledgers pools are in, ordered by the pools' names: the named ones, or all.

        A pool that was never placed is left out.
        """
        return []

    def save_source(self, source: ProxySource) -> bool:
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

    def get_source(self, name: str) -> ProxySource:
        """Return the settings of a source, with its URL and its headers.

        Raises
        ------
        PharoxError
            If there is no such source.
        SecretKeyError
            If no key can decrypt them.
        """
        raise source_unknown(check_name(name, "source"))

    def remove_source(self, name: str) -> bool:
        """Remove a source; its proxies stay in the pool. Return whether there was one."""
        check_name(name, "source")
        return False

    def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        """Return all sources, or those of a pool, by name, and how their refreshes went."""
        return []

    def claim_source(
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

    def sync_source(
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

    def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        """Record what a refresh found, if it is new, and give the claim back.

        ``result`` is None if nothing was found out, as of a refresh that was stopped. Returns
        False if the claim was lost: then nothing is recorded.
        """
        return False

    def add_api_token(self, token: ApiToken) -> None:
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

    def withdraw_api_token(self, token_id: UUID | str) -> bool:
        """Have a token be refused. Return whether there was one with this id.

        Who serves the API refuses it ten seconds later at most.

        Raises
        ------
        InvalidInputError
            If it is no id, or this storage cannot keep tokens. This default cannot.
        """
        raise InvalidInputError(defaults.CANNOT_KEEP_TOKENS.format(type(self).__name__))

    def list_api_tokens(self) -> list[ApiToken]:
        """Return the tokens that were not withdrawn, by consumer and issue."""
        return []

    def record_action(
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

    def carry_out_move(self, order: MoveOrder) -> Any:
        """Carry out one step of a pool's move; use :func:`pharox.fleet.move_pool`.

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

    def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        """Return the moves of pools to and from other ledgers, the last one first.

        Parameters
        ----------
        pool_name:
            Only those of pools that had this name.
        """
        return []

    def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        """Return what was used of proxies, summed up from the log: what cost most comes first.

        Parameters
        ----------
        by:
            What to sum up by, some of "consumer", "source", "target", "pool" and "day" (of UTC).
            With none there is one row, of all; if nothing was used, there is no row.
        pool_name:
            Only what was used of the pool while it had this name. It may have been removed; of a
            name that no pool ever had, nothing was used.
        since, until:
            Only what was recorded from ``since`` on and before ``until``, with time zones.
        limit:
            How many rows to return at most.

        Raises
        ------
        InvalidInputError
            If an argument is none of these.
        """
        usage_wish(by, pool_name, since, until, limit)
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

    def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
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

    def claim_rotations(
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

    def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        """Record what came of calling a claimed link. Return False if it is not claimed any more.

        A proxy that has another exit may be leased again, unless its pool has it rest. After a
        failure its link is due again after ``retry_after_seconds``, or 5; if that is not before the
        bound, the rotation is given up and the proxy may be leased with the exit that it has.
        """
        return False

    def rotate_exit(self, lease_id: UUID) -> GatewayExit:
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
