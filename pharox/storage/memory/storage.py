"""InMemoryStorage: the ledger without a server, for one process.

Its methods take the lock and call plain functions on a state. Nothing is persisted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import projections
from pharox.log import Extract
from pharox.log.tree import Inclusion, TreeHead
from projections import Finding
from projections import State as Rows

from ...effects import call, result_within, run
from ...errors import PharoxError
from ...events import ActionTaken, Event
from ...models import (
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
    check_name,
    rule_target_of,
    target_of,
    utc_now,
)
from ...models.ids import NIL
from ..interface import IStorage
from ..list_import import (
    HALF,
    ChangedProxy,
    ImportReport,
    ListedIds,
    Match,
    MaxRemoved,
    RemovalReport,
    import_list,
    remove_unlisted,
)
from ..moving import MoveOrder
from ..places import check_places, place_request
from ..reports import CoolDownRequest, Reported, ReportRequest
from ..requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    CommandOutcome,
    EndedLease,
    HealthOutcome,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
    lease_id_of,
)
from ..source_sync import sync_source
from ..sources import HELD_S, RefreshResult, SourceClaim, SyncReport, check_source
from ..validation import (
    check_action,
    check_claim,
    check_heirs,
    check_kind,
    check_rotation,
    check_rules,
    check_session,
    check_token,
    check_token_id,
    check_within,
    checked_model,
    held_page,
    id_from_text,
    id_span,
    session_page,
    target_page,
    usage_wish,
)
from . import (
    acquire,
    api_tokens,
    batch,
    exits,
    health,
    history,
    in_turn,
    lists,
    moves,
    moving,
    outcomes,
    places,
    registry,
    release,
    renewal,
    rotations,
    sessions,
    sources,
    target_rules,
    usage,
)
from .state import State

T = TypeVar("T")


class InMemoryStorage(IStorage):
    """The ledger in this process's memory. It is thread-safe.

    Parameters
    ----------
    clock:
        Returns the time, with a time zone. A test can pass its own to expire leases
        without waiting.
    """

    can_wait = True
    can_stick = True
    can_fall_back = True

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._state = State(clock)

    # Leasing

    def run_batch(self, commands: Sequence[Command]) -> Sequence[CommandOutcome | Exception]:
        """Carry out commands as one. Return the outcome of each, or its error."""
        with self._state.lock:
            return batch.run_batch(self._state, commands)

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was available."""
        acquisition: Acquisition = self._acquire(request)
        return acquisition

    def acquire_set(self, request: AcquireSetRequest) -> SetAcquisition:
        acquisition: SetAcquisition = self._acquire(request)
        return acquisition

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        returned: ReleaseResult = self._run_alone(ReleaseRequest(lease, reason, with_stats))
        return returned

    def renew_leases(
        self, requests: Sequence[RenewRequest], *, wait: bool = True
    ) -> Sequence[Lease | PharoxError]:
        with self._state.lock:
            return renewal.renew_leases(self._state, requests)

    def seconds_to_next_change(
        self, pool_name: str, target: str | None = None, session: str | None = None
    ) -> float | None:
        check_name(pool_name, "pool")
        named = None if target is None else target_of(target)
        with self._state.lock:
            pool_id = self._state.pool_ids.get(pool_name)
            if pool_id is None:
                return None
            return in_turn.seconds_to_change(self._state, pool_id, named, session)

    def report_outcomes(
        self, requests: Sequence[ReportRequest]
    ) -> Sequence[Reported | PharoxError]:
        with self._freeing():
            return outcomes.report_outcomes(self._state, requests)

    def set_cool_down(self, request: CoolDownRequest) -> datetime | None:
        with self._freeing():
            return outcomes.set_cool_down(self._state, request)

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
        page = target_page(pool_name, target, after, limit, proxy_id, cooling=cooling)
        with self._state.lock:
            return outcomes.list_pairs(self._state, page)

    def summarize_targets(
        self,
        pool_name: str | None = None,
        *,
        target: str | None = None,
        after: TargetSummary | None = None,
        limit: int = 1000,
    ) -> list[TargetSummary]:
        page = target_page(pool_name, target, after, limit)
        with self._state.lock:
            return outcomes.summarize(self._state, page)

    def count_unclear_targets(self, proxy_id: UUID) -> int:
        with self._state.lock:
            return outcomes.count_unclear(self._state, proxy_id)

    def set_target_rules(self, rules: TargetRules) -> bool:
        with self._state.lock:
            return target_rules.set_rules(self._state, check_rules(rules))

    def unset_target_rules(self, target: str) -> bool:
        with self._state.lock:
            return target_rules.unset_rules(self._state, rule_target_of(target))

    def add_api_token(self, token: ApiToken) -> None:
        with self._state.lock:
            api_tokens.add(self._state, check_token(token))

    def withdraw_api_token(self, token_id: UUID | str) -> bool:
        with self._state.lock:
            return api_tokens.withdraw(self._state, check_token_id(token_id))

    def list_api_tokens(self) -> list[ApiToken]:
        with self._state.lock:
            return api_tokens.listed(self._state)

    def place_pool(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
        request = place_request(pool_name, ledger, instead_of)
        with self._state.lock:
            return places.place_pool(self._state, request)

    def list_places(self, pool_names: Collection[str] | None = None) -> list[PoolPlace]:
        named = check_places(pool_names)
        with self._state.lock:
            return places.list_places(self._state, named)

    def record_action(
        self, action: str, subject: str, reason: str, *, pool_id: UUID | None = None
    ) -> None:
        taken = check_action(action, subject, reason)
        with self._state.lock:
            self._state.append(ActionTaken, pool_id=pool_id or NIL, **taken)

    def carry_out_move(self, order: MoveOrder) -> Any:
        with self._state.lock:
            return moving.carry_out(self._state, order)

    def list_pool_moves(self, pool_name: str | None = None) -> list[PoolMove]:
        if pool_name is not None:
            check_name(pool_name, "pool")
        with self._state.lock:
            return moves.moves(self._state, pool_name)

    def list_target_rules(self) -> list[KnownTargetRules]:
        with self._state.lock:
            return target_rules.list_rules(self._state)

    def save_source(self, source: ProxySource) -> bool:
        with self._state.lock:
            return sources.save(self._state, check_source(source))

    def get_source(self, name: str) -> ProxySource:
        with self._state.lock:
            return sources.get(self._state, check_name(name, "source"))

    def remove_source(self, name: str) -> bool:
        with self._state.lock:
            return sources.remove(self._state, check_name(name, "source"))

    def list_sources(self, pool_name: str | None = None) -> list[SourceStatus]:
        if pool_name is not None:
            check_name(pool_name, "pool")
        with self._state.lock:
            return sources.listed(self._state, pool_name)

    def claim_source(
        self, name: str, *, for_seconds: float = HELD_S, only_due: bool = False
    ) -> SourceClaim | None:
        check_name(name, "source")
        with self._state.lock:
            return sources.claim(self._state, name, for_seconds, only_due=only_due)

    def sync_source(
        self,
        claim: SourceClaim,
        listed: Sequence[Proxy],
        *,
        keeps_unlisted: bool = False,
        dry_run: bool = False,
    ) -> SyncReport:
        self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        steps = sync_source(
            self, self, _ask, claim, listed, keeps_unlisted=keeps_unlisted, dry_run=dry_run
        )
        return run(steps, call)

    def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> bool:
        with self._state.lock:
            return sources.finish(self._state, claim, result)

    def owned_page(
        self, pool_id: UUID, source: str, first: UUID
    ) -> tuple[list[tuple[UUID, bool]], UUID | None]:
        """Return the ids of a source's proxies, each with whether it drains, as one page."""
        with self._state.lock:
            return sources.owned(self._state, pool_id, source), None

    def hold_source(self, claim: SourceClaim, for_seconds: float) -> bool:
        """Extend a claim. Return False if it was lost."""
        with self._state.lock:
            return sources.hold(self._state, claim, for_seconds)

    def usage(
        self,
        by: Sequence[str] = ("pool",),
        *,
        pool_name: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1000,
    ) -> list[Usage]:
        wish = usage_wish(by, pool_name, since, until, limit)
        with self._state.lock:
            return usage.usage(self._state, wish)

    def list_sessions(
        self,
        pool_name: str | None = None,
        *,
        after: StickySession | None = None,
        limit: int = 1000,
    ) -> list[StickySession]:
        page = session_page(pool_name, after, limit)
        with self._state.lock:
            return sessions.list_sessions(self._state, page)

    def forget_session(self, pool_name: str, key: str) -> UUID | None:
        check_session(pool_name, key)
        with self._freeing():
            return sessions.forget(self._state, pool_name, key)

    def inherit_session(self, pool_name: str, old: str, new: str) -> None:
        check_heirs(pool_name, old, new)
        with self._freeing():
            sessions.inherit(self._state, pool_name, old, new)

    def begin_rotation(self, proxy_id: UUID, within_seconds: float | None = None) -> None:
        uuid, within = id_from_text(proxy_id) or NIL, check_within(within_seconds)
        with self._state.lock:
            rotations.begin(self._state, uuid, within)

    def claim_rotations(
        self, proxy_ids: Collection[UUID] | None = None, *, seconds: float = 35.0, most: int = 10
    ) -> RotationClaims:
        check_claim(seconds, most)
        with self._state.lock:
            return rotations.claim(self._state, proxy_ids, seconds, most)

    def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> bool:
        check_rotation(due, answer)
        with self._freeing():
            is_recorded = rotations.answer(self._state, due, answer)
            if is_recorded and answer.is_rotated:
                outcomes.end_cool_downs(self._state, due.proxy_id)
            return is_recorded

    def rotate_exit(self, lease_id: UUID) -> GatewayExit:
        wanted = lease_id_of(lease_id)
        with self._state.lock:
            return exits.rotate(self._state, wanted)

    def revoke_leases(self, request: RevokeRequest) -> Sequence[EndedLease | PharoxError]:
        with self._freeing():
            outcomes = release.revoke(self._state, request)
            registry.remove_drained(self._state)
            return outcomes

    def seconds_to_next_expiry(self, pool_name: str | None = None) -> float | None:
        if pool_name is not None:
            check_name(pool_name, "pool")
        with self._state.lock:
            known = self._state.pool_ids
            names = known if pool_name is None else known.keys() & {pool_name}
            pools = [self._state.pools[known[name]] for name in names]
            expiries = [end for each in pools for end in (each.next_expiry(), each.next_ban_over())]
            now = self._state.clock()
        expiry = min((each for each in expiries if each is not None), default=None)
        return None if expiry is None else max(0.0, (expiry - now).total_seconds())

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        with self._freeing():
            pool_ids, now = sorted(self._state.pools), self._state.clock()
            expired: list[EndedLease] = []
            renewal.redate_leases(self._state, now)
            for pool_id in pool_ids:
                registry.end_bans(self._state, [pool_id], now)
                by_pool = release.expire(self._state, [pool_id], now, with_stats=with_stats)
                expired += by_pool.get(pool_id, ())
                registry.remove_drained(self._state)
                batch.serve_queues(self._state, [pool_id], now)
        return len(expired), expired

    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        with self._state.lock:
            try:
                return acquire.create_lease(self._state, proxy, consumer_name, duration_seconds)
            finally:
                registry.remove_drained(self._state)

    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        with self._state.lock:
            return acquire.find_available(self._state, pool_name, filters, selector)

    def release_lease(self, lease: Lease) -> None:
        self.return_lease(lease)

    def cleanup_expired_leases(self) -> int:
        return self.expire_leases()[0]

    def get_lease(self, lease_id: str) -> Lease | None:
        uuid = id_from_text(lease_id)
        with self._state.lock:
            return self._state.lease(uuid) if uuid in self._state.pool_of_lease else None

    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        uuid = None if consumer_id is None else id_from_text(consumer_id)
        with self._state.lock:
            return history.leases_of(self._state, uuid, of_all=consumer_id is None)

    def list_held_leases(
        self,
        pool_name: str | None = None,
        *,
        consumer_name: str | None = None,
        after: Lease | None = None,
        limit: int = 1000,
    ) -> list[HeldLease]:
        page = held_page(pool_name, consumer_name, after, limit)
        with self._state.lock:
            return history.held_leases(self._state, page)

    def prune_leases(self, ended_before: datetime) -> int:
        """Delete leases that ended before a given time. The log keeps their events.

        Leases that ended in the last minute are always kept, as in PostgreSQL.
        """
        with self._state.lock:
            return history.prune_leases(self._state, ended_before)

    # Consumers, pools and proxies

    def ensure_consumer(self, consumer_name: str) -> UUID:
        check_name(consumer_name, "consumer")
        with self._state.lock:
            return registry.consumer_id(self._state, consumer_name)

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with its existing id if the name is registered."""
        check_kind(consumer, Consumer)
        with self._state.lock:
            uuid = registry.consumer_id(self._state, consumer.name, consumer.id)
        return Consumer(id=uuid, name=consumer.name)

    def save_pool(self, pool: ProxyPool) -> None:
        with self._freeing():
            registry.save_pool(self._state, pool)

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one with this id."""
        self.save_pool(pool)

    def get_pool(self, pool_id: str) -> ProxyPool:
        with self._state.lock:
            return registry.pool_of_id(self._state, pool_id)

    def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool with this name, or None."""
        with self._state.lock:
            return registry.pool_by_name(self._state, name)

    def list_pools(self) -> Sequence[ProxyPool]:
        with self._state.lock:
            return registry.pools_by_name(self._state)

    def delete_pool(self, pool_id: str) -> None:
        with self._state.lock:
            registry.delete_pool(self._state, pool_id)

    def save_proxy(self, proxy: Proxy) -> None:
        with self._freeing():
            registry.save_proxies(self._state, [proxy], change=True)

    def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy, except its status, which somebody else may be changing."""
        with self._freeing():
            registry.change_proxy(self._state, proxy)

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one with this id."""
        self.save_proxy(proxy)

    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        with self._freeing():
            return registry.save_proxies(self._state, proxies, change=False)

    def get_proxy(self, proxy_id: str) -> Proxy:
        with self._state.lock:
            return registry.proxy_of_id(self._state, proxy_id)

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        with self._state.lock:
            return registry.proxy_if_known(self._state, proxy_id)

    def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without its credentials, or None."""
        proxy = self.get_proxy_by_id(proxy_id)
        return proxy and proxy.model_copy(update={"credentials": None})

    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        with self._state.lock:
            return registry.proxies_of(self._state, pool_id)

    def delete_proxy(self, proxy_id: str) -> None:
        with self._state.lock:
            registry.delete_proxy(self._state, proxy_id)

    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        check_name(pool_name, "pool")
        with self._state.lock:
            pool_id = self._state.pool_ids.get(pool_name)
            return None if pool_id is None else self._state.stats(pool_id)

    def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return the statistics of every pool, ordered by name."""
        with self._state.lock:
            ids = self._state.pool_ids
            return [self._state.stats(ids[name]) for name in sorted(ids)]

    def queue_stats(self, pool_name: str | None = None) -> list[QueueStats]:
        with self._state.lock:
            ids, now = self._state.pool_ids, self._state.clock()
            names = sorted(ids) if pool_name is None else [check_name(pool_name, "pool")]
            queues = [(name, self._state.queues.of(ids[name])) for name in names if name in ids]
            return [queue.stats(name, now) for name, queue in queues if queue is not None]

    # Lists

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that are new to the pool, and return how many.

        A proxy is known if the pool has its protocol, host and port with the same credentials.
        """
        return self.import_list(pool_id, [[checked_model(proxy, Proxy) for proxy in proxies]]).new

    def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list of any length, batch by batch."""
        return run(import_list(self, _ask, pool_id, batches, update=update, make=make), call)

    def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove a source's proxies that are no longer in its list and are not leased."""
        self.cleanup_expired_leases()  # An expired lease must not keep a proxy.
        return run(remove_unlisted(self, _ask, pool_id, listed, source, max_removed), call)

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
        """Return a match for each proxy of a list."""
        with self._state.lock:
            return lists.match_listed(self._state, pool_id, proxies)

    def ensure_pool(self, pool: ProxyPool) -> UUID:
        """Register a pool and return its id, or the id of the pool with the same name."""
        with self._state.lock:
            return registry.ensure_pool(self._state, pool)

    def register_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> tuple[list[UUID], int]:
        """Register proxies of a list with derived ids. Return the ids, and how many are new."""
        with self._freeing():
            return lists.register_listed(self._state, pool_id, proxies)

    def replace_credentials(self, changes: Sequence[ChangedProxy]) -> int:
        """Set the credentials of known proxies from the list. Return how many still exist."""
        with self._state.lock:
            return lists.replace_credentials(self._state, changes)

    def sourced_page(
        self, pool_id: UUID, source: str | None, first: UUID
    ) -> tuple[list[UUID], UUID | None]:
        """Return the ids of a pool's proxies with this source, all in one page."""
        with self._state.lock:
            return lists.of_source(self._state, pool_id, source), None

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> list[UUID]:
        """Remove those of the given proxies that are not leased. Return their ids."""
        with self._state.lock:
            return lists.remove_idle(self._state, pool_id, proxy_ids)

    # Health

    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        with self._freeing():
            return health.apply_result(self._state, result)

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks. Return the outcome of each, in the same order."""
        with self._freeing():
            return health.record_checks(self._state, results, policy)

    def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        *,
        reason: str | None = None,
        for_seconds: float | None = None,
    ) -> Proxy:
        """Set a proxy's status, as a person does. This can also set or lift a ban."""
        with self._freeing():
            return registry.set_status(self._state, proxy_id, status, reason, for_seconds)

    def drain_proxy(self, proxy_id: UUID, *, reason: str | None = None) -> Proxy | None:
        with self._state.lock:
            return registry.drain(self._state, proxy_id, reason)

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        """Yield the proxies that are due for a check, ordered by id within each pool."""
        with self._state.lock:
            pools = registry.pools_by_name(self._state)
            return health.due_for_checks(self._state, pools, pool_name, stale_after, statuses)

    def save_health_record(self, record: ProxyHealthRecord) -> None:
        with self._state.lock:
            health.save_record(self._state, record)

    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        with self._state.lock:
            return health.last_result(self._state, proxy_id)

    def last_checks(self, proxy_ids: Sequence[UUID]) -> dict[UUID, HealthCheckResult]:
        """Return the newest health check of each of some proxies that has one, by its id."""
        with self._state.lock:
            found = ((each, health.last_result(self._state, each)) for each in proxy_ids)
            return {proxy_id: result for proxy_id, result in found if result is not None}

    def lease_ids(self, beginning: str, *, limit: int = 10) -> list[UUID]:
        """Return the ids of leases in the log that begin so, the first ones in their order.

        Parameters and errors are those of the storage in PostgreSQL.
        """
        with self._state.lock:
            return history.lease_ids(self._state, id_span(beginning), limit)

    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        with self._state.lock:
            return health.records_of(self._state, proxy_id, limit)

    # The log

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Yield the events in the log, in order.

        Parameters
        ----------
        after:
            Yield only events of later ``seq``.
        """
        return self.history(Extract(after=after))

    def history(self, extract: Extract) -> Iterator[Event]:
        """Yield the events in the log that match an extract, in order."""
        return history.history(self._state, extract)

    def seq_at(self, moment: datetime) -> int:
        """Return the seq of the last event recorded at or before a moment; 0 if there is none."""
        with self._state.lock:
            return history.seq_at(self._state, moment)

    def tree_size(self) -> int:
        """Return how many events the log's Merkle tree covers: all of them."""
        with self._state.lock:
            return len(self._state.log)

    def tree_head(self, size: int | None = None) -> TreeHead:
        """Return the head of the Merkle tree over the first ``size`` events, or all.

        Raises
        ------
        InvalidInputError
            If the log has fewer events.
        """
        with self._state.lock:
            return history.tree_head(self._state, size)

    def prove_inclusion(self, seq: int, size: int | None = None) -> Inclusion:
        """Return the proof that an event is among the first ``size`` events, or all.

        Raises
        ------
        InvalidInputError
            If there is no such event, or the log has fewer events than ``size``.
        """
        with self._state.lock:
            return history.prove_inclusion(self._state, seq, size)

    def prove_consistency(self, old: int, size: int | None = None) -> tuple[bytes, ...]:
        """Return the proof that the tree over ``size`` events, or all, continues that over ``old``.

        Returns
        -------
        tuple
            Hashes for :func:`pharox.proof.proves_consistency`.

        Raises
        ------
        InvalidInputError
            If the log has fewer events.
        """
        with self._state.lock:
            return history.prove_consistency(self._state, old, size)

    def state_at(self, seq: int) -> dict[str, Rows]:
        """Return all read models as they were after the event with this seq.

        Returns
        -------
        dict
            The rows by key, for each projection's name. Only leases that were active
            then are included.
        """
        states = projections.fold(self.history(Extract(upto=seq)), projections.registered())
        return projections.current(states, projections.registered())

    def verify(self, *, heads: Collection[TreeHead] = ()) -> list[Finding]:
        """Fold the whole log again and return every row of a read model that differs.

        Parameters
        ----------
        heads:
            Heads of the log's tree that were signed earlier; the log is compared with each.
        """
        with self._state.lock:
            return [*history.verify_heads(self._state, heads), *history.verify(self._state)]

    # Internals

    def _acquire(self, request: AcquireRequest | AcquireSetRequest) -> Any:
        if request.wait_seconds:
            return run(in_turn.acquire(self._state, request, result_within), call)
        return self._run_alone(request)

    def _freeing(self) -> AbstractContextManager[None]:
        """Hold the lock for a block that may make proxies free, and then serve who waits."""
        return in_turn.freeing(self._state)

    def _run_alone(self, command: Command) -> Any:
        """Carry out one command. Return its outcome or raise its error."""
        with self._state.lock:
            (outcome,) = batch.carry_out(self._state, [command])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def _ask(step: Callable[..., T], *arguments: Any) -> T:
    return step(*arguments)
