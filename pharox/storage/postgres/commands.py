"""The commands as programs: what to ask the database, and what to make of its answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg

from ...attribution import current_attribution
from ...errors import (
    ConflictError,
    PoolNotFoundError,
    ProxyNotFoundError,
    ProxyUnavailableError,
)
from ...ids import NIL, following, imported_proxy_id, uuid7
from ...models import (
    Consumer,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    check_aware,
    check_duration,
    check_name,
)
from ..interface import (
    AcquireRequest,
    Acquisition,
    Ending,
    HealthOutcome,
    Return,
    check_one_pool_each,
    check_reason,
    check_status,
    checked_model,
    copy_ending,
    id_from_text,
    log_late_release,
    redated,
    result_of_record,
)
from ..judging import Observation, in_rounds
from . import acquiring, ending, filtering, health, reading, registering
from .driver import Program, Rows
from .lookups import Lookups
from .sql import Query, Statement
from .vault import Vault

T = TypeVar("T")

BATCH = 1000
"""How many proxies one statement registers."""

_FIRST_PAGE, _LARGEST_PAGE = 500, 8000


@lru_cache(maxsize=8)
def _plain_details(selector: SelectorStrategy) -> str:
    return json.dumps({"selector": selector.value})


def request_details(request: AcquireRequest) -> dict[str, Any]:
    """Return what an acquisition's event keeps of the request."""
    details: dict[str, Any] = {"selector": request.selector.value}
    if request.filters is not None:
        details["filters"] = request.filters.recorded()
        details["predicate"] = request.filters.requires_python()
    return details


class Commands(Lookups):
    """Every command of one schema. Remembers the ids of pools it has met, nothing else.

    What a caller gives is checked when a command is made, before it asks for anything.
    """

    def __init__(self, schema: str, vault: Vault) -> None:
        super().__init__(schema, vault)
        self._pool_ids: dict[str, UUID] = {}

    # Leasing

    def acquire(self, request: AcquireRequest) -> Program[Acquisition]:
        """Lease a proxy, or record why none was to be had."""
        check_duration(request.duration_seconds)
        check_name(request.pool_name, "pool")
        check_name(request.consumer_name, "consumer")
        return self._acquire(request)

    def create_lease(self, proxy: Proxy, consumer: str, duration: float) -> Program[Lease]:
        """Lease this very proxy."""
        check_duration(duration)
        return self._lease_one(proxy.id, check_name(consumer, "consumer"), duration)

    def find(
        self, pool_name: str, filters: ProxyFilters | None, selector: SelectorStrategy | None
    ) -> Program[Proxy | None]:
        """Return the proxy that a selector offers, without leasing it."""
        strategy = SelectorStrategy(selector or SelectorStrategy.FIRST_AVAILABLE)
        return self._find(check_name(pool_name, "pool"), strategy, filters)

    def give_back(self, lease: Lease, reason: str | None, *, with_stats: bool) -> Program[Return]:
        """End a lease; the caller's own copy is told how it ended, whoever ended it."""
        check_reason(reason)
        return self._give_back(lease, reason, with_stats=with_stats)

    def expire(self, *, with_stats: bool) -> Program[Sequence[Ending]]:
        """Take back every lease that has run out, pool by pool."""
        expired: list[Ending] = []
        for row in (yield Query(reading.due_pools_statement(self.schema), {})):
            expired += yield from self._expire(row["id"], with_stats=with_stats)
        return expired

    def _acquire(self, request: AcquireRequest) -> Program[Acquisition]:
        shape = filtering.shape_of(request.filters)
        details = request_details(request)
        values: dict[str, Any] = {
            **filtering.values_of(request.filters),
            **_attribution(),
            "pool_name": request.pool_name,
            "consumer": request.consumer_name,
            "duration": request.duration_seconds,
            "details": json.dumps(details) if request.filters else _plain_details(request.selector),
            "expire_first": True,
        }
        expired: list[Ending] = []
        wait = False
        while True:
            pool_id = yield from self._pool_id(request.pool_name)
            if pool_id is None:
                yield from self.ensure_consumer(request.consumer_name)
                details |= {"pool_name": request.pool_name, "reason": MissReason.UNKNOWN_POOL}
                yield from self._record_miss(NIL, details, values)
                return Acquisition(None, MissReason.UNKNOWN_POOL, None, expired)
            values |= {"pool_id": pool_id, "lease_id": uuid7()}
            if request.filters is not None and details["predicate"]:
                row, reason = yield from self._search(request, shape, details, values)
            else:
                statement = acquiring.acquire_statement(
                    self.schema,
                    request.selector,
                    shape,
                    wait=wait,
                    with_stats=request.with_stats,
                )
                (row,) = yield Query(statement, values)
                reason = row["miss"] and MissReason(row["miss"])
            if row["position"] is not None or reason is not None:
                lease = None if reason is not None else _granted_lease(row, values)
                stats = yield from self._stats(row, request.pool_name, row["recorded_at"])
                return Acquisition(lease, reason, stats, expired)
            wait |= yield from self._settle(
                row, values, expired, waited=wait, with_stats=request.with_stats
            )

    def _lease_one(self, proxy_id: UUID, consumer: str, duration: float) -> Program[Lease]:
        row = yield from self._standing(proxy_id)
        values: dict[str, Any] = {
            **_attribution(),
            "pool_id": row["pool_id"],
            "pool_name": row["pool_name"],
            "proxy_id": proxy_id,
            "consumer": consumer,
            "duration": duration,
            "details": "{}",
            "expire_first": True,
            "lease_id": uuid7(),
        }
        while True:
            (row,) = yield Query(acquiring.lease_one_statement(self.schema), values)
            if row["position"] is not None:
                return _granted_lease(row, values)
            if not row["pool_known"]:
                raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
            settled = yield from self._settle(row, values, [], waited=True, with_stats=False)
            if settled and not row["due"]:
                standing = yield from self._standing(proxy_id)
                raise ProxyUnavailableError.because(
                    proxy_id, standing["status"], standing["holders"]
                )

    def _find(
        self, pool_name: str, selector: SelectorStrategy, filters: ProxyFilters | None
    ) -> Program[Proxy | None]:
        self._pool_ids.pop(pool_name, None)  # no statement below checks the name again
        pool_id = yield from self._pool_id(pool_name)
        if pool_id is None:
            return None
        shape = filtering.shape_of(filters)
        values = {**filtering.values_of(filters), **_attribution(), "pool_id": pool_id}
        if filters is None or not filters.requires_python():
            rows = yield Query(acquiring.find_statement(self.schema, selector, shape), values)
            return reading.proxy_from_row(rows[0], self.vault) if rows else None
        for_page = acquiring.page_statement(self.schema, selector, shape, by_id=False)
        offset, size = 0, _FIRST_PAGE
        while True:
            rows = yield Query(for_page, {**values, "page_size": size, "offset": offset})
            proxies = (reading.proxy_from_row(row, self.vault) for row in rows)
            chosen = next((proxy for proxy in proxies if filters.matches(proxy)), None)
            if chosen is not None:
                if selector is SelectorStrategy.ROUND_ROBIN:
                    offer = acquiring.offer_statement(self.schema)
                    yield Query(offer, {**values, "proxy_id": chosen.id})
                return chosen
            if len(rows) < size:
                return None
            offset, size = offset + size, min(2 * size, _LARGEST_PAGE)

    def _give_back(self, lease: Lease, reason: str | None, *, with_stats: bool) -> Program[Return]:
        released, recorded, expired = yield from self._release(lease, reason, with_stats=with_stats)
        if released is None:
            log_late_release(lease, recorded)
            copy_ending(recorded, lease)
            return Return(None, expired)
        copy_ending(released.lease, lease)
        return Return(Ending(lease, released.stats, reason), expired)

    def _release(
        self, lease: Lease, reason: str | None, *, with_stats: bool
    ) -> Program[tuple[Ending | None, Lease | None, Sequence[Ending]]]:
        """End a lease. Return its ending if this did it, the lease as recorded, and what expired.

        The pool that the caller's lease names is only where to look first.
        """
        values = {**_attribution(), "lease_id": lease.id, "reason": reason}
        statement = ending.release_statement(self.schema, with_stats=with_stats)
        if lease.pool_id is not None:
            rows = yield Query(statement, {**values, "pool_id": lease.pool_id})
            if rows:
                return (yield from self._released(rows[0], reason)), None, ()
        recorded = yield from self.lease(lease.id)
        if recorded is None or recorded.status is not LeaseStatus.ACTIVE:
            return None, recorded, ()
        rows = yield Query(statement, {**values, "pool_id": recorded.pool_id})
        if rows:
            return (yield from self._released(rows[0], reason)), None, ()
        # It is active and could not be released: it has run out and nobody has noticed yet.
        expired = yield from self._expire(recorded.pool_id or NIL, with_stats=with_stats)
        recorded = yield from self.lease(lease.id)
        return None, recorded, expired

    # Registering

    def ensure_consumer(self, name: str, consumer_id: UUID | None = None) -> Program[UUID]:
        """Return a consumer's id, registering the name if it is new."""
        return self._ensure_consumer(check_name(name, "consumer"), consumer_id)

    def add_consumer(self, consumer: Consumer) -> Program[Consumer]:
        """Register a consumer and return it, with the id it has if its name was known."""
        uuid = yield from self.ensure_consumer(consumer.name, consumer.id)
        return Consumer(id=uuid, name=consumer.name)

    def _ensure_consumer(self, name: str, consumer_id: UUID | None) -> Program[UUID]:
        statement = registering.register_consumer_statement(self.schema)
        values = {**_attribution(), "consumer": name, "consumer_id": consumer_id or uuid4()}
        while True:
            try:
                rows = yield Query(statement, values)
            except psycopg.errors.UniqueViolation as error:
                if error.diag.constraint_name == "uq_consumers_id":
                    raise ConflictError(
                        f"consumer id {consumer_id} belongs to another name", name=name
                    ) from error
                continue  # Somebody registered it between this statement's look and its write.
            return rows[0]["id"]  # type: ignore[no-any-return]

    def save_pool(self, pool: ProxyPool) -> Program[None]:
        """Register a pool or change the one of this id."""
        return self._save_pool(checked_model(pool))

    def _save_pool(self, pool: ProxyPool) -> Program[None]:
        values = {**_attribution(), "pool_id": pool.id, **pool.model_dump(exclude={"id"})}
        while True:
            try:
                yield Query(registering.save_pool_statement(self.schema), values)
            except psycopg.errors.UniqueViolation as error:
                if error.diag.constraint_name == "uq_pools_name":
                    raise ConflictError(
                        f"another pool is named {pool.name!r}", name=pool.name
                    ) from error
                continue
            return

    def save_proxies(self, proxies: Sequence[Proxy], *, change: bool) -> Program[int]:
        """Register proxies, all or none; with ``change`` also change those that are known."""
        return self._save_proxies([checked_model(proxy) for proxy in proxies], change=change)

    def _save_proxies(self, proxies: Sequence[Proxy], *, change: bool) -> Program[int]:
        if not proxies:
            return 0
        statement = registering.save_proxies_statement(self.schema, change=change)
        by_pool: dict[UUID, list[Proxy]] = {}
        for proxy in check_one_pool_each(proxies):
            by_pool.setdefault(proxy.pool_id, []).append(proxy)
        while True:
            yield from self._check_pools(by_pool)
            known = yield from self._known_credentials(proxies)
            queries = [
                Query(
                    statement,
                    {
                        **_attribution(),
                        "pool_id": pool_id,
                        "rows": json.dumps(
                            [self._row(n, p, known.get(p.id)) for n, p in enumerate(batch)]
                        ),
                    },
                )
                # Locks are taken in the order of ids, over all batches.
                for pool_id, members in sorted(by_pool.items())
                for batch in _batches(sorted(members, key=lambda proxy: proxy.id))
            ]
            try:
                answers: list[Rows] = yield queries
            except psycopg.errors.UniqueViolation:
                continue
            if all(answers):
                return sum(rows[0]["new"] for rows in answers)

    def import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> Program[int]:
        """Register the proxies whose identity the pool does not know; return how many.

        Of several with one identity the first counts.
        """
        return self._import_proxies(pool_id, [checked_model(proxy) for proxy in proxies])

    def _import_proxies(self, pool_id: UUID, proxies: Sequence[Proxy]) -> Program[int]:
        if not proxies:
            yield from self.pool(str(pool_id))
            return 0
        fresh: dict[tuple[str, str, int, str], Proxy] = {}
        for proxy in proxies:
            fresh.setdefault(_identity(proxy), proxy)
        with_user = {identity[:3] for identity in fresh if identity[3]}
        if secrets := [proxy.credentials for proxy in fresh.values() if proxy.credentials]:
            self.vault.seal(secrets[0])  # Without a key, say so before anything is asked.
        spelled = {(str(proxy.host), proxy.port) for proxy in fresh.values()}
        asked = spelled | {(host.lower(), port) for host, port in spelled}
        values = {
            "pool_id": pool_id,
            "hosts": [host for host, _ in asked],
            "ports": [port for _, port in asked],
        }
        for row in (yield Query(reading.identities_statement(self.schema), values)):
            address = (row["protocol"], row["host"].lower(), row["port"])
            if row["secret"] is None:
                fresh.pop((*address, ""), None)
            elif address in with_user:  # Else no user is asked for, and no key is needed.
                fresh.pop((*address, self.vault.open(row["secret"]).user), None)
        batch = [
            proxy.model_copy(
                update={"id": imported_proxy_id(pool_id, *identity), "pool_id": pool_id}
            )
            for identity, proxy in fresh.items()
        ]
        return (yield from self._save_proxies(batch, change=False))

    def delete_proxy(self, proxy_id: str) -> Program[None]:
        """Release a proxy's leases and remove it."""
        return self._delete_proxy(id_from_text(proxy_id) or NIL)

    def _delete_proxy(self, proxy_id: UUID) -> Program[None]:
        row = yield from self._standing(proxy_id)
        values = {
            **_attribution(),
            "pool_id": row["pool_id"],
            "proxy_id": proxy_id,
            "reason": "proxy removed",
        }
        answers = yield [
            *(Query(lock, values) for lock in self._removal_locks(whole_pool=False)),
            Query(ending.release_held_statement(self.schema, whole_pool=False), values),
            Query(registering.remove_proxies_statement(self.schema, whole_pool=False), values),
        ]
        if not answers[-1][0]["removed"]:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)

    def delete_pool(self, pool_id: str) -> Program[None]:
        """Release a pool's leases, remove its proxies and then the pool."""
        return self._delete_pool(id_from_text(pool_id) or NIL)

    def _delete_pool(self, pool_id: UUID) -> Program[None]:
        values = {**_attribution(), "pool_id": pool_id, "reason": "pool removed"}
        answers = yield [
            *(Query(lock, values) for lock in self._removal_locks(whole_pool=True)),
            Query(ending.release_held_statement(self.schema, whole_pool=True), values),
            Query(registering.remove_proxies_statement(self.schema, whole_pool=True), values),
            Query(registering.remove_pool_statement(self.schema), values),
        ]
        if not answers[-1][0]["removed"]:
            raise PoolNotFoundError(f"Pool {pool_id} not found.", pool_id=pool_id)

    def prune(self, ended_before: datetime) -> Program[int]:
        """Forget the leases that ended before a moment; return how many."""
        return self._prune(check_aware(ended_before))

    def _prune(self, ended_before: datetime) -> Program[int]:
        pruned = 0
        concerned = reading.pools_with_ended_statement(self.schema)
        for row in (yield Query(concerned, {"ended_before": ended_before})):
            values = {**_attribution(), "pool_id": row["pool_id"], "ended_before": ended_before}
            rows = yield Query(registering.prune_statement(self.schema), values)
            pruned += rows[0]["pruned"]
        return pruned

    def rotate_secrets(self) -> Program[int]:
        """Encrypt every proxy's credentials anew with the first key; return how many."""
        rows: Rows = yield Query(reading.secrets_statement(self.schema), {})
        statement = registering.rotate_secret_statement(self.schema)
        queries = [
            Query(
                statement,
                {
                    "id": row["id"],
                    "pool_id": row["pool_id"],
                    "secret": self.vault.rotate(row["secret"]),
                },
            )
            for row in rows
        ]
        if queries:
            yield queries
        return len(queries)

    # Health

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Program[list[HealthOutcome]]:
        """Record checks; return what each came to, in their order."""
        seen = [Observation(result, result.healthy) for result in map(checked_model, results)]
        return self._record_health_checks(seen, policy or HealthPolicy())

    def apply_health_check(self, result: HealthCheckResult) -> Program[Proxy | None]:
        """Record a check and return the proxy as it then stands; None if it is unknown."""
        (outcome,) = yield from self.record_health_checks([result], None)
        if not outcome.known:
            return None
        return (yield from self.proxy_as_it_stands(result.proxy_id))

    def save_health_record(self, record: ProxyHealthRecord) -> Program[None]:
        """Record an observation made elsewhere; it does not change the proxy's status."""
        seen = Observation(result_of_record(record), record.reachable, counts=False)
        (outcome,) = yield from self._record_health_checks([seen], HealthPolicy())
        if not outcome.known:
            raise ProxyNotFoundError(
                f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id
            )

    def _record_health_checks(
        self, seen: Sequence[Observation], policy: HealthPolicy
    ) -> Program[list[HealthOutcome]]:
        ids = list({x.result.proxy_id for x in seen})
        rows = yield Query(health.pools_of_statement(self.schema), {"ids": ids})
        outcomes = [HealthOutcome(check.result, known=False) for check in seen]
        pools = {row["id"]: row["pool_id"] for row in rows}
        names = {row["pool_id"]: row["pool_name"] for row in rows}
        for pool_id, places in in_rounds(seen, pools):
            for batch in _batches(places, health.BATCH):
                checks = {seen[place].result.proxy_id: seen[place] for place in batch}
                recorded = yield from self._record_batch(pool_id, checks, policy)
                for place in batch:
                    result = seen[place].result
                    if (data := recorded.get(result.proxy_id)) is not None:
                        outcomes[place] = _outcome(result, data, names[pool_id])
        return outcomes

    def _record_batch(
        self, pool_id: UUID, checks: Mapping[UUID, Observation], policy: HealthPolicy
    ) -> Program[dict[UUID, dict[str, Any]]]:
        """Record one check each of some proxies of a pool; return what was appended."""
        values = {
            **_attribution(),
            "pool_id": pool_id,
            "failures": policy.failures_before_inactive,
            "successes": policy.successes_before_active,
            "window": policy.latency_window,
        }

        def record(answers: Sequence[Rows]) -> Query:
            # Not one that came while the locks were waited for: it is not locked.
            rows = [_check_row(checks[row["proxy_id"]]) for row in answers[0]]
            statement = health.record_statement(self.schema)
            return Query(statement, {**values, "rows": json.dumps(rows)})

        lock = health.lock_statement(self.schema)
        _, recorded = yield [Query(lock, {**values, "ids": list(checks)}), record]
        return {row["proxy_id"]: row["data"] for row in recorded}

    def set_status(self, proxy_id: UUID, status: ProxyStatus, reason: str | None) -> Program[Proxy]:
        """Decide a proxy's status, and return the proxy as it then stands."""
        check_reason(reason)
        return self._set_status(id_from_text(proxy_id) or NIL, check_status(status), reason)

    def _set_status(
        self, proxy_id: UUID, status: ProxyStatus, reason: str | None
    ) -> Program[Proxy]:
        row = yield from self._standing(proxy_id)
        values = {
            **_attribution(),
            "pool_id": row["pool_id"],
            "proxy_id": proxy_id,
            "ids": [proxy_id],
            "status": status.value,
            "reason": reason,
        }
        change = Query(registering.set_status_statement(self.schema), values)
        locked, _ = yield [
            Query(health.lock_statement(self.schema), values),
            lambda answers: change if answers[0] else None,
        ]
        proxy = yield from self.proxy_as_it_stands(proxy_id)
        if not locked or proxy is None:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
        return proxy

    # Parts

    def _pool_id(self, name: str) -> Program[UUID | None]:
        """Return a pool's id; remembered, as the acquiring statement checks the name again."""
        if (known := self._pool_ids.get(name)) is not None:
            return known
        rows = yield Query(reading.pool_by_name_statement(self.schema), {"name": name})
        if not rows:
            return None
        self._pool_ids[name] = rows[0]["id"]
        return self._pool_ids[name]

    def _settle(
        self,
        row: Mapping[str, Any],
        values: dict[str, Any],
        expired: list[Ending],
        *,
        waited: bool,
        with_stats: bool,
    ) -> Program[bool]:
        """Do what kept a lease from being decided. Return True if nothing but locks did.

        What has run out is taken back first. What others have locked of it is
        not waited for as long as something else may be free; only a caller who
        has ``waited`` for every proxy in vain waits for that as well.
        """
        if not row["pool_known"]:
            self._pool_ids.pop(values["pool_name"], None)
        elif row["consumer_id"] is None:
            yield from self.ensure_consumer(values["consumer"])
        elif row["due"] and values["expire_first"]:
            expired += yield from self._expire(values["pool_id"], with_stats=with_stats)
            values["expire_first"] = False
        else:
            if row["due"] and waited:
                expired += yield from self._expire(
                    values["pool_id"], with_stats=with_stats, wait=True
                )
            return True
        return False

    def _expire(
        self, pool_id: UUID, *, with_stats: bool, wait: bool = False
    ) -> Program[list[Ending]]:
        statement = ending.expire_statement(self.schema, wait=wait)
        expired: list[Ending] = []
        while True:
            rows = yield Query(statement, {**_attribution(), "pool_id": pool_id})
            stats = None
            if rows and with_stats:
                stats = yield from self._stats(_STALE, rows[0]["pool_name"], rows[0]["released_at"])
            expired += [Ending(_ended(row, LeaseStatus.EXPIRED), stats) for row in rows]
            if len(rows) < ending.BATCH:
                return expired

    def _released(self, row: Mapping[str, Any], reason: str | None) -> Program[Ending]:
        stats = yield from self._stats(row, row["pool_name"], row["released_at"])
        return Ending(_ended(row, LeaseStatus.RELEASED), stats, reason)

    def _stats(
        self, row: Mapping[str, Any], pool_name: str, at: datetime
    ) -> Program[PoolStatsSnapshot | None]:
        """Return the statistics in a command's answer, if it was asked for them.

        A stale answer is read anew: then with what others have done since.
        """
        if row.get("stale"):
            rows: Rows = yield Query(reading.stats_statement(self.schema), {"name": pool_name})
            row = rows[0] if rows else {}
        if row.get("total_leases") is None:
            return None
        return reading.stats_from_row(pool_name, row, at)

    def _search(
        self,
        request: AcquireRequest,
        shape: filtering.Shape | None,
        details: dict[str, Any],
        values: dict[str, Any],
    ) -> Program[tuple[Mapping[str, Any], MissReason | None]]:
        """Let Python judge the proxies, page by page, and lease one that it accepts.

        First in the selector's order, skipping locked ones; then all of the
        pool by id, waiting. A miss is what the second look says, unless
        something was free and another caller was quicker: then neither a lease
        nor a reason is returned, and the caller looks again.
        """
        seen, row = _Seen(), {}
        for wait in (False, True):
            lease_among = acquiring.acquire_statement(
                self.schema,
                request.selector,
                shape,
                wait=wait,
                with_stats=request.with_stats,
                among=True,
            )
            (row,) = yield Query(lease_among, {**values, "among": []})
            if not row["pool_known"] or row["consumer_id"] is None:
                return row, None
            if row["due"] and (values["expire_first"] or wait):
                return row, None
            seen = _Seen()
            page = acquiring.page_statement(self.schema, request.selector, shape, by_id=wait)
            place: dict[str, Any] = {"offset": 0, "from_id": NIL, "page_size": _FIRST_PAGE}
            while True:
                rows: Rows = yield Query(page, {**values, **place})
                if among := seen.judge(rows, request.filters, self.vault):
                    (row,) = yield Query(lease_among, {**values, "among": among})
                    if row["position"] is not None:
                        return row, None
                if len(rows) < place["page_size"]:
                    break
                place["offset"] += len(rows)
                place["from_id"] = following(rows[-1]["id"])
                place["page_size"] = min(2 * place["page_size"], _LARGEST_PAGE)
        if seen.free:
            return row, None
        reason = seen.reason()
        if not seen.any_row:
            total = yield Query(reading.pool_size_statement(self.schema), values)
            reason = MissReason.NO_MATCH if total else MissReason.EMPTY_POOL
        recorded = {**details, "pool_name": request.pool_name, "reason": reason}
        yield from self._record_miss(values["pool_id"], recorded, values)
        return row, reason

    def _removal_locks(self, *, whole_pool: bool) -> Sequence[Statement]:
        return registering.removal_locks(self.schema, whole_pool=whole_pool)

    def _record_miss(
        self, pool_id: UUID, details: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Program[None]:
        statement = acquiring.record_miss_statement(self.schema)
        yield Query(statement, {**values, "pool_id": pool_id, "details": json.dumps(details)})

    def _standing(self, proxy_id: UUID) -> Program[Mapping[str, Any]]:
        rows = yield Query(reading.standing_statement(self.schema), {"proxy_id": proxy_id})
        if not rows:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
        return rows[0]  # type: ignore[no-any-return]

    def _check_pools(self, by_pool: Mapping[UUID, Any]) -> Program[None]:
        rows = yield Query(reading.pools_statement(self.schema), {})
        if missing := by_pool.keys() - {row["id"] for row in rows}:
            pool_id = min(missing)
            raise PoolNotFoundError(f"Pool {pool_id} not found.", pool_id=pool_id)

    def _known_credentials(self, proxies: Sequence[Proxy]) -> Program[dict[UUID, Any]]:
        """Return what is stored of the credentials of those proxies that may keep theirs.

        Raises :class:`ConflictError` where a proxy is registered in another pool.
        """
        rows = yield Query(
            reading.known_proxies_statement(self.schema), {"ids": [p.id for p in proxies]}
        )
        pools = {proxy.id: proxy.pool_id for proxy in proxies}
        for row in rows:
            if row["pool_id"] != pools[row["id"]]:
                raise ConflictError(
                    f"proxy {row['id']} is registered in another pool; remove it there first",
                    proxy_id=row["id"],
                    pool_id=row["pool_id"],
                )
        return {row["id"]: row for row in rows if row["credential_id"] is not None}

    def _row(self, place: int, proxy: Proxy, known: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return a proxy as an item of the parameter ``rows``."""
        credential_id, secret = None, None
        if proxy.credentials is not None:
            if known is not None and self.vault.open(known["secret"]) == proxy.credentials:
                credential_id = known["credential_id"]
            else:
                credential_id, secret = uuid4(), self.vault.seal(proxy.credentials)
        data = {
            "protocol": proxy.protocol.value,
            "host": str(proxy.host),
            "port": proxy.port,
            "checked_at": proxy.checked_at.isoformat(),
            "credential_id": credential_id and str(credential_id),
            "source": proxy.source,
            "country": proxy.country,
            "city": proxy.city,
            "latitude": proxy.latitude,
            "longitude": proxy.longitude,
            "isp": proxy.isp,
            "asn": proxy.asn,
        }
        return {
            "place": place,
            "id": str(proxy.id),
            "secret": secret and secret.hex(),
            "status": proxy.status.value,
            "max_concurrency": proxy.max_concurrency,
            "data": {name: value for name, value in data.items() if value is not None},
        }


@dataclass
class _Seen:
    """What a look through a pool has shown so far."""

    any_row: bool = False
    matched: bool = False
    healthy: bool = False
    free: bool = False

    def judge(self, rows: Rows, filters: ProxyFilters | None, vault: Vault) -> list[UUID]:
        """Take note of a page, and return those that match and are free, in its order."""
        free = []
        for row in rows:
            self.any_row = True
            if filters is None or filters.matches(reading.proxy_from_row(row, vault)):
                self.matched = True
                self.healthy |= row["healthy"]
                if row["leasable"]:
                    free.append(row["id"])
        self.free |= bool(free)
        return free

    def reason(self) -> MissReason:
        """Return why nothing was leased, if nothing was free."""
        if not self.matched:
            return MissReason.NO_MATCH
        return MissReason.AT_CAPACITY if self.healthy else MissReason.NONE_HEALTHY


def _identity(proxy: Proxy) -> tuple[str, str, int, str]:
    """Return what tells an imported proxy from others of its pool."""
    user = proxy.credentials.user if proxy.credentials else ""
    return proxy.protocol.value, str(proxy.host).lower(), proxy.port, user


def _attribution() -> dict[str, Any]:
    actor, correlation_id = current_attribution()
    return {"actor": actor, "correlation_id": correlation_id}


def _batches(members: Sequence[T], size: int = BATCH) -> list[Sequence[T]]:
    return [members[start : start + size] for start in range(0, len(members), size)]


def _check_row(check: Observation) -> dict[str, Any]:
    """Return a check as ``health.record_statement`` takes it."""
    result = check.result
    data = {
        "status": result.status,
        "reachable": check.reachable,
        "latency_ms": result.latency_ms,
        "protocol": result.protocol,
        "attempts": result.attempts,
        "status_code": result.status_code,
        "error": result.error_message,
        "failure": result.failure,
    }
    return {
        "proxy_id": str(result.proxy_id),
        "status": result.status,
        "reachable": check.reachable,
        "counts": check.counts,
        "latency_ms": result.latency_ms,
        "checked_at": result.checked_at.isoformat(),
        "data": data,
    }


def _outcome(result: HealthCheckResult, data: Mapping[str, Any], pool_name: str) -> HealthOutcome:
    """Return what a check came to, from the data of its event."""
    return HealthOutcome(
        result=redated(result, datetime.fromisoformat(data["checked_at"])),
        applied=data["applied"],
        status_before=ProxyStatus(data["before"]["status"]),
        status_after=ProxyStatus(data["after"]["status"]),
        pool_name=pool_name,
        leases=data["before"]["leases"],
        lease_ids=tuple(UUID(lease_id) for lease_id in data["lease_ids"]),
    )


def _granted_lease(row: Mapping[str, Any], values: Mapping[str, Any]) -> Lease:
    return Lease(
        id=values["lease_id"],
        proxy_id=row["proxy_id"],
        consumer_id=row["consumer_id"],
        pool_id=values["pool_id"],
        pool_name=values["pool_name"],
        consumer_name=values["consumer"],
        acquired_at=row["recorded_at"],
        expires_at=row["expires_at"],
        fencing_token=row["position"],
    )


_STALE: Mapping[str, Any] = {"stale": True}


def _ended(row: Mapping[str, Any], status: LeaseStatus) -> Lease:
    return Lease(
        id=row["id"],
        proxy_id=row["proxy_id"],
        consumer_id=row["consumer_id"],
        pool_id=row["pool_id"],
        pool_name=row["pool_name"],
        consumer_name=row["consumer_name"],
        status=status,
        acquired_at=row["acquired_at"],
        expires_at=row["expires_at"],
        released_at=row["released_at"],
        fencing_token=row["fencing_token"],
    )
