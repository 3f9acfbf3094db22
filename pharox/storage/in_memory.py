"""InMemoryStorage: the same ledger without a server, for one process.

The log is a list, the read models are the projections' Python folds, kept up
with each event. Beside them stand the indexes that PostgreSQL would have (each
selector's order, what runs out next), so that no acquisition, release or
expiry walks the pool or the history; :mod:`pharox.storage.pool_index` has them.
Nothing survives the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, TypeVar
from uuid import UUID, uuid4

import projections
from pharox.log import Extract
from projections import Availability, Finding, LeaseRow, PoolCounts, ProxyRow, State

from ..attribution import current_attribution
from ..effects import call, run
from ..errors import ConflictError, PoolNotFoundError, ProxyNotFoundError, ProxyUnavailableError
from ..events import (
    AcquireMissed,
    ConsumerRegistered,
    CursorMoved,
    Event,
    EventBase,
    HealthChecked,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    LeasesPruned,
    PoolChanged,
    PoolRegistered,
    PoolRemoved,
    ProxyChanged,
    ProxyRegistered,
    ProxyRemoved,
    ProxyState,
)
from ..ids import NIL, derived_id, imported_proxy_id, uuid7
from ..models import (
    LEASABLE,
    Consumer,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyCredentials,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    check_aware,
    check_duration,
    check_filters,
    check_name,
    check_whole,
    utc_now,
)
from .health_rules import Observation, in_rounds, judge
from .interface import IStorage
from .list_import import (
    HALF,
    Account,
    ChangedProxy,
    ImportReport,
    ListedIds,
    Match,
    MaxRemoved,
    RemovalReport,
    account_of,
    import_list,
    password_of,
    remove_unlisted,
)
from .pool_index import PoolIndex
from .requests import (
    AcquireRequest,
    Acquisition,
    EndedLease,
    HealthOutcome,
    ReleaseResult,
    copy_ending,
    log_late_release,
    record_of_check,
    redated,
    result_of_record,
)
from .validation import (
    check_age,
    check_granted,
    check_one_pool_each,
    check_reason,
    check_status,
    check_statuses,
    checked_model,
    granted_and_ended,
    id_from_text,
    pool_named,
)

E_ = TypeVar("E_", bound=EventBase)
T = TypeVar("T")

_HANDLERS: dict[str, tuple[projections.Projection, ...]] = {}
"""The projections that an event of a type concerns."""
for _projection in projections.registered():
    for _type in _projection.types():
        _HANDLERS[_type] = (*_HANDLERS.get(_type, ()), _projection)


_DESCRIBED = frozenset(ProxyRegistered.model_fields)


class InMemoryStorage(IStorage):
    """The ledger in this process's memory, safe between threads.

    Parameters
    ----------
    clock:
        Returns the time, with a time zone. A test passes its own to let leases
        run out without waiting.
    """

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._log: list[Event] = []
        self._states: dict[str, dict[Any, Any]] = {p.name: {} for p in projections.registered()}
        self._pools: dict[UUID, PoolIndex] = {}
        self._pool_ids: dict[str, UUID] = {}
        self._pool_of_proxy: dict[UUID, UUID] = {}
        self._pool_of_lease: dict[UUID, UUID] = {}
        self._pruned_ids: set[UUID] = set()
        self._consumer_ids: set[UUID] = set()
        self._credentials: dict[UUID, ProxyCredentials] = {}
        self._accounts: dict[tuple[UUID, Account], dict[str, set[UUID]]] = {}
        self._fingerprint_key = os.urandom(32)
        self._checks: dict[UUID, list[HealthChecked]] = {}

    # Leasing

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Lease a proxy, or record why none was to be had."""
        check_duration(request.duration_seconds)
        check_name(request.pool_name, "pool")
        check_name(request.consumer_name, "consumer")
        with self._lock:
            if (granted := self._granted_before(request)) is not None:
                return granted
            consumer_id = self.ensure_consumer(request.consumer_name)
            pool_id = self._pool_ids.get(request.pool_name)
            if pool_id is None:
                return self._miss(request, None, MissReason.UNKNOWN_POOL, ())
            expired = self._expire(pool_id, with_stats=request.with_stats)
            pool = self._pools[pool_id]
            proxy_id = self._choose(pool, request.selector, request.filters)
            if proxy_id is None:
                reason = self._reason(pool, request.filters)
                return self._miss(request, pool_id, reason, expired)
            event = self._grant(
                pool_id,
                proxy_id,
                request.consumer_name,
                consumer_id,
                request.duration_seconds,
                lease_id=request.lease_id or uuid7(),
                selector=request.selector,
                filters=request.filters and request.filters.recorded(),
                predicate=bool(request.filters and request.filters.requires_python()),
            )
            stats = self._stats(pool_id, event) if request.with_stats else None
            return Acquisition(self._lease(event.lease_id), None, stats, expired)

    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        check_duration(duration_seconds)
        check_name(consumer_name, "consumer")
        with self._lock:
            pool_id = self._pool_of_proxy.get(proxy.id)
            if pool_id is None:
                raise ProxyNotFoundError(f"Proxy {proxy.id} not found.", proxy_id=proxy.id)
            consumer_id = self.ensure_consumer(consumer_name)
            self._expire(pool_id)
            pool = self._pools[pool_id]
            if not pool.is_leasable(proxy.id):
                raise self._unavailable(pool, proxy.id)
            event = self._grant(
                pool_id, proxy.id, consumer_name, consumer_id, duration_seconds, lease_id=uuid7()
            )
            return self._lease(event.lease_id)

    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        check_name(pool_name, "pool")
        check_filters(filters)
        strategy = SelectorStrategy(selector or SelectorStrategy.FIRST_AVAILABLE)
        with self._lock:
            pool_id = self._pool_ids.get(pool_name)
            if pool_id is None:
                return None
            proxy_id = self._choose(self._pools[pool_id], strategy, filters)
            if proxy_id is None:
                return None
            if strategy is SelectorStrategy.ROUND_ROBIN:
                self._append(CursorMoved, pool_id=pool_id, proxy_id=proxy_id)
            return self._proxy(proxy_id)

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> ReleaseResult:
        check_reason(reason)
        with self._lock:
            pool_id = self._pool_of_lease.get(lease.id)
            expired: list[EndedLease] = []
            row = None if pool_id is None else self._lease_row(lease.id)
            if row is not None and pool_id is not None and row.status == "active":
                if row.expires_at > self._clock():
                    event = self._end(LeaseReleased, row, reason=reason)
                    lease.status, lease.released_at = LeaseStatus.RELEASED, event.recorded_at
                    stats = self._stats(pool_id, event) if with_stats else None
                    return ReleaseResult(EndedLease(lease, stats, reason))
                expired = self._expire(pool_id, with_stats=with_stats)
            recorded = None if row is None else self._lease(lease.id)
        log_late_release(lease, recorded)
        copy_ending(recorded, lease)
        return ReleaseResult(None, expired)

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[EndedLease]]:
        with self._lock:
            expired: list[EndedLease] = []
            for pool_id in sorted(self._pools):
                expired += self._expire(pool_id, with_stats=with_stats)
            return len(expired), expired

    def release_lease(self, lease: Lease) -> None:
        self.return_lease(lease)

    def cleanup_expired_leases(self) -> int:
        return self.expire_leases()[0]

    def get_lease(self, lease_id: str) -> Lease | None:
        uuid = id_from_text(lease_id)
        with self._lock:
            return self._lease(uuid) if uuid in self._pool_of_lease else None

    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        uuid = None if consumer_id is None else id_from_text(consumer_id)
        with self._lock:
            rows: list[LeaseRow] = list(self._states["leases"].values())
        wanted = (row for row in rows if consumer_id is None or row.consumer_id == uuid)
        return [_lease_from_row(row) for row in sorted(wanted, key=lambda row: row.fencing_token)]

    def prune_leases(self, ended_before: datetime) -> int:
        """Forget the leases that ended before a moment; the log keeps them.

        What ended in the last minute stays in any case, as in PostgreSQL.
        """
        check_aware(ended_before)
        with self._lock:
            settled = min(ended_before, self._clock() - timedelta(minutes=1))
            leases: dict[Any, LeaseRow] = self._states["leases"]
            ended = [
                row
                for row in leases.values()
                if row.released_at is not None and row.released_at < settled
            ]
            for pool_id in sorted({row.pool_id for row in ended}):
                self._append(LeasesPruned, pool_id=pool_id, ended_before=settled)
            gone = [row.id for row in ended if (row.id, row.pool_id) not in leases]
            for lease_id in gone:
                del self._pool_of_lease[lease_id]
            self._pruned_ids.update(gone)
            return len(gone)

    # Consumers, pools and proxies

    def ensure_consumer(self, consumer_name: str) -> UUID:
        check_name(consumer_name, "consumer")
        return self._consumer_id(consumer_name, None)

    def add_consumer(self, consumer: Consumer) -> Consumer:
        """Register a consumer and return it, with the id it has if its name was known."""
        return Consumer(id=self._consumer_id(consumer.name, consumer.id), name=consumer.name)

    def save_pool(self, pool: ProxyPool) -> None:
        pool = checked_model(pool)
        with self._lock:
            if self._pool_ids.get(pool.name, pool.id) != pool.id:
                raise ConflictError(f"another pool is named {pool.name!r}", name=pool.name)
            known = self._states["pools"].get((pool.id,))
            facts = pool.model_dump(exclude={"id"})
            if known is None:
                self._pools[pool.id] = PoolIndex(pool.id)
                self._append(PoolRegistered, pool_id=pool.id, **facts)
            elif asdict(known) != pool.model_dump():
                del self._pool_ids[known.name]
                self._append(PoolChanged, pool_id=pool.id, **facts)
            self._pool_ids[pool.name] = pool.id
            self._pools[pool.id].lease_slow = pool.lease_slow

    def add_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one of this id."""
        self.save_pool(pool)

    def get_pool(self, pool_id: str) -> ProxyPool:
        with self._lock:
            row = self._states["pools"].get((id_from_text(pool_id),))
            if row is None:
                raise PoolNotFoundError(f"Pool {pool_id!r} not found.", pool_id=pool_id)
            return ProxyPool(**asdict(row))

    def get_pool_by_name(self, name: str) -> ProxyPool | None:
        """Return the pool of this name, or None."""
        check_name(name, "pool")
        with self._lock:
            pool_id = self._pool_ids.get(name)
            return None if pool_id is None else self.get_pool(str(pool_id))

    def list_pools(self) -> Sequence[ProxyPool]:
        with self._lock:
            pools = [ProxyPool(**asdict(row)) for row in self._states["pools"].values()]
        return sorted(pools, key=lambda pool: pool.name)

    def delete_pool(self, pool_id: str) -> None:
        with self._lock:
            pool = self.get_pool(pool_id)
            proxy_ids = sorted(self._pools[pool.id].members)
            for proxy_id in proxy_ids:
                self._release_held(pool.id, proxy_id, "pool removed")
            for proxy_id in proxy_ids:
                self._remove(pool.id, proxy_id)
            self._append(PoolRemoved, pool_id=pool.id, name=pool.name)
            del self._pools[pool.id], self._pool_ids[pool.name]

    def save_proxy(self, proxy: Proxy) -> None:
        self._save_proxies([proxy], change=True)

    def change_proxy(self, proxy: Proxy) -> None:
        """Change a known proxy but for its status, which somebody else may decide meanwhile."""
        with self._lock:
            now = self.get_proxy(str(proxy.id))
            own = {"status": now.status, "checked_at": now.checked_at}
            self._save_proxies([proxy.model_copy(update=own)], change=True)

    def add_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one of this id."""
        self.save_proxy(proxy)

    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        return self._save_proxies(proxies, change=False)

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> int:
        """Register the proxies of a list that the pool does not know, and return how many.

        One is known if the pool has its protocol, host and port with the same credentials.
        """
        return self.import_list(pool_id, [[checked_model(proxy) for proxy in proxies]]).new

    def import_list(
        self,
        pool_id: UUID,
        batches: Iterable[Sequence[Proxy]],
        *,
        update: bool = False,
        make: ProxyPool | None = None,
    ) -> ImportReport:
        """Import a list that comes in batches, however long it is."""
        return run(import_list(self, _ask, pool_id, batches, update=update, make=make), call)

    def remove_unlisted(
        self,
        pool_id: UUID,
        listed: ListedIds,
        *,
        source: str | None,
        max_removed: MaxRemoved = HALF,
    ) -> RemovalReport:
        """Remove the proxies of a source that its list has no more, unless somebody holds them."""
        self.cleanup_expired_leases()  # Who has let go of a proxy does not hold it.
        return run(remove_unlisted(self, _ask, pool_id, listed, source, max_removed), call)

    def match_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> list[Match]:
        """Return how each proxy of a list stands to a pool."""
        with self._lock:
            pool = self.get_pool(str(pool_id))
            return [self._match(pool.id, proxy) for proxy in proxies]

    def ensure_pool(self, pool: ProxyPool) -> UUID:
        """Register a pool and return its id, or that of the one that has its name."""
        with self._lock:
            known = self.get_pool_by_name(pool.name)
            if known is None:
                self.save_pool(pool)
            return (known or pool).id

    def register_listed(self, pool_id: UUID, proxies: Sequence[Proxy]) -> tuple[list[UUID], int]:
        """Register proxies of a list under derived ids; return the ids, and how many are new."""
        with self._lock:
            ids = [
                self._match(pool_id, proxy).known or self._unused_id(pool_id, proxy)
                for proxy in proxies
            ]
            named = [
                proxy.model_copy(update={"id": uuid, "pool_id": pool_id})
                for proxy, uuid in zip(proxies, ids, strict=True)
            ]
            return ids, self._save_proxies(named, change=False)

    def replace_credentials(self, changes: Sequence[ChangedProxy]) -> int:
        """Give known proxies the credentials of listed ones; return how many were there."""
        with self._lock:
            known = [each for each in changes if each.proxy_id in self._pool_of_proxy]
            for proxy_id, listed in known:
                update = {"credentials": listed.credentials}
                self._save_proxies([self._proxy(proxy_id).model_copy(update=update)], change=True)
            return len(known)

    def sourced_page(
        self, pool_id: UUID, source: str | None, first: UUID
    ) -> tuple[list[UUID], UUID | None]:
        """Return the ids of a pool's proxies with this source, all on one page."""
        with self._lock:
            members = sorted(self._pools[pool_id].members) if pool_id in self._pools else []
            return [each for each in members if self._row(each).source == source], None

    def remove_idle(self, pool_id: UUID, proxy_ids: Sequence[UUID]) -> list[UUID]:
        """Remove those of a pool's proxies that nobody holds; return their ids."""
        with self._lock:
            members = self._pools[pool_id].members if pool_id in self._pools else ()
            idle = [
                proxy_id
                for proxy_id in sorted(proxy_ids)
                if proxy_id in members and not self._standing(pool_id, proxy_id).leases
            ]
            for proxy_id in idle:
                self._remove(pool_id, proxy_id)
            return idle

    def get_proxy(self, proxy_id: str) -> Proxy:
        uuid = id_from_text(proxy_id)
        proxy = None if uuid is None else self.get_proxy_by_id(uuid)
        if proxy is None:
            raise ProxyNotFoundError(f"Proxy {proxy_id!r} not found.", proxy_id=proxy_id)
        return proxy

    def get_proxy_by_id(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy, or None."""
        with self._lock:
            uuid = id_from_text(proxy_id)
            return self._proxy(uuid) if uuid in self._pool_of_proxy else None

    def get_bare_proxy(self, proxy_id: UUID) -> Proxy | None:
        """Return a proxy without its credentials, or None."""
        proxy = self.get_proxy_by_id(proxy_id)
        return proxy and proxy.model_copy(update={"credentials": None})

    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        with self._lock:
            pool = self.get_pool(pool_id)
            return [self._proxy(proxy_id) for proxy_id in sorted(self._pools[pool.id].members)]

    def delete_proxy(self, proxy_id: str) -> None:
        with self._lock:
            proxy = self.get_proxy(proxy_id)
            self._release_held(proxy.pool_id, proxy.id, "proxy removed")
            self._remove(proxy.pool_id, proxy.id)

    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        check_name(pool_name, "pool")
        with self._lock:
            pool_id = self._pool_ids.get(pool_name)
            return None if pool_id is None else self._stats(pool_id)

    def list_pool_stats(self) -> Sequence[PoolStatsSnapshot]:
        """Return every pool in numbers, by name."""
        with self._lock:
            return [self._stats(self._pool_ids[name]) for name in sorted(self._pool_ids)]

    # Health

    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        with self._lock:
            (outcome,) = self.record_health_checks([result])
            return self._proxy(result.proxy_id) if outcome.known else None

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks; return what each came to, in their order."""
        seen = [Observation(result, result.healthy) for result in map(checked_model, results)]
        outcomes = [HealthOutcome(check.result, known=False) for check in seen]
        with self._lock:
            for _, places in in_rounds(seen, self._pool_of_proxy):
                for place in places:
                    outcomes[place] = self._record_health(seen[place], policy or HealthPolicy())
        return outcomes

    def set_status(
        self, proxy_id: UUID, status: ProxyStatus, *, reason: str | None = None
    ) -> Proxy:
        """Decide a proxy's status, as a person does: also lift or lay a ban."""
        check_reason(reason)
        with self._lock:
            proxy = self.get_proxy(str(proxy_id))
            wanted = proxy.model_copy(update={"status": check_status(status)})
            self._save_proxy(wanted, change=True, reason=reason)
            return self._proxy(proxy.id)

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        """Yield the proxies that are due to be checked, by id within each pool."""
        age, wanted = check_age(stale_after), check_statuses(statuses)
        with self._lock:
            members = [
                (proxy_id, pool.id)
                for pool in pool_named(pool_name, self.list_pools())
                for proxy_id in sorted(self._pools[pool.id].members)
            ]
        due = (self._if_due(proxy_id, pool_id, age, wanted) for proxy_id, pool_id in members)
        return (proxy for proxy in due if proxy is not None)

    def save_health_record(self, record: ProxyHealthRecord) -> None:
        seen = Observation(result_of_record(record), record.reachable, counts=False)
        with self._lock:
            is_known = record.proxy_id in self._pool_of_proxy
            if is_known:
                self._record_health(seen, HealthPolicy())
        if not is_known:
            raise ProxyNotFoundError(
                f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id
            )

    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        uuid = id_from_text(proxy_id) or NIL
        with self._lock:
            pool_id = self._pool_of_proxy.get(uuid)
            row = self._states["proxy_health"].get((uuid, pool_id))
        if row is None:
            return None
        facts = asdict(row)
        del facts["pool_id"]
        error = facts.pop("error")
        facts["latency_ms"] = row.latency_ms or 0
        return HealthCheckResult(**facts, error_message=error)

    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        check_whole(limit, "limit")
        with self._lock:
            checks = list(self._checks.get(id_from_text(proxy_id) or NIL, ()))
        checks.sort(key=lambda event: (event.checked_at, event.position), reverse=True)
        return [record_of_check(event) for event in checks[: max(limit, 0)]]

    # The log

    def events(self, *, after: int = 0) -> Iterator[Event]:
        """Yield the log in order, as it is now.

        Parameters
        ----------
        after:
            Yield only events of later ``seq``.
        """
        return self.history(Extract(after=after))

    def history(self, extract: Extract) -> Iterator[Event]:
        """Yield those events of the log, as it is now, that an extract means, in order."""
        extract.check()
        with self._lock:
            last = min(extract.upto, len(self._log))
        for place in range(max(extract.after, 0), last):
            if extract.holds(self._log[place]):
                yield self._log[place]

    def seq_at(self, moment: datetime) -> int:
        """Return the seq of the last event recorded at or before a moment; 0 if there is none."""
        check_aware(moment)
        with self._lock:
            earlier = (event for event in self._log if event.recorded_at <= moment)
            last = max(earlier, key=lambda event: (event.recorded_at, event.seq), default=None)
        return 0 if last is None else last.seq

    def state_at(self, seq: int) -> dict[str, State]:
        """Return every read model as it was after the event of this seq.

        Returns
        -------
        dict
            For each projection's name, its rows by key. Of leases only those
            that were active then.
        """
        states = projections.fold(self.history(Extract(upto=seq)), projections.registered())
        return projections.standing(states, projections.registered())

    def verify(self) -> list[Finding]:
        """Fold the whole log anew and return every row of a read model that differs."""
        with self._lock:
            folded = projections.fold(self._log, projections.registered())
            return list(projections.differences(self._states, folded, projections.registered()))

    # Parts

    def _append(self, kind: type[E_], **facts: Any) -> E_:
        actor, correlation_id = current_attribution()
        event = kind(
            seq=len(self._log) + 1,
            position=len(self._log) + 1,
            recorded_at=self._clock(),
            actor=actor,
            correlation_id=correlation_id,
            **facts,
        )
        for projection in _HANDLERS.get(kind.__name__, ()):
            projection.apply(self._states[projection.name], event)
        self._log.append(event)  # type: ignore[arg-type]
        if event.touches_proxy and event.proxy_id is not None:
            standing = self._states["available_proxies"].get((event.proxy_id, event.pool_id))
            self._pools[event.pool_id].place(event.proxy_id, standing)
        return event

    def _choose(
        self, pool: PoolIndex, selector: SelectorStrategy, filters: ProxyFilters | None
    ) -> UUID | None:
        turn: UUID | None = None
        if selector is SelectorStrategy.ROUND_ROBIN:
            turn = self._states["selector_cursors"][pool.pool_id, selector.value].proxy_id
        offered = pool.offered(selector, turn)
        if filters is None:
            return next(offered, None)
        return next((i for i in offered if filters.matches(self._proxy(i))), None)

    def _reason(self, pool: PoolIndex, filters: ProxyFilters | None) -> MissReason:
        if not pool.members:
            return MissReason.EMPTY_POOL
        if filters is None:
            return MissReason.AT_CAPACITY if pool.has_healthy() else MissReason.NONE_HEALTHY
        matching = [i for i in pool.members if filters.matches(self._proxy(i))]
        if not matching:
            return MissReason.NO_MATCH
        healthy = any(pool.is_healthy(proxy_id) for proxy_id in matching)
        return MissReason.AT_CAPACITY if healthy else MissReason.NONE_HEALTHY

    def _granted_before(self, request: AcquireRequest) -> Acquisition | None:
        """Return the lease that has the request's id already, or None if none has."""
        if request.lease_id is None:
            return None
        pool_id = self._pool_of_lease.get(request.lease_id)
        if pool_id is None:
            if request.lease_id in self._pruned_ids:
                raise granted_and_ended(request.lease_id, "pruned")
            return None
        lease = self._lease(request.lease_id)
        check_granted(lease, request)
        if lease.status is not LeaseStatus.ACTIVE or lease.expires_at <= self._clock():
            how = LeaseStatus.EXPIRED if lease.status is LeaseStatus.ACTIVE else lease.status
            raise granted_and_ended(lease.id, how.value)
        stats = self.get_pool_stats(request.pool_name) if request.with_stats else None
        return Acquisition(lease, None, stats, is_new=False)

    def _miss(
        self,
        request: AcquireRequest,
        pool_id: UUID | None,
        reason: MissReason,
        expired: Sequence[EndedLease],
    ) -> Acquisition:
        event = self._append(
            AcquireMissed,
            **({} if pool_id is None else {"pool_id": pool_id}),
            consumer=request.consumer_name,
            pool_name=request.pool_name,
            reason=reason,
            selector=request.selector,
            filters=request.filters and request.filters.recorded(),
            predicate=bool(request.filters and request.filters.requires_python()),
        )
        wanted = request.with_stats and pool_id is not None
        return Acquisition(None, reason, self._stats(pool_id, event) if wanted else None, expired)  # type: ignore[arg-type]

    def _grant(
        self,
        pool_id: UUID,
        proxy_id: UUID,
        consumer: str,
        consumer_id: UUID,
        duration_seconds: float,
        *,
        lease_id: UUID,
        **asked: Any,
    ) -> LeaseAcquired:
        before = self._standing(pool_id, proxy_id)
        event = self._append(
            LeaseAcquired,
            pool_id=pool_id,
            proxy_id=proxy_id,
            lease_id=lease_id,
            consumer=consumer,
            consumer_id=consumer_id,
            pool_name=self._states["pools"][(pool_id,)].name,
            expires_at=self._clock() + timedelta(seconds=duration_seconds),
            before=before,
            after=before.with_leases(before.leases + 1),
            **asked,
        )
        self._pool_of_lease[event.lease_id] = pool_id
        self._pools[pool_id].hold(event.lease_id, proxy_id, event.expires_at)
        return event

    def _end(
        self, kind: type[LeaseReleased] | type[LeaseExpired], row: LeaseRow, **why: Any
    ) -> LeaseReleased | LeaseExpired:
        before = self._standing(row.pool_id, row.proxy_id)
        event = self._append(
            kind,
            pool_id=row.pool_id,
            proxy_id=row.proxy_id,
            lease_id=row.id,
            consumer=row.consumer_name,
            consumer_id=row.consumer_id,
            pool_name=row.pool_name,
            acquired_at=row.acquired_at,
            before=before,
            after=before.with_leases(before.leases - 1),
            **why,
        )
        self._pools[row.pool_id].let_go(row.id, row.proxy_id, row.expires_at)
        return event

    def _expire(self, pool_id: UUID, *, with_stats: bool = False) -> list[EndedLease]:
        due = [self._lease_row(i) for i in self._pools[pool_id].due(self._clock())]
        due.sort(key=lambda row: (row.proxy_id, row.fencing_token))
        events = [self._end(LeaseExpired, row, expires_at=row.expires_at) for row in due]
        if not events:
            return []
        stats = self._stats(pool_id, events[-1]) if with_stats else None
        return [EndedLease(self._lease(event.lease_id), stats) for event in events]

    def _release_held(self, pool_id: UUID, proxy_id: UUID, reason: str) -> None:
        for row in self._held_rows(pool_id, proxy_id):
            self._end(LeaseReleased, row, reason=reason)

    def _held_rows(self, pool_id: UUID, proxy_id: UUID) -> list[LeaseRow]:
        """Return the active leases of a proxy, oldest first."""
        held = [self._lease_row(lease_id) for lease_id in self._pools[pool_id].held(proxy_id)]
        return sorted(held, key=lambda row: row.fencing_token)

    def _remove(self, pool_id: UUID, proxy_id: UUID) -> None:
        before = self._standing(pool_id, proxy_id)
        self._forget_identity(self._proxy(proxy_id))
        self._append(ProxyRemoved, pool_id=pool_id, proxy_id=proxy_id, before=before)
        del self._pool_of_proxy[proxy_id]
        self._credentials.pop(proxy_id, None)

    def _match(self, pool_id: UUID, proxy: Proxy) -> Match:
        by_password = self._accounts.get((pool_id, account_of(proxy)), {})
        if same := by_password.get(password_of(proxy)):
            return Match(min(same))
        return Match(None, tuple(islice(chain.from_iterable(by_password.values()), 2)))

    def _unused_id(self, pool_id: UUID, proxy: Proxy) -> UUID:
        """Return the id that a proxy of a list has every time, unless it was given away."""
        account = account_of(proxy)
        if proxy.credentials is None:
            derived = imported_proxy_id(pool_id, *account[:3])
        else:  # Keyed, as an id is no secret and must not tell one.
            told = "\x00".join(map(str, (pool_id, *account, password_of(proxy))))
            digest = blake2b(told.encode(), digest_size=16, key=self._fingerprint_key)
            derived = derived_id(digest.digest())
        return uuid4() if derived in self._pool_of_proxy else derived

    def _remember_identity(self, proxy: Proxy) -> None:
        by_password = self._accounts.setdefault((proxy.pool_id, account_of(proxy)), {})
        by_password.setdefault(password_of(proxy), set()).add(proxy.id)

    def _forget_identity(self, proxy: Proxy) -> None:
        account, password = (proxy.pool_id, account_of(proxy)), password_of(proxy)
        by_password = self._accounts[account]
        by_password[password].discard(proxy.id)
        if not by_password[password]:
            del by_password[password]
        if not by_password:
            del self._accounts[account]

    def _consumer_id(self, name: str, wanted: UUID | None) -> UUID:
        with self._lock:
            row = self._states["consumers"].get((name,))
            if row is not None:
                return row.id  # type: ignore[no-any-return]
            if wanted in self._consumer_ids:
                raise ConflictError(f"consumer id {wanted} belongs to another name", name=name)
            uuid = wanted or uuid4()
            self._append(ConsumerRegistered, consumer=name, consumer_id=uuid)
            self._consumer_ids.add(uuid)
            return uuid

    def _save_proxies(self, proxies: Sequence[Proxy], *, change: bool) -> int:
        proxies = [checked_model(proxy) for proxy in proxies]
        with self._lock:
            for proxy in check_one_pool_each(proxies):
                if proxy.pool_id not in self._pools:
                    raise PoolNotFoundError(
                        f"Pool {proxy.pool_id} not found.", pool_id=proxy.pool_id
                    )
                elsewhere = self._pool_of_proxy.get(proxy.id, proxy.pool_id)
                if elsewhere != proxy.pool_id:
                    raise ConflictError(
                        f"proxy {proxy.id} is registered in another pool; remove it there first",
                        proxy_id=proxy.id,
                        pool_id=elsewhere,
                    )
            last_given = {proxy.id: proxy for proxy in proxies}
            return sum(self._save_proxy(proxy, change=change) for proxy in last_given.values())

    def _save_proxy(self, proxy: Proxy, *, change: bool, reason: str | None = None) -> bool:
        """Register or change one proxy; return whether it is new."""
        is_new = proxy.id not in self._pool_of_proxy
        if not is_new and (not change or _same(proxy, self._proxy(proxy.id))):
            return False
        facts: dict[str, Any] = {
            name: value
            for name, value in proxy.model_dump(exclude={"id", "pool_id", "credentials"}).items()
            if name in _DESCRIBED
        }
        facts["host"] = str(proxy.host)
        if reason is not None:
            facts["reason"] = reason
        earlier = None if is_new else self._proxy(proxy.id)
        if earlier is not None:
            self._forget_identity(earlier)
        self._remember_identity(proxy)
        if proxy.credentials is not None:
            known = None if is_new else self._row(proxy.id).credential_id
            same = earlier is not None and _has_identity_of(proxy, earlier)
            facts["credential_id"] = known if known and same else uuid4()
            self._credentials[proxy.id] = proxy.credentials.model_copy()
        else:
            self._credentials.pop(proxy.id, None)
        self._pool_of_proxy[proxy.id] = proxy.pool_id
        before = None if is_new else self._standing(proxy.pool_id, proxy.id)
        after = ProxyState(
            status=proxy.status,
            leases=before.leases if before else 0,
            max_concurrency=proxy.max_concurrency,
        )
        self._append(
            ProxyRegistered if is_new else ProxyChanged,
            pool_id=proxy.pool_id,
            proxy_id=proxy.id,
            before=before,
            after=after,
            **facts,
        )
        return is_new

    def _if_due(
        self,
        proxy_id: UUID,
        pool_id: UUID,
        age: timedelta | None,
        statuses: Collection[ProxyStatus],
    ) -> Proxy | None:
        with self._lock:
            row: Availability | None = self._states["available_proxies"].get((proxy_id, pool_id))
            if row is None or row.status not in statuses:
                return None
            if age is not None and row.probed_at and row.probed_at > self._clock() - age:
                return None
            return self._proxy(proxy_id)

    def _record_health(self, seen: Observation, policy: HealthPolicy) -> HealthOutcome:
        result = seen.result
        pool_id = self._pool_of_proxy[result.proxy_id]
        row: Availability = self._states["available_proxies"][result.proxy_id, pool_id]
        result = redated(result, min(result.checked_at, self._clock()))
        judgement = judge(row, seen, result.checked_at, policy)
        before = self._standing(pool_id, result.proxy_id)
        dropped = before.status in LEASABLE and judgement.status not in LEASABLE
        held = self._held_rows(pool_id, result.proxy_id) if dropped else ()
        event = self._append(
            HealthChecked,
            pool_id=pool_id,
            proxy_id=result.proxy_id,
            before=before,
            after=replace(before, status=judgement.status),
            applied=judgement.applied,
            status=result.status,
            reachable=seen.reachable,
            latency_ms=result.latency_ms,
            mean_latency_ms=judgement.mean_latency_ms,
            protocol=result.protocol,
            attempts=result.attempts,
            status_code=result.status_code,
            checked_at=result.checked_at,
            error=result.error_message,
            failure=result.failure,
            streak=judgement.streak,
            lease_ids=tuple(lease.id for lease in held),
            source=self._proxy(result.proxy_id).source,
        )
        self._checks.setdefault(result.proxy_id, []).append(event)
        return HealthOutcome(
            result,
            applied=event.applied,
            status_before=before.status,
            status_after=judgement.status,
            pool_name=self._states["pools"][(pool_id,)].name,
            leases=before.leases,
            lease_ids=event.lease_ids,
            source=event.source,
        )

    def _unavailable(self, pool: PoolIndex, proxy_id: UUID) -> ProxyUnavailableError:
        holders = sorted(self._lease_row(i).consumer_name for i in pool.held(proxy_id))
        status = self._standing(self._pool_of_proxy[proxy_id], proxy_id).status
        return ProxyUnavailableError.because(proxy_id, status, holders)

    def _row(self, proxy_id: UUID) -> ProxyRow:
        row: ProxyRow = self._states["proxies"][proxy_id, self._pool_of_proxy[proxy_id]]
        return row

    def _standing(self, pool_id: UUID, proxy_id: UUID) -> ProxyState:
        row: Availability = self._states["available_proxies"][proxy_id, pool_id]
        return ProxyState(ProxyStatus(row.status), row.current_leases, row.max_concurrency)

    def _proxy(self, proxy_id: UUID) -> Proxy:
        row = self._row(proxy_id)
        standing: Availability = self._states["available_proxies"][proxy_id, row.pool_id]
        described = {f.name: getattr(row, f.name) for f in fields(row) if f.name != "credential_id"}
        return Proxy(
            **described,
            credentials=self._credentials.get(proxy_id),
            status=ProxyStatus(standing.status),
            checked_at=standing.checked_at,
            max_concurrency=standing.max_concurrency,
            current_leases=standing.current_leases,
        )

    def _lease_row(self, lease_id: UUID) -> LeaseRow:
        row: LeaseRow = self._states["leases"][lease_id, self._pool_of_lease[lease_id]]
        return row

    def _lease(self, lease_id: UUID) -> Lease:
        return _lease_from_row(self._lease_row(lease_id))

    def _stats(self, pool_id: UUID, event: EventBase | None = None) -> PoolStatsSnapshot:
        row: PoolCounts = self._states["pool_stats"][(pool_id,)]
        return PoolStatsSnapshot(
            pool_name=self._states["pools"][(pool_id,)].name,
            total_proxies=row.total_proxies,
            active_proxies=row.active_proxies,
            available_proxies=row.available_proxies,
            leased_proxies=row.leased_proxies,
            total_leases=row.total_leases,
            collected_at=event.recorded_at if event else self._clock(),
        )


def _lease_from_row(row: LeaseRow) -> Lease:
    return Lease(
        id=row.id,
        proxy_id=row.proxy_id,
        consumer_id=row.consumer_id,
        pool_id=row.pool_id,
        pool_name=row.pool_name,
        consumer_name=row.consumer_name,
        status=LeaseStatus(row.status),
        acquired_at=row.acquired_at,
        expires_at=row.expires_at,
        released_at=row.released_at,
        fencing_token=row.fencing_token,
    )


def _same(proxy: Proxy, known: Proxy) -> bool:
    return proxy.model_dump(exclude={"current_leases"}) == known.model_dump(
        exclude={"current_leases"}
    )


def _has_identity_of(proxy: Proxy, other: Proxy) -> bool:
    return account_of(proxy) == account_of(other) and proxy.credentials == other.credentials


def _ask(step: Callable[..., T], *arguments: Any) -> T:
    return step(*arguments)
