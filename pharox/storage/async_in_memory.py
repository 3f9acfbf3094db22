"""AsyncInMemoryStorage: InMemoryStorage for asyncio code.

Only a request that waits does: any other command is done before its task could be
cancelled, and no thread is needed. Methods that 0.11.0 offered without ``await``, to
fill a storage in a test, are still not coroutines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

from pharox.log.tree import Inclusion, TreeHead
from projections import Finding, State

from ..effects import call_async, result_within_async, run_async
from ..errors import PharoxError
from ..events import Event
from ..models import (
    ApiToken,
    Consumer,
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
    utc_now,
)
from .async_interface import IAsyncStorage
from .closing import finishing
from .list_import import HALF, ImportReport, ListedIds, Match, MaxRemoved, RemovalReport
from .memory import InMemoryStorage, in_turn
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
from .sources import HELD_S, RefreshResult, SourceClaim, SyncReport


class AsyncInMemoryStorage(IAsyncStorage):
    """The ledger in this process's memory, for tasks and threads.

    Parameters
    ----------
    clock:
        Returns the time, with a time zone.
    """

    can_wait = True
    can_stick = True
    can_fall_back = True

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self.memory = InMemoryStorage(clock=clock)
        """The same ledger for blocking code."""

    async def blocking(self) -> InMemoryStorage:
        """Return the same ledger for blocking code."""
        return self.memory

    async def upgrade_schema(self) -> None:
        """Do nothing: there is no schema here."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Record what is left to record: there is nothing to close."""
        await run_async(finishing(self), call_async)

    # Without await, as in 0.11.0

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one with this id."""
        self.memory.add_pool(pool)

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with its existing id if the name is registered."""
        return self.memory.add_consumer(consumer)

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one with this id."""
        self.memory.add_proxy(proxy)

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        return self.memory.get_proxy_by_id(proxy_id)

    # Leasing

    async def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        acquisition: Acquisition = await self._acquire(request)
        return acquisition

    async def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        acquisition: SetAcquisition = await self._acquire(request)
        return acquisition

    async def _acquire(self, request: AcquireRequest | AcquireSetRequest) -> Any:
        if request.wait_seconds:
            steps = in_turn.acquire(self.memory._state, request, result_within_async)
            return await run_async(steps, call_async)
        return self.memory._run_alone(request)

    async def run_batch(self, commands: Sequence[Command]) -> Sequence[CommandOutcome | Exception]:
        return self.memory.run_batch(commands)

    async def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        return self.memory.create_lease(proxy, consumer_name, duration_seconds)

    async def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        return self.memory.find_available_proxy(pool_name, filters, selector)

    async def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        return self.memory.return_lease(lease, reason=reason, with_stats=with_stats)

    async def return_leases(
        self, leases: Sequence[Lease], *, reason: str | None = None, with_stats: bool = False
    ) -> Sequence[ReleaseResult]:
        return self.memory.return_leases(leases, reason=reason, with_stats=with_stats)

    async def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        return self.memory.renew_leases(requests, wait=wait)

    async def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        return self.memory.seconds_to_next_expiry(pool_name)

    async def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        return self.memory.seconds_to_next_change(pool_name, target, session)

    async def report_outcomes(
        self, requests: Sequence[ReportRequest]
    ) -> Sequence[Reported | PharoxError]:
        return self.memory.report_outcomes(requests)

    async def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        return self.memory.set_cool_down(request)

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
        return self.memory.list_target_outcomes(
            pool_name, target=target, proxy_id=proxy_id, cooling=cooling, after=after, limit=limit
        )

    async def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        return self.memory.summarize_targets(pool_name, target=target, after=after, limit=limit)

    async def count_unclear_targets(self, proxy_id: UUID) -> int:
        return self.memory.count_unclear_targets(proxy_id)

    async def set_target_rules(self, rules: TargetRules) -> bool:
        return self.memory.set_target_rules(rules)

    async def unset_target_rules(self, target: str) -> bool:
        return self.memory.unset_target_rules(target)

    async def add_api_token(self, token: ApiToken) -> None:
        self.memory.add_api_token(token)

    async def withdraw_api_token(self, token_id: UUID | str) -> bool:
        return self.memory.withdraw_api_token(token_id)

    async def list_api_tokens(self) -> list[ApiToken]:
        return self.memory.list_api_tokens()

    async def place_pool(
        self, pool_name: str, ledger: str, *, instead_of: str | None = None
    ) -> bool:
        return self.memory.place_pool(pool_name, ledger, instead_of=instead_of)

    async def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        return self.memory.list_places(pool_names)

    async def record_action(
        self, action: str, subject: str, reason: str, *, pool_id: UUID | None = None
    ) -> None:
        self.memory.record_action(action, subject, reason, pool_id=pool_id)

    async def carry_out_move(self, order: MoveOrder) -> Any:
        return self.memory.carry_out_move(order)

    async def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        return self.memory.list_pool_moves(pool_name)

    async def list_target_rules(self) -> list[KnownTargetRules]:
        return self.memory.list_target_rules()

    async def save_source(self, source: ProxySource) -> bool:
        return self.memory.save_source(source)

    async def get_source(self, name: str) -> ProxySource:
        return self.memory.get_source(name)

    async def remove_source(self, name: str) -> bool:
        return self.memory.remove_source(name)

    async def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        return self.memory.list_sources(pool_name)

    async def claim_source(
        self, name: str, *, for_seconds: float = HELD_S, only_due: bool = False
    ) -> SourceClaim | None:
        return self.memory.claim_source(name, for_seconds=for_seconds, only_due=only_due)

    async def sync_source(
        self,
        claim: SourceClaim,
        listed: Sequence[Proxy],
        *,
        keeps_unlisted: bool = False,
        dry_run: bool = False,
    ) -> SyncReport:
        return self.memory.sync_source(
            claim, listed, keeps_unlisted=keeps_unlisted, dry_run=dry_run
        )

    async def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        return self.memory.finish_refresh(claim, result)

    async def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        return self.memory.usage(by, pool_name=pool_name, since=since, until=until, limit=limit)

    async def list_sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        return self.memory.list_sessions(pool_name, after=after, limit=limit)

    async def forget_session(self, pool_name: str, key: str) -> UUID | None:
        return self.memory.forget_session(pool_name, key)

    async def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        self.memory.inherit_session(pool_name, old, new)

    async def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
        self.memory.begin_rotation(proxy_id, within_seconds)

    async def claim_rotations(
        self, proxy_ids: Collection[UUID] | None = None, *, seconds: float = 35.0, most: int = 10
    ) -> RotationClaims:
        return self.memory.claim_rotations(proxy_ids, seconds=seconds, most=most)

    async def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        return self.memory.answer_rotation(due, answer)

    async def rotate_exit(self, lease_id: UUID) -> GatewayExit:
        return self.memory.rotate_exit(lease_id)

    async def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        return self.memory.revoke_leases(request)

    async def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        return self.memory.expire_leases(with_stats=with_stats)

    async def release_lease(self, lease: Lease) -> None:
        self.memory.release_lease(lease)

    async def cleanup_expired_leases(self) -> int:
        return self.memory.cleanup_expired_leases()

    async def get_lease(self, lease_id: str) -> Lease | None:
        return self.memory.get_lease(lease_id)

    async def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        return self.memory.list_leases(consumer_id)

    async def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        return self.memory.list_held_leases(
            pool_name, consumer_name=consumer_name, after=after, limit=limit
        )

    async def prune_leases(self, ended_before: datetime) -> int:
        """Delete leases that ended before a given time. The log keeps their events."""
        return self.memory.prune_leases(ended_before)

    # Consumers, pools and proxies

    async def ensure_consumer(self, consumer_name: str) -> UUID:
        return self.memory.ensure_consumer(consumer_name)

    async def save_pool(self, pool: ProxyPool) -> None:
        self.memory.save_pool(pool)

    async def get_pool(self, pool_id: str) -> ProxyPool:
        return self.memory.get_pool(pool_id)

    async def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool with this name, or None."""
        return self.memory.get_pool_by_name(name)

    async def list_pools(self) -> Sequence[ProxyPool]:
        return self.memory.list_pools()

    async def delete_pool(self, pool_id: str) -> None:
        self.memory.delete_pool(pool_id)

    async def save_proxy(self, proxy: Proxy) -> None:
        self.memory.save_proxy(proxy)

    async def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy, except its status, which somebody else may be changing."""
        self.memory.change_proxy(proxy)

    async def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        return self.memory.add_proxies_bulk(proxies)

    async def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that are new to the pool, and return how many."""
        return self.memory.import_proxies(pool_id, proxies)

    async def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list of any length, batch by batch."""
        return self.memory.import_list(pool_id, batches, update=update, make=make)

    async def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
        """Return a match for each proxy of a list."""
        return self.memory.match_listed(pool_id, proxies)

    async def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove a source's proxies that are no longer in its list and are not leased."""
        return self.memory.remove_unlisted(pool_id, listed, source=source, max_removed=max_removed)

    async def get_proxy(self, proxy_id: str) -> Proxy:
        return self.memory.get_proxy(proxy_id)

    async def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without its credentials, or None."""
        return self.memory.get_bare_proxy(proxy_id)

    async def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        return self.memory.list_proxies(pool_id)

    async def delete_proxy(self, proxy_id: str) -> None:
        self.memory.delete_proxy(proxy_id)

    async def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Remove those of the given proxies that are not leased, and return their ids."""
        return self.memory.remove_idle(pool_id, proxy_ids)

    async def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        return self.memory.get_pool_stats(pool_name)

    async def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return the statistics of every pool, ordered by name."""
        return self.memory.list_pool_stats()

    async def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        return self.memory.queue_stats(pool_name)

    # Health

    async def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        return self.memory.apply_health_check_result(result)

    async def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        return self.memory.record_health_checks(results, policy)

    async def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        return self.memory.set_status(proxy_id, status, reason=reason, for_seconds=for_seconds)

    async def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        return self.memory.drain_proxy(proxy_id, reason=reason)

    async def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> AsyncIterator[Proxy]:
        for proxy in self.memory.load_proxies_for_healthchecks(
            pool_name, stale_after=stale_after, statuses=statuses
        ):
            yield proxy

    async def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        return self.memory.get_last_health_result(proxy_id)

    async def last_checks(self, proxy_ids: Sequence[UUID]) -> dict[UUID, HealthCheckResult]:
        """Return the newest health check of each of some proxies that has one, by its id."""
        return self.memory.last_checks(proxy_ids)

    async def lease_ids(self, beginning: str, *, limit: int = 10) -> list[UUID]:
        """Return the ids of leases in the log that begin so, as the sync storage does."""
        return self.memory.lease_ids(beginning, limit=limit)

    async def save_health_record(self, record: ProxyHealthRecord) -> None:
        self.memory.save_health_record(record)

    async def list_health_records(
        self, proxy_id: UUID, limit: int = 100
    ) -> Sequence[ProxyHealthRecord]:
        return self.memory.list_health_records(proxy_id, limit)

    # The log

    async def events(self, *, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events in the log with a ``seq`` greater than ``after``, in order."""
        for event in self.memory.events(after=after):
            yield event

    async def state_at(self, seq: int) -> dict[str, State]:
        """Return all read models as they were after the event with this seq."""
        return self.memory.state_at(seq)

    async def tree_size(self) -> int:
        """Return how many events the log's Merkle tree covers: all of them."""
        return self.memory.tree_size()

    async def tree_head(self, size: int | None = None) -> TreeHead:
        """Return the head of the Merkle tree over the first ``size`` events, or all."""
        return self.memory.tree_head(size)

    async def prove_inclusion(self, seq: int, size: int | None = None) -> Inclusion:
        """Return the proof that an event is among the first ``size`` events, or all."""
        return self.memory.prove_inclusion(seq, size)

    async def prove_consistency(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree over ``size`` events, or all, continues ``old``'s."""
        return self.memory.prove_consistency(old, size)

    async def verify(self, *, heads: Collection[TreeHead] = ()) -> list[Finding]:
        """Fold the whole log again and return what differs; compare it with signed heads."""
        return self.memory.verify(heads=heads)
