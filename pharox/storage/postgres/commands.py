"""The commands as programs, which yield queries and interpret their results.

This module has the commands of leasing. :mod:`.registry` registers pools and proxies,
:mod:`.health` records health checks, and :mod:`.lookups` only reads.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from ...effects.cancelling import CANCELLED
from ...errors import (
    DatabaseError,
    PharoxError,
    ProxyUnavailableError,
)
from ...models import (
    Lease,
    LeaseStatus,
    Proxy,
    ProxyFilters,
    SelectorStrategy,
    check_duration,
    check_filters,
    check_name,
    check_selector,
)
from ...models.ids import made_lease_id
from ..reports import CoolDownRequest, Reported, ReportRequest
from ..requests import (
    LEASED_OUT,
    AcquireRequest,
    Acquisition,
    EndedLease,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
)
from ..validation import check_heirs, check_session
from . import (
    filtering,
    finding,
    reading,
    redating,
    renewing,
    reporting,
    revoking,
    sticky,
    waiting,
)
from .appending import origin
from .batch import (
    DUE,
    ONE,
    Acquire,
    Answer,
    Batch,
    Command,
    CommandOutcome,
    Queued,
    Release,
    Returned,
    Run,
    Unsettled,
    acquire_outcome,
    answers_of,
    expired_of,
    lacks_stats,
    result_of,
    serve_statement,
    unknown_consumers,
    wait_query,
)
from .driver import Program, Rows
from .finding import FIRST_PAGE, LARGEST_PAGE
from .health import Health
from .importing import Imports
from .sql import Query

T = TypeVar("T")

NOT_WOKEN = "others could not be woken"

logger = logging.getLogger("pharox")


class Commands(Imports, Health):
    """All commands of one schema. Arguments are validated when the program is created."""

    # Leasing

    def renew(
        self, requests: Sequence[RenewRequest], *, wait: bool
    ) -> Program[list[Lease | PharoxError]]:
        """Extend leases that have not ended."""
        return renewing.renew_leases(self.schema, requests, wait=wait)

    def report(self, requests: Sequence[ReportRequest]) -> Program[list[Reported | PharoxError]]:
        """Record what became of requests under leases."""
        return reporting.report_outcomes(self.schema, requests)

    def set_cool_down(self, request: CoolDownRequest) -> Program[datetime | None]:
        """Have a proxy rest for one target, or end that."""
        return reporting.set_cool_down(self.schema, request)

    def forget_session(self, pool_name: str, key: str) -> Program[UUID | None]:
        """End the binding of a sticky session's key."""
        check_session(pool_name, key)
        return sticky.forget_session(self.schema, pool_name, key)

    def inherit_session(self, pool_name: str, old: str, new: str) -> Program[None]:
        """Have one key take over the binding of another."""
        check_heirs(pool_name, old, new)
        return sticky.inherit_session(self.schema, pool_name, old, new)

    def revoke(self, request: RevokeRequest) -> Program[list[EndedLease | PharoxError]]:
        """End leases that have not ended, for a reason."""
        return revoking.revoke_leases(self.schema, request)

    def create_lease(self, proxy: Proxy, consumer: str, duration: float) -> Program[Lease]:
        """Lease exactly this proxy."""
        check_duration(duration)
        return self._lease_one(proxy.id, check_name(consumer, "consumer"), duration)

    def find(
        self, pool_name: str, filters: ProxyFilters | None, selector: SelectorStrategy | None
    ) -> Program[Proxy | None]:
        """Return the proxy that a selector offers, without leasing it."""
        asked = None if selector is None else check_selector(selector)
        return self._find(check_name(pool_name, "pool"), asked, check_filters(filters))

    def expire(self, *, with_stats: bool) -> Program[Sequence[EndedLease]]:
        """Expire all due leases, pool by pool. Those of a clock that went back are re-dated."""
        yield from redating.redate_leases(self.schema)
        expired: list[EndedLease] = []
        due: Rows = yield Query(reading.due_pools_statement(self.schema), {})
        if not due:
            yield from self.check_writable()
        for row in due:
            expired += yield from self.take_back(row["id"], with_stats=with_stats)
        return expired

    def take_back(self, pool_id: UUID, *, with_stats: bool) -> Program[list[EndedLease]]:
        """Expire the due leases of a pool, except those that others have locked."""
        expired: list[EndedLease] = []
        while True:
            process = self.room.process
            batch = Batch((), due_pools=[pool_id], process=process, with_stats=with_stats)
            begun = time.monotonic()
            answers = answers_of((yield batch.query(self.schema)))
            yield from self._pass_on(answers, begun)
            # A proxy that was drained is removed with its last lease.
            ended = [each.ended_lease() for each in answers if each.outcome == "LeaseExpired"]
            expired += ended
            if len(ended) < DUE:
                return expired

    def carry_out(self, commands: Sequence[Command], *, wait: bool = False) -> Program[list[Any]]:
        """Carry out commands in one commit. Return the outcome of each, settled or not.

        Parameters
        ----------
        wait:
            Whether to wait first, in the same transaction, for the locks of the only command.
        """
        while True:
            batch = Batch(commands, process=self.room.process)
            query = batch.query(self.schema)
            begun = time.monotonic()
            if wait:
                _, rows = yield [wait_query(self.schema, commands[0]), query]
            else:
                rows = yield query
            answers = answers_of(rows)
            unknown = unknown_consumers(answers)
            if not unknown:
                answers = yield from revoking.with_reasons(self.schema, answers)
                yield from self._pass_on(answers, begun)
                outcomes = batch.outcomes(answers, self.vault)
                yield from self.look_back(
                    command.request.pool_name
                    for command, outcome in zip(commands, outcomes, strict=True)
                    if isinstance(command, Acquire) and _is_leased_out(outcome)
                )
                return outcomes
            for name in unknown:
                yield from self.ensure_consumer(name)

    def finish_acquisition(
        self, command: Acquire, first: CommandOutcome | None = None
    ) -> Program[Acquisition | SetAcquisition | Queued]:
        """Carry out an acquisition alone, starting from its outcome in a batch if there is one."""
        outcome, expired = yield from self._clear_obstacle(command, first)
        if isinstance(outcome, PharoxError):
            raise _with_expired(outcome, expired)
        if isinstance(outcome, Queued):
            return replace(outcome, expired=expired)
        if not isinstance(outcome, Acquisition | SetAcquisition):
            raise AssertionError(outcome)
        if lacks_stats(command, outcome):
            stats = yield from self.stats(command.request.pool_name)
            if isinstance(outcome, Acquisition):
                return replace(outcome, stats=stats, expired=expired)
            with_stats = tuple(replace(each, stats=stats) for each in outcome.acquisitions)
            outcome = replace(outcome, acquisitions=with_stats)
        return replace(outcome, expired=expired)

    def look_back(self, pool_names: Iterable[str]) -> Program[None]:
        """Re-date the leases of pools if the clock went back, unless this was done just now."""
        due = self.looks.due(pool_names)
        if due:
            yield from _unfailing(
                redating.redate_leases(self.schema, due), "leases could not be re-dated"
            )

    # Waiting

    def serve(self) -> Program[None]:
        """Say that this process is there, and grant the tickets whose turn it is."""
        process, waiters = self.room.process, self.room.queued()
        begun = time.monotonic()
        if begun >= self.room.beats_at:
            yield Query(waiting.beat_statement(self.schema), {"own_process": process})
            self.room.beats_at = begun + waiting.BEAT_S
            begun = time.monotonic()
        query = Query(serve_statement(self.schema), {**origin(), "own_process": process})
        answers = answers_of((yield query))
        yield from self._pass_on(answers, begun)
        for answer in answers:
            if answer.outcome == "LeaseExpired":
                self._tell_expired(answer, waiters)
        served = answers[-1]
        if served.expires_at is not None:
            seconds = (served.expires_at - served.decided_at).total_seconds()
            pause = seconds if seconds > 0 else waiting.OVERDUE_S
            self.room.look_again(time.monotonic() + pause)
        waiters = [each for each in waiters if not each.told.done()]
        known = {each.lease_id for each in waiters}
        if served.number != len(waiters):
            begun = time.monotonic()
            rows: Rows = yield Query(
                waiting.tickets_statement(self.schema), {"own_process": process}
            )
            known = {row["lease_id"] for row in rows}
        for waiter in waiters:
            if waiter.lease_id in known:
                waiter.known_at = begun
            else:
                waiter.tell(waiting.LOST)
        yield from self.look_back(each.command.request.pool_name for each in waiters)

    def _tell_expired(self, answer: Answer, waiters: Sequence[waiting.Waiter]) -> None:
        """Let a waiting caller report a lease of its pool that was taken back meanwhile."""
        for waiter in waiters:
            if waiter.command.request.pool_name == answer.pool_name:
                waiter.expired.append(answer.ended_lease())
                return

    def wake(self) -> Program[None]:
        """Grant or offer what has become free to those who wait, if anybody does."""
        rows: Rows = yield Query(waiting.waited_for_statement(self.schema), {})
        for row in rows:
            yield from self.take_back(row["pool_id"], with_stats=False)

    def freeing(self, program: Program[T]) -> Program[T]:
        """Return the program, and then offer what it may have made free."""
        outcome = yield from program
        yield from _unfailing(self.wake(), NOT_WOKEN)
        return outcome

    def _pass_on(self, answers: Sequence[Answer], begun: float) -> Program[None]:
        """Tell those who wait what was decided for them beside the commands of a statement."""
        news = waiting.News.of(answers)
        own = str(self.room.process)
        gone: list[Release] = []
        grants: dict[waiting.Waiter, list[Answer]] = {}
        for lease_id, granted in news.grants.items():
            first, *others = self.room.waiters_of(lease_id) or (None,)
            if first is not None:
                grants.setdefault(first, []).extend(granted)
                for other in others:
                    other.tell(waiting.LOST)  # It asks again, under the same id.
            elif not self.room.was_served(lease_id):  # Else it asked for itself meanwhile.
                leases = [each.lease(LeaseStatus.ACTIVE) for each in granted]
                gone += [Release(ReleaseRequest(lease, CANCELLED)) for lease in leases]
        for waiter, granted in grants.items():
            outcome = acquire_outcome(waiter.command, granted, self.vault)
            waiter.tell(waiting.Granted(outcome, begun))
        for lease_id in news.looks:
            for waiter in self.room.waiters_of(lease_id):
                waiter.tell(waiting.LOOKS)
        if own in news.woken:
            self.room.look_again()
        elsewhere = [each for each in news.woken if each != own]
        yield from _unfailing(self._hand_on(gone, elsewhere), NOT_WOKEN)

    def _hand_on(self, gone: Sequence[Release], others: Sequence[str]) -> Program[None]:
        """Release what was granted to callers who have gone, and wake other processes."""
        if gone:
            yield from self.carry_out(gone)
        if others:
            yield waiting.wake_query(others)

    def finish_release(
        self, command: Release, first: CommandOutcome | None = None
    ) -> Program[ReleaseResult]:
        """Carry out a release alone, starting from its outcome in a batch if there is one."""
        outcome, expired = yield from self._clear_obstacle(command, first, attempts=3)
        if not isinstance(outcome, Returned):
            error = DatabaseError(
                f"lease {command.lease_id} is still active: the database has neither released it "
                "nor taken it back; release it again",
                lease_id=command.lease_id,
            )
            raise _with_expired(error, expired)
        return result_of(command.request, replace(outcome, expired=expired))

    def _clear_obstacle(
        self, command: Command, outcome: CommandOutcome | None, attempts: int | None = None
    ) -> Program[tuple[CommandOutcome, tuple[EndedLease, ...]]]:
        """Repeat a command until it is settled. Return its outcome and all leases it expired.

        It waits for locks of others in the same transaction in which the command then
        runs. Attempts that expired leases do not count towards ``attempts``.
        """
        expired: list[EndedLease] = []
        for attempt in count():
            if attempt or outcome is None:
                wait = isinstance(outcome, Unsettled) and outcome.why == "locked"
                (outcome,) = yield from self.carry_out((command,), wait=wait)
            expired += expired_of(outcome)
            if not isinstance(outcome, Unsettled) or outcome.why == "none":
                return outcome, tuple(expired)
            if attempts is not None and not outcome.expired:
                attempts -= 1
                if attempts < 0:
                    return outcome, tuple(expired)
        raise AssertionError

    def _lease_one(self, proxy_id: UUID, consumer: str, duration: float) -> Program[Lease]:
        while True:
            row = yield from self.current(proxy_id)
            request = AcquireRequest(row["pool_name"], consumer, duration)
            run = Run(
                row["pool_name"],
                SelectorStrategy.FIRST_AVAILABLE.value,
                "availability.proxy_id = ($5 ->> 0)::uuid",
                json.dumps([str(proxy_id)]),
                kind=ONE,
            )
            command = Acquire(request, run, (made_lease_id(),), has_own_ids=False)
            outcome, _ = yield from self._clear_obstacle(command, None)
            if isinstance(outcome, Acquisition) and outcome.lease is not None:
                return outcome.lease
            row = yield from self.current(proxy_id)
            if isinstance(outcome, Unsettled):
                yield from self.look_back([row["pool_name"]])
                raise ProxyUnavailableError.because(
                    proxy_id, row["status"], row["holders"], row["rests_until"]
                )

    def _find(
        self, pool_name: str, asked: SelectorStrategy | None, filters: ProxyFilters | None
    ) -> Program[Proxy | None]:
        pool = yield from self.pool_by_name(pool_name)
        if pool is None:
            return None
        selector = asked or pool.selector or SelectorStrategy.FIRST_AVAILABLE
        filter_shape = filtering.filter_shape_of(filters)
        values = {**filtering.values_of(filters), **origin(), "pool_id": pool.id, "target": None}
        if filters is None or not filters.requires_python():
            rows = yield Query(finding.find_statement(self.schema, selector, filter_shape), values)
            return reading.proxy_from_row(rows[0], self.vault) if rows else None
        for_page = finding.page_statement(self.schema, selector, filter_shape, by_id=False)
        offset, size = 0, FIRST_PAGE
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
            offset, size = offset + size, min(2 * size, LARGEST_PAGE)


def _is_leased_out(outcome: Any) -> bool:
    """Return whether an acquisition missed for leases that others hold."""
    missed = isinstance(outcome, Acquisition | SetAcquisition)
    return missed and outcome.miss_reason in LEASED_OUT


def _unfailing(program: Program[None], failed: str) -> Program[None]:
    """Return the program, with its errors logged: what is before it has been committed.

    Who waits also looks without being woken, and a lease that nobody holds runs out.
    """
    try:
        yield from program
    except (psycopg.Error, PharoxError) as error:
        logger.warning("pharox.waiting.failed: %s: %s", failed, error)


def _with_expired(error: PharoxError, expired: Sequence[EndedLease]) -> PharoxError:
    """Add the leases that expired before an error to the error."""
    error.data["expired"] = error.__dict__["expired"] = expired
    return error
