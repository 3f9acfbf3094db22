"""The commands as programs: what to ask the database, and what to make of its answers.

Here are those of leasing; what there is to lease is registered in
:mod:`.registrations`, how well it is in :mod:`.checks`, and what is only read is
in :mod:`.lookups`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import psycopg

from ...errors import DatabaseError, ProxyNotFoundError, ProxyUnavailableError
from ...ids import NIL, following, uuid7
from ...models import (
    Lease,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    SelectorStrategy,
    check_duration,
    check_filters,
    check_name,
)
from ..requests import (
    AcquireRequest,
    Acquisition,
    EndedLease,
    ReleaseResult,
    copy_ending,
    log_late_release,
)
from ..validation import check_granted, check_reason, granted_and_ended
from . import acquiring, ending, filtering, reading
from .appending import origin
from .checks import Checks
from .driver import Program, Rows
from .importing import Imports
from .sql import Query
from .vault import Vault

logger = logging.getLogger("pharox")

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


class Commands(Imports, Checks):
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
        if request.lease_id is None:
            return self._acquire(request, [])
        return self._acquire_once(request, request.lease_id)

    def create_lease(self, proxy: Proxy, consumer: str, duration: float) -> Program[Lease]:
        """Lease this very proxy."""
        check_duration(duration)
        return self._lease_one(proxy.id, check_name(consumer, "consumer"), duration)

    def find(
        self, pool_name: str, filters: ProxyFilters | None, selector: SelectorStrategy | None
    ) -> Program[Proxy | None]:
        """Return the proxy that a selector offers, without leasing it."""
        strategy = SelectorStrategy(selector or SelectorStrategy.FIRST_AVAILABLE)
        return self._find(check_name(pool_name, "pool"), strategy, check_filters(filters))

    def give_back(
        self, lease: Lease, reason: str | None, *, with_stats: bool
    ) -> Program[ReleaseResult]:
        """End a lease; the caller's own copy is told how it ended, whoever ended it."""
        check_reason(reason)
        return self._give_back(lease, reason, with_stats=with_stats)

    def expire(self, *, with_stats: bool) -> Program[Sequence[EndedLease]]:
        """Take back every lease that has run out, pool by pool."""
        expired: list[EndedLease] = []
        due: Rows = yield Query(reading.due_pools_statement(self.schema), {})
        if not due:
            yield from self.check_writable()
        for row in due:
            expired += yield from self._expire(row["id"], with_stats=with_stats)
        return expired

    def _acquire_once(self, request: AcquireRequest, lease_id: UUID) -> Program[Acquisition]:
        """Lease under an id of the caller's: what was granted under it is granted again.

        An earlier attempt may still be on its way to the database, so each looks again
        when it is about to lease.
        """
        acquisition: Acquisition | None = yield from self._granted_before(request, [])
        if acquisition is not None:
            return acquisition
        expired: list[EndedLease] = []
        try:
            acquisition = yield from self._acquire(request, expired)
        except _GrantedMeanwhileError:
            granted = yield from self._granted_before(request, expired)
            if granted is None:  # It was archived in between.
                raise granted_and_ended(lease_id, "archived", expired) from None
            return granted
        if acquisition.lease is None:  # Its proxy may be what this very caller holds by now.
            granted = yield from self._granted_before(request, expired)
            return granted or acquisition
        return acquisition

    def _granted_before(
        self, request: AcquireRequest, expired: list[EndedLease]
    ) -> Program[Acquisition | None]:
        """Return the lease that has the request's id already, or None if none has.

        Of one that was pruned the log alone knows. One that has run out is left for
        whoever takes back what has: that one tells of it.
        """
        lease_id = request.lease_id
        if lease_id is None:
            return None
        rows = yield from self.rows(reading.granted_statement, lease_id=lease_id)
        if not rows:
            if not (yield from self.rows(reading.was_granted_statement, lease_id=lease_id)):
                return None
            # It may have been granted between the two looks.
            rows = yield from self.rows(reading.granted_statement, lease_id=lease_id)
        if not rows:
            raise granted_and_ended(lease_id, "pruned", expired)
        lease = reading.lease_from_row(rows[0])
        check_granted(lease, request, expired)
        if lease.status is not LeaseStatus.ACTIVE or rows[0]["has_run_out"]:
            how = LeaseStatus.EXPIRED if lease.status is LeaseStatus.ACTIVE else lease.status
            raise granted_and_ended(lease_id, how.value, expired)
        stats = None
        if request.with_stats:
            stats = yield from self.stats(request.pool_name)
        return Acquisition(lease, None, stats, expired, is_new=False)

    def _acquire(self, request: AcquireRequest, expired: list[EndedLease]) -> Program[Acquisition]:
        """Lease a proxy, or record a miss; what was taken back on the way is added to a list."""
        shape = filtering.shape_of(request.filters)
        details = request_details(request)
        values: dict[str, Any] = {
            **filtering.values_of(request.filters),
            **origin(),
            "pool_name": request.pool_name,
            "consumer": request.consumer_name,
            "duration": request.duration_seconds,
            "details": json.dumps(details) if request.filters else _plain_details(request.selector),
            "expire_first": True,
            "lease_id": request.lease_id or uuid7(),
        }
        wait = False
        while True:
            pool_id = yield from self._pool_id(request.pool_name)
            if pool_id is None:
                yield from self.ensure_consumer(request.consumer_name)
                details |= {"pool_name": request.pool_name, "reason": MissReason.UNKNOWN_POOL}
                yield from self._record_miss(NIL, details, values)
                return Acquisition(None, MissReason.UNKNOWN_POOL, None, expired)
            values["pool_id"] = pool_id
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
                row = yield from self._grant(request, Query(statement, values))
                reason = row["miss"] and MissReason(row["miss"])
            if row["position"] is not None or reason is not None:
                lease = None if reason is not None else _granted_lease(row, values)
                stats = yield from self._stats(row, request.pool_name, row["recorded_at"])
                return Acquisition(lease, reason, stats, expired)
            wait |= yield from self._clear_obstacle(
                row, values, expired, waited=wait, with_stats=request.with_stats
            )

    def _lease_one(self, proxy_id: UUID, consumer: str, duration: float) -> Program[Lease]:
        row = yield from self.standing(proxy_id)
        values: dict[str, Any] = {
            **origin(),
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
            settled = yield from self._clear_obstacle(
                row, values, [], waited=True, with_stats=False
            )
            if settled and not row["due"]:
                standing = yield from self.standing(proxy_id)
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
        values = {**filtering.values_of(filters), **origin(), "pool_id": pool_id}
        if filters is None or not filters.requires_python():
            rows = yield Query(acquiring.find_statement(self.schema, selector, shape), values)
            return reading.proxy_from_row(rows[0], self.vault) if rows else None
        for_page = acquiring.page_statement(self.schema, selector, shape, by_id=False)
        offset, size = 0, _FIRST_PAGE
        while True:
            rows = yield Query(for_page, {**values, "page_size": size, "offset": offset})
            proxies = reading.readable_proxies(rows, self.vault)
            chosen = next((proxy for proxy in proxies if filters.matches(proxy)), None)
            if chosen is not None:
                if selector is SelectorStrategy.ROUND_ROBIN:
                    offer = acquiring.offer_statement(self.schema)
                    yield Query(offer, {**values, "proxy_id": chosen.id})
                return chosen
            if len(rows) < size:
                return None
            offset, size = offset + size, min(2 * size, _LARGEST_PAGE)

    def _give_back(
        self, lease: Lease, reason: str | None, *, with_stats: bool
    ) -> Program[ReleaseResult]:
        released, recorded, expired = yield from self._release(lease, reason, with_stats=with_stats)
        if released is None:
            log_late_release(lease, recorded)
            copy_ending(recorded, lease)
            return ReleaseResult(None, expired)
        copy_ending(released.lease, lease)
        return ReleaseResult(EndedLease(lease, released.stats, reason), expired)

    def _release(
        self, lease: Lease, reason: str | None, *, with_stats: bool
    ) -> Program[tuple[EndedLease | None, Lease | None, Sequence[EndedLease]]]:
        """End a lease. Return its ending if this did it, the lease as recorded, and what expired.

        The pool that the caller's lease names is only where to look first.
        """
        values = {**origin(), "lease_id": lease.id, "reason": reason}
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
        # It is active and could not be released: it has run out and nobody has noticed yet, or
        # somebody has locked it, who is waited for then.
        expired: list[EndedLease] = []
        for wait in (False, True):
            pool_id = recorded.pool_id or NIL
            expired += yield from self._expire(pool_id, with_stats=with_stats, wait=wait)
            recorded = yield from self.lease(lease.id)
            if recorded is None or recorded.status is not LeaseStatus.ACTIVE:
                return None, recorded, expired
        raise DatabaseError(
            f"lease {lease.id} is still active: the database has neither released it nor taken it "
            "back; release it again",
            lease_id=lease.id,
        )

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

    def _clear_obstacle(
        self,
        row: Mapping[str, Any],
        values: dict[str, Any],
        expired: list[EndedLease],
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
    ) -> Program[list[EndedLease]]:
        statement = ending.expire_statement(self.schema, wait=wait)
        expired: list[EndedLease] = []
        while True:
            rows = yield Query(statement, {**origin(), "pool_id": pool_id})
            stats = None
            if rows and with_stats:
                stats = yield from self._stats(_STALE, rows[0]["pool_name"], rows[0]["released_at"])
            expired += [EndedLease(_ended(row, LeaseStatus.EXPIRED), stats) for row in rows]
            if len(rows) < ending.BATCH:
                return expired

    def _released(self, row: Mapping[str, Any], reason: str | None) -> Program[EndedLease]:
        stats = yield from self._stats(row, row["pool_name"], row["released_at"])
        return EndedLease(_ended(row, LeaseStatus.RELEASED), stats, reason)

    def _stats(
        self, row: Mapping[str, Any], pool_name: str, at: datetime
    ) -> Program[PoolStatsSnapshot | None]:
        """Return the statistics in a command's answer, if it was asked for them.

        A stale answer is read anew: then with what others have done since. What was
        committed by then is told without them if that fails: a lease must not get
        lost for want of its statistics.
        """
        if row.get("stale"):
            try:
                rows: Rows = yield Query(reading.stats_statement(self.schema), {"name": pool_name})
            except psycopg.Error as error:
                logger.warning("pharox.stats.failed: of pool %r: %s", pool_name, error)
                return None
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
        seen = _Seen()
        row: Mapping[str, Any] = {}
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
                    attempt = Query(lease_among, {**values, "among": among})
                    row = yield from self._grant(request, attempt)
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

    def _grant(self, request: AcquireRequest, attempt: Query) -> Program[Mapping[str, Any]]:
        """Run a statement that may lease, and return its row.

        Under an id of the caller's one attempt at a time gets so far, in whatever pool.
        A statement sees what was committed before it began, so the one that waits for
        its turn cannot be the one that looks.
        """
        if request.lease_id is None:
            rows: Rows = yield attempt
            return rows[0]
        lease_id = {"lease_id": request.lease_id}

        def look(answers: Sequence[Rows]) -> Query:
            if answers[0][0]["isolation"] not in ("read committed", "read uncommitted"):
                raise DatabaseError(
                    "leasing under an id needs READ COMMITTED; the engine's isolation_level, or "
                    "default_transaction_isolation of the database, is another"
                )
            return Query(reading.was_granted_statement(self.schema), lease_id)

        answers: list[Rows] = yield [
            Query(acquiring.lease_id_lock_statement(self.schema), lease_id),
            look,
            lambda answers: None if answers[1] else attempt,
        ]
        _, granted, leased = answers
        if granted:
            raise _GrantedMeanwhileError
        return leased[0]

    def _record_miss(
        self, pool_id: UUID, details: Mapping[str, Any], values: Mapping[str, Any]
    ) -> Program[None]:
        statement = acquiring.record_miss_statement(self.schema)
        yield Query(statement, {**values, "pool_id": pool_id, "details": json.dumps(details)})


class _GrantedMeanwhileError(Exception):
    """Another attempt was quicker under the same id. Never leaves this module."""


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
        self.any_row |= bool(rows)
        by_id = {row["id"]: row for row in rows}
        for proxy in reading.readable_proxies(rows, vault):
            if filters is None or filters.matches(proxy):
                row = by_id[proxy.id]
                self.matched = True
                self.healthy |= row["healthy"]
                if row["leasable"]:
                    free.append(proxy.id)
        self.free |= bool(free)
        return free

    def reason(self) -> MissReason:
        """Return why nothing was leased, if nothing was free."""
        if not self.matched:
            return MissReason.NO_MATCH
        return MissReason.AT_CAPACITY if self.healthy else MissReason.NONE_HEALTHY


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
