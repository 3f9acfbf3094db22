"""The commands as programs: what to ask the database, and what to make of its answers.

Here are those of leasing; what there is to lease is registered in
:mod:`.registrations`, how well it is in :mod:`.checks`, and what is only read is
in :mod:`.lookups`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from uuid import UUID

from ...errors import DatabaseError, PharoxError, ProxyUnavailableError
from ...ids import NIL, following, uuid7
from ...models import (
    Lease,
    MissReason,
    Proxy,
    ProxyFilters,
    SelectorStrategy,
    check_duration,
    check_filters,
    check_name,
)
from ..requests import AcquireRequest, Acquisition, EndedLease, ReleaseResult
from ..validation import check_reason
from . import filtering, finding, reading
from .appending import origin
from .batch import (
    ONE,
    TRY,
    Acquire,
    Batch,
    Command,
    Outcome,
    Release,
    Returned,
    Run,
    Unsettled,
    acquire_command,
    request_details,
    result_of,
    wait_query,
)
from .checks import Checks
from .driver import Program, Rows
from .importing import Imports
from .sql import Query
from .vault import Vault

_FIRST_PAGE, _LARGEST_PAGE = 500, 8000

DUE = 1000
"""How many leases one statement takes back; a longer queue takes several."""


class Commands(Imports, Checks):
    """Every command of one schema. What a caller gives is checked when a command is made."""

    # Leasing

    def acquire(self, request: AcquireRequest) -> Program[Acquisition]:
        """Lease a proxy, or record why none was to be had."""
        check_acquisition(request)
        filters = request.filters
        if filters is not None and filters.requires_python():
            return self._search(request, filters)
        return self.acquire_alone(acquire_command(request))

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
        return self.release_alone(Release(lease, reason, with_stats))

    def expire(self, *, with_stats: bool) -> Program[Sequence[EndedLease]]:
        """Take back every lease that has run out, pool by pool."""
        expired: list[EndedLease] = []
        due: Rows = yield Query(reading.due_pools_statement(self.schema), {})
        if not due:
            yield from self.check_writable()
        for row in due:
            expired += yield from self._take_back(row["id"], with_stats=with_stats)
        return expired

    def _take_back(self, pool_id: UUID, *, with_stats: bool) -> Program[list[EndedLease]]:
        expired: list[EndedLease] = []
        while True:
            batch = Batch((), due_pools=[pool_id], with_stats=with_stats)
            taken_back = batch.expired((yield batch.query(self.schema)))
            expired += taken_back
            if len(taken_back) < DUE:
                return expired

    def acquire_alone(self, command: Acquire, first: Outcome | None = None) -> Program[Acquisition]:
        """Carry out an acquisition by itself, from what a batch made of it on, if one did."""
        outcome, expired = yield from self._settle(command, first)
        if isinstance(outcome, PharoxError):
            outcome.__dict__.update(expired=expired)
            outcome.data["expired"] = expired
            raise outcome
        if not isinstance(outcome, Acquisition):
            raise AssertionError(outcome)
        stats = outcome.stats
        if command.request.with_stats and not outcome.is_new:
            stats = yield from self.stats(command.request.pool_name)
        return replace(outcome, stats=stats, expired=expired)

    def release_alone(
        self, command: Release, first: Outcome | None = None
    ) -> Program[ReleaseResult]:
        """Carry out a release by itself, from what a batch made of it on, if one did."""
        outcome, expired = yield from self._settle(command, first, attempts=3)
        if isinstance(outcome, Unsettled):
            raise DatabaseError(
                f"lease {command.lease.id} is still active: the database has neither released it "
                "nor taken it back; release it again",
                lease_id=command.lease.id,
            )
        if not isinstance(outcome, Returned):
            raise AssertionError(outcome)
        return result_of(command, outcome._replace(expired=expired))

    def _settle(
        self, command: Command, outcome: Outcome | None, attempts: int | None = None
    ) -> Program[tuple[Outcome, tuple[EndedLease, ...]]]:
        """Ask until a command is settled; return its outcome, and all that was taken back.

        What others have locked is waited for in the same transaction as the command that
        then follows.
        """
        expired: list[EndedLease] = []
        batch = Batch((command,))
        for attempt in count():
            if attempt or outcome is None:
                query = batch.query(self.schema)
                if isinstance(outcome, Unsettled) and outcome.why == "locked":
                    steps = [wait_query(self.schema, command), query]
                    _, rows = yield steps
                else:
                    rows = yield query
                (outcome,) = batch.outcomes(rows)
            if isinstance(outcome, Acquisition | Returned | Unsettled):
                expired += outcome.expired
            if not isinstance(outcome, Unsettled) or outcome.why == "none" or attempt == attempts:
                return outcome, tuple(expired)
            if isinstance(command, Acquire) and outcome.why == "unknown_consumer":
                yield from self.ensure_consumer(command.request.consumer_name)
        raise AssertionError

    def _lease_one(self, proxy_id: UUID, consumer: str, duration: float) -> Program[Lease]:
        while True:
            row = yield from self.standing(proxy_id)
            request = AcquireRequest(row["pool_name"], consumer, duration)
            run = Run(
                row["pool_name"],
                request.selector.value,
                "availability.proxy_id = ($5 ->> 0)::uuid",
                json.dumps([str(proxy_id)]),
                kind=ONE,
            )
            command = Acquire(request, run, uuid7())
            outcome, _ = yield from self._settle(command, None)
            if isinstance(outcome, Acquisition) and outcome.lease is not None:
                return outcome.lease
            row = yield from self.standing(proxy_id)
            if outcome == Unsettled("none"):
                raise ProxyUnavailableError.because(proxy_id, row["status"], row["holders"])

    def _find(
        self, pool_name: str, selector: SelectorStrategy, filters: ProxyFilters | None
    ) -> Program[Proxy | None]:
        pool = yield from self.pool_by_name(pool_name)
        if pool is None:
            return None
        shape = filtering.shape_of(filters)
        values = {**filtering.values_of(filters), **origin(), "pool_id": pool.id}
        if filters is None or not filters.requires_python():
            rows = yield Query(finding.find_statement(self.schema, selector, shape), values)
            return reading.proxy_from_row(rows[0], self.vault) if rows else None
        for_page = finding.page_statement(self.schema, selector, shape, by_id=False)
        offset, size = 0, _FIRST_PAGE
        while True:
            rows = yield Query(for_page, {**values, "page_size": size, "offset": offset})
            proxies = reading.readable_proxies(rows, self.vault)
            chosen = next((proxy for proxy in proxies if filters.matches(proxy)), None)
            if chosen is not None:
                if selector is SelectorStrategy.ROUND_ROBIN:
                    offer = finding.offer_statement(self.schema)
                    yield Query(offer, {**values, "proxy_id": chosen.id})
                return chosen
            if len(rows) < size:
                return None
            offset, size = offset + size, min(2 * size, _LARGEST_PAGE)

    # With a predicate

    def _search(self, request: AcquireRequest, filters: ProxyFilters) -> Program[Acquisition]:
        """Let Python judge the proxies, page by page, and lease one that it accepts.

        First in the selector's order, skipping locked ones; then all of the pool by id,
        waiting. A miss is what the second look says, unless something was free and another
        caller was quicker: then all is looked at again.
        """
        command = acquire_command(request)
        expired: list[EndedLease] = []
        while True:
            pool = yield from self.pool_by_name(request.pool_name)
            if pool is None:
                return (yield from self.acquire_alone(command))
            if request.lease_id is not None:  # Its proxy may be what this very caller holds.
                before, _ = yield from self._settle_once(replace_run(command, ()), wait=True)
                if not isinstance(before, Unsettled):
                    return (yield from self.acquire_alone(command, before))
            for wait in (False, True):
                seen = _Seen()
                found = yield from self._look_through(command, filters, pool.id, seen, wait=wait)
                if isinstance(found, Acquisition):
                    return replace(found, expired=(*expired, *found.expired))
                expired += found
            if seen.free:
                continue
            reason = seen.reason()
            if not seen.any_row:
                total = yield Query(reading.pool_size_statement(self.schema), {"pool_id": pool.id})
                reason = MissReason.NO_MATCH if total else MissReason.EMPTY_POOL
            yield from self.ensure_consumer(request.consumer_name)
            yield from self._record_miss(pool.id, request, reason)
            stats = (yield from self.stats(request.pool_name)) if request.with_stats else None
            return Acquisition(None, reason, stats, tuple(expired))

    def _look_through(
        self,
        command: Acquire,
        filters: ProxyFilters,
        pool_id: UUID,
        seen: _Seen,
        *,
        wait: bool,
    ) -> Program[Acquisition | list[EndedLease]]:
        """Go through a pool once; return what was leased, or what was taken back on the way."""
        request = command.request
        expired: list[EndedLease] = yield from self._take_back(
            pool_id, with_stats=request.with_stats
        )
        shape = filtering.shape_of(filters)
        page = finding.page_statement(self.schema, request.selector, shape, by_id=wait)
        values = {**filtering.values_of(filters), "pool_id": pool_id}
        place: dict[str, Any] = {"offset": 0, "from_id": NIL, "page_size": _FIRST_PAGE}
        while True:
            rows: Rows = yield Query(page, {**values, **place})
            if free := seen.judge(rows, filters, self.vault):
                attempt = replace_run(command, free)
                outcome, more = yield from self._settle_once(attempt, wait=wait)
                expired += more
                if isinstance(outcome, PharoxError):
                    raise outcome
                if isinstance(outcome, Acquisition):
                    return replace(outcome, expired=tuple(expired))
            if len(rows) < place["page_size"]:
                return expired
            place["offset"] += len(rows)
            place["from_id"] = following(rows[-1]["id"])
            place["page_size"] = min(2 * place["page_size"], _LARGEST_PAGE)

    def _settle_once(
        self, command: Acquire, *, wait: bool
    ) -> Program[tuple[Outcome, Sequence[EndedLease]]]:
        while True:
            batch = Batch((command,))
            query = batch.query(self.schema)
            if wait:
                _, rows = yield [wait_query(self.schema, command), query]
            else:
                rows = yield query
            (outcome,) = batch.outcomes(rows)
            if isinstance(outcome, Unsettled) and outcome.why == "unknown_consumer":
                yield from self.ensure_consumer(command.request.consumer_name)
                continue
            return outcome, getattr(outcome, "expired", ())

    def _record_miss(
        self, pool_id: UUID, request: AcquireRequest, reason: MissReason
    ) -> Program[None]:
        details = {**request_details(request.filters), "reason": reason.value}
        values = {
            **origin(),
            "pool_id": pool_id,
            "pool_name": request.pool_name,
            "consumer": request.consumer_name,
            "selector": request.selector.value,
            "details": json.dumps(details),
        }
        yield Query(finding.record_miss_statement(self.schema), values)


def check_acquisition(request: AcquireRequest) -> None:
    """Raise an error if a request is none that can be carried out."""
    check_duration(request.duration_seconds)
    check_name(request.pool_name, "pool")
    check_name(request.consumer_name, "consumer")


def replace_run(command: Acquire, proxy_ids: Sequence[UUID]) -> Acquire:
    """Return an acquisition that looks at some proxies only, and records no miss."""
    run = command.run._replace(
        condition="availability.proxy_id IN "
        "(SELECT id::uuid FROM jsonb_array_elements_text($5) AS given (id))",
        arguments=json.dumps([str(proxy_id) for proxy_id in proxy_ids]),
        kind=TRY,
    )
    return replace(command, run=run)


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
