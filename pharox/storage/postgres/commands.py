"""The commands as programs, which yield queries and interpret their results.

This module has the commands of leasing. :mod:`.registry` registers pools and proxies,
:mod:`.health` records health checks, and :mod:`.lookups` only reads.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Iterable, Sequence
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
    SecretKeyError,
)
from ...models import (
    ApiToken,
    DueRotation,
    GatewayExit,
    Lease,
    LeaseStatus,
    Proxy,
    ProxyFilters,
    ProxySource,
    RotationAnswer,
    RotationClaims,
    SelectorStrategy,
    SourceStatus,
    TargetRules,
    check_duration,
    check_filters,
    check_name,
    check_selector,
    rule_target_of,
)
from ...models.ids import NIL, made_lease_id
from ..moving import MoveOrder
from ..places import PlaceRequest
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
    lease_id_of,
)
from ..sources import RefreshResult, SourceClaim, check_source
from ..validation import (
    check_action,
    check_claim,
    check_heirs,
    check_rotation,
    check_rules,
    check_session,
    check_token,
    check_token_id,
    check_within,
    id_from_text,
)
from . import (
    acting,
    api_tokens,
    filtering,
    finding,
    limits,
    moving,
    places,
    reading,
    redating,
    renewing,
    reporting,
    revoking,
    rotating,
    rotations,
    sticky,
    target_rules,
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
from .sources import SourceCommands
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

    def set_target_rules(self, rules: TargetRules) -> Program[bool]:
        """Say what answers of a target mean."""
        return target_rules.set_rules(self.schema, check_rules(rules))

    def unset_target_rules(self, target: str) -> Program[bool]:
        """Have the default rules hold for a target again."""
        return target_rules.unset_rules(self.schema, rule_target_of(target))

    def save_source(self, source: ProxySource) -> Program[bool]:
        """Add a source or change its settings."""
        return self._sources.save(check_source(source))

    def get_source(self, name: str) -> Program[ProxySource]:
        """Return the settings of a source with its secrets."""
        return self._sources.get(check_name(name, "source"))

    def remove_source(self, name: str) -> Program[bool]:
        """Remove a source. Return whether there was one."""
        return self._sources.remove(check_name(name, "source"))

    def list_sources(self, pool_name: str | None) -> Program[list[SourceStatus]]:
        """Return all sources, or those of a pool."""
        return self._sources.listed(None if pool_name is None else check_name(pool_name, "pool"))

    def claim_source(
        self, name: str, for_seconds: float, *, only_due: bool
    ) -> Program[SourceClaim | None]:
        """Claim a source to refresh it."""
        return self._sources.claim(check_name(name, "source"), for_seconds, only_due=only_due)

    def hold_source(self, claim: SourceClaim, for_seconds: float) -> Program[bool]:
        """Extend a claim. Return False if it was lost."""
        return self._sources.hold(claim, for_seconds)

    def finish_refresh(self, claim: SourceClaim, result: RefreshResult | None) -> Program[bool]:
        """Record a refresh and give the claim back."""
        return self._sources.finish(claim, result)

    def rotate_all_secrets(self) -> Program[int]:
        """Encrypt the secrets of all proxies and sources again with the first key."""
        rotated, failure = 0, None
        for rotate in (self.rotate_secrets, self._sources.rotate):
            try:
                rotated += yield from rotate()
            except SecretKeyError as error:  # The others no longer need the old key.
                failure = failure or error
        if failure is not None:
            raise failure
        return rotated

    @property
    def _sources(self) -> SourceCommands:
        return SourceCommands(self.schema, self.vault, self.pool_by_name)

    def add_api_token(self, token: ApiToken) -> Program[None]:
        """Record that a token was issued."""
        return api_tokens.add(self.schema, check_token(token))

    def withdraw_api_token(self, token_id: UUID | str) -> Program[bool]:
        """Record that a token was withdrawn."""
        return api_tokens.withdraw(self.schema, check_token_id(token_id))

    def place_pool(self, request: PlaceRequest) -> Program[bool]:
        """Record which ledger of a fleet a pool is in."""
        return places.place_pool(self.schema, request)

    def record_action(
        self, action: str, subject: str, reason: str, pool_id: UUID | None
    ) -> Program[None]:
        """Record that a person did something, and why."""
        return acting.record(self.schema, check_action(action, subject, reason), pool_id)

    def carry_out_move(self, order: MoveOrder) -> Program[Any]:
        """Carry out one step of a pool's move."""
        return moving.carry_out(self, order)

    def forget_session(self, pool_name: str, key: str) -> Program[UUID | None]:
        """End the binding of a sticky session's key."""
        check_session(pool_name, key)
        return sticky.forget_session(self.schema, pool_name, key)

    def inherit_session(self, pool_name: str, old: str, new: str) -> Program[None]:
        """Have one key take over the binding of another."""
        check_heirs(pool_name, old, new)
        return sticky.inherit_session(self.schema, pool_name, old, new)

    def begin_rotation(self, proxy_id: UUID, within_seconds: float | None) -> Program[None]:
        """Have a proxy rest until it has another exit."""
        within = check_within(within_seconds)
        return rotations.begin_rotation(self.schema, id_from_text(proxy_id) or NIL, within)

    def claim_rotations(
        self, proxy_ids: Collection[UUID] | None, seconds: float, most: int
    ) -> Program[RotationClaims]:
        """Claim links that are to be called now."""
        check_claim(seconds, most)
        return rotations.claim_rotations(self.schema, self.vault, proxy_ids, seconds, most)

    def answer_rotation(self, due: DueRotation, answer: RotationAnswer) -> Program[bool]:
        """Record what came of calling a link."""
        check_rotation(due, answer)
        return rotations.answer_rotation(self.schema, due, answer)

    def rotate_exit(self, lease_id: UUID) -> Program[GatewayExit]:
        """Have a lease take another exit of its gateway."""
        return rotating.rotate_exit(self.schema, lease_id_of(lease_id))

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
                answers = yield from limits.with_limits(self.schema, answers)
                yield from self._pass_on(answers, begun)
                outcomes = batch.outcomes(answers, self.vault)
                yield from self.look_back(
                    name
                    for command, outcome in zip(commands, outcomes, strict=True)
                    if isinstance(command, Acquire) and _is_leased_out(outcome)
                    for name in command.request.pools
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
            parts = (outcome,) if isinstance(outcome, Acquisition) else outcome.acquisitions
            names = (str(each.lease.pool_name) for each in parts if each.lease is not None)
            stats = yield from self.stats(next(names, command.request.pool_name))
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
        if served.number != sum(len(each.ticket_ids) for each in waiters):
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
        yield from self.look_back(name for each in waiters for name in each.command.request.pools)

    def _tell_expired(self, answer: Answer, waiters: Sequence[waiting.Waiter]) -> None:
        """Let a waiting caller report a lease of its pool that was taken back meanwhile."""
        for waiter in waiters:
            if answer.pool_name in waiter.command.request.pools:
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
                known = proxy_id, row["status"], row["holders"], row["rests_until"]
                found = yield from limits.reached(
                    self.schema, row["pool_name"], consumer, proxy_ids=(proxy_id,)
                )
                limit = found.get("limit")
                if limit is not None and limit.per == "proxy" and any(known[2:]):
                    limit = None
                raise ProxyUnavailableError.because(*known, limit=limit)

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
