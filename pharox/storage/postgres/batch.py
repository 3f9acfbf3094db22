"""Commands of leasing, many at once: what the schema's function is asked, and what it answers.

    requests ──> runs of neighbours that ask alike ──> one statement ──> an outcome for each

What a batch cannot settle without waiting comes back :class:`Unsettled`; its caller goes
on alone (:mod:`.commands`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from ...attribution import current_attribution
from ...errors import PharoxError
from ...ids import uuid7
from ...models import Lease, LeaseStatus, MissReason, PoolStatsSnapshot, ProxyFilters
from ..requests import (
    AcquireRequest,
    Acquisition,
    EndedLease,
    ReleaseResult,
    copy_ending,
    log_late_release,
)
from ..validation import check_granted, granted_and_ended
from .filtering import condition_text, shape_of, values_of
from .sql import Query, Statement, quoted

EACH, SET, TRY, ONE = "each", "set", "try", "one"
"""The kinds of runs: each request for itself, all or none, without a miss, a certain proxy."""


class Run(NamedTuple):
    """What neighbours that ask alike have in common."""

    pool_name: str
    selector: str
    condition: str | None = None
    arguments: str | None = None
    details: str | None = None
    kind: str = EACH
    needs: int = 0
    is_distinct: bool = False


@dataclass(slots=True)
class Acquire:
    """A checked acquisition, with who asks."""

    request: AcquireRequest
    run: Run
    lease_id: UUID
    attribution: tuple[str, str | None] = field(default_factory=current_attribution)


@dataclass(slots=True)
class Release:
    """A checked release, with who asks."""

    lease: Lease
    reason: str | None
    with_stats: bool
    attribution: tuple[str, str | None] = field(default_factory=current_attribution)


class Returned(NamedTuple):
    """What a release came to: the lease as recorded, None if there is none of this id."""

    recorded: Lease | None
    is_released: bool
    stats: PoolStatsSnapshot | None
    expired: Sequence[EndedLease]


class Unsettled(NamedTuple):
    """A command that is to be asked again, and what was taken back on the way to that.

    ``why`` is "locked" (after a wait), "again" (at once), "unknown_consumer", or "none".
    """

    why: str
    expired: Sequence[EndedLease] = ()


Command = Acquire | Release
Outcome = Acquisition | Returned | Unsettled | PharoxError


def acquire_command(request: AcquireRequest) -> Acquire:
    """Return a request as a command that a batch can carry out."""
    return Acquire(request, run_of(request), request.lease_id or uuid7())


@lru_cache(maxsize=512)
def _plain_run(pool_name: str, selector: str) -> Run:
    return Run(pool_name, selector)


def run_of(request: AcquireRequest) -> Run:
    """Return what a request has in common with others that ask alike."""
    filters = request.filters
    if filters is None:
        return _plain_run(request.pool_name, request.selector.value)
    return Run(
        request.pool_name,
        request.selector.value,
        *conditions(filters),
        details=json.dumps(request_details(filters)),
    )


def conditions(filters: ProxyFilters) -> tuple[str | None, str | None]:
    """Return filters as SQL and its arguments: what a predicate lets through, Python decides."""
    shape = shape_of(filters)
    return condition_text(shape), json.dumps(list(values_of(filters).values()))


def request_details(filters: ProxyFilters | None) -> dict[str, Any]:
    """Return what an acquisition's event keeps of its filters."""
    if filters is None:
        return {}
    return {"filters": filters.recorded(), "predicate": filters.requires_python()}


_PARAMETERS = {
    "own_slot": "smallint",
    "with_stats": "boolean",
    "due_pools": "uuid[]",
    "actors": "text[]",
    "correlation_ids": "text[]",
    "released_ids": "uuid[]",
    "reasons": "text[]",
    "run_ends": "integer[]",
    "run_kinds": "text[]",
    "run_needs": "integer[]",
    "run_distinct": "boolean[]",
    "run_pools": "text[]",
    "run_selectors": "text[]",
    "run_conditions": "text[]",
    "run_arguments": "jsonb[]",
    "run_details": "jsonb[]",
    "asked_ids": "uuid[]",
    "own_ids": "boolean[]",
    "asked_consumers": "text[]",
    "durations": "double precision[]",
}


class Answer(NamedTuple):
    """A row of the function's answer; the type ``lease_answer`` of the schema."""

    number: int
    outcome: str
    lease_id: UUID
    pool_id: UUID
    pool_name: str
    proxy_id: UUID
    consumer_id: UUID
    consumer: str
    acquired_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    fencing_token: int
    reason: str | None
    free: int | None
    decided_at: datetime
    total_proxies: int
    active_proxies: int
    available_proxies: int
    leased_proxies: int
    total_leases: int

    def lease(self, status: LeaseStatus) -> Lease:
        """Return the lease that it is about; all of it was checked before it was recorded."""
        return Lease.model_construct(
            id=self.lease_id,
            proxy_id=self.proxy_id,
            consumer_id=self.consumer_id,
            pool_id=self.pool_id,
            pool_name=self.pool_name,
            consumer_name=self.consumer,
            status=status,
            acquired_at=self.acquired_at.astimezone(UTC),
            expires_at=self.expires_at.astimezone(UTC),
            released_at=self.ended_at and self.ended_at.astimezone(UTC),
            fencing_token=self.fencing_token,
        )

    def stats(self) -> PoolStatsSnapshot | None:
        """Return the pool's statistics, if they were asked for."""
        if self.total_proxies is None:  # They were not asked for.
            return None
        return PoolStatsSnapshot.model_construct(
            pool_name=self.pool_name,
            collected_at=self.decided_at.astimezone(UTC),
            total_proxies=self.total_proxies,
            active_proxies=self.active_proxies,
            available_proxies=self.available_proxies,
            leased_proxies=self.leased_proxies,
            total_leases=self.total_leases,
        )


@lru_cache(maxsize=8)
def commands_statement(schema: str) -> Statement:
    """Return the statement that carries out a batch."""
    given = ", ".join(f"${n}::{type_}" for n, type_ in enumerate(_PARAMETERS.values(), 1))
    text = f"SELECT * FROM {quoted(schema)}.lease_commands_v1({given})"  # noqa: S608 - quoted
    return Statement(
        text.encode(), tuple(_PARAMETERS), {}, Answer._fields, writes=True, is_bare=True
    )


class Batch:
    """Some commands as one statement: releases first, then acquisitions in the order of asking."""

    def __init__(
        self,
        commands: Sequence[Command],
        due_pools: Sequence[UUID] = (),
        *,
        with_stats: bool = False,
    ) -> None:
        self.commands = commands
        self._with_stats = with_stats
        self._releases = [c for c in commands if isinstance(c, Release)]
        self._acquisitions = [c for c in commands if isinstance(c, Acquire)]
        self._due_pools = due_pools

    def query(self, schema: str) -> Query:
        """Return the statement and its values; the slot is the connection's own."""
        ordered: list[Command] = [*self._releases, *self._acquisitions]
        attributions = [c.attribution for c in ordered] or [current_attribution()]
        ends, runs = self._runs()
        requests = [c.request for c in self._acquisitions]
        values = {
            "with_stats": self._with_stats
            or any(c.with_stats for c in self._releases)
            or any(request.with_stats for request in requests),
            "due_pools": list(self._due_pools),
            "actors": [actor for actor, _ in attributions],
            "correlation_ids": [job for _, job in attributions],
            "released_ids": [c.lease.id for c in self._releases],
            "reasons": [c.reason for c in self._releases],
            "run_ends": ends,
            "run_kinds": [run.kind for run in runs],
            "run_needs": [run.needs for run in runs],
            "run_distinct": [run.is_distinct for run in runs],
            "run_pools": [run.pool_name for run in runs],
            "run_selectors": [run.selector for run in runs],
            "run_conditions": [run.condition for run in runs],
            "run_arguments": [run.arguments for run in runs],
            "run_details": [run.details for run in runs],
            "asked_ids": [c.lease_id for c in self._acquisitions],
            "own_ids": [request.lease_id is not None for request in requests],
            "asked_consumers": [request.consumer_name for request in requests],
            "durations": [float(request.duration_seconds) for request in requests],
        }
        return Query(commands_statement(schema), values)

    def outcomes(self, rows: Iterable[Sequence[Any]]) -> list[Outcome]:
        """Return what each command came to, in the order in which they were given."""
        answers: dict[int, Answer] = {}
        expired: dict[int, list[EndedLease]] = {}
        for answer in map(Answer._make, rows):
            if answer.outcome == "LeaseExpired":
                ended = EndedLease(answer.lease(LeaseStatus.EXPIRED), answer.stats())
                expired.setdefault(answer.number, []).append(ended)
            else:
                answers[answer.number] = answer
        outcomes: dict[int, Outcome] = {}
        for number, release in enumerate(self._releases, 1):
            outcomes[id(release)] = _release_outcome(
                release, answers[number], expired.get(number, ())
            )
        for number, acquisition in enumerate(self._acquisitions, len(self._releases) + 1):
            outcomes[id(acquisition)] = _acquire_outcome(
                acquisition, answers[number], expired.get(number, ())
            )
        return [outcomes[id(command)] for command in self.commands]

    def expired(self, rows: Iterable[Sequence[Any]]) -> list[EndedLease]:
        """Return all that was taken back."""
        answers = map(Answer._make, rows)
        return [
            EndedLease(answer.lease(LeaseStatus.EXPIRED), answer.stats())
            for answer in answers
            if answer.outcome == "LeaseExpired"
        ]

    def _runs(self) -> tuple[list[int], list[Run]]:
        ends: list[int] = []
        runs: list[Run] = []
        for number, command in enumerate(self._acquisitions, 1):
            if runs and runs[-1] == command.run and command.run.kind == EACH:
                ends[-1] = number
            else:
                ends.append(number)
                runs.append(command.run)
        return ends, runs


def _acquire_outcome(
    command: Acquire, answer: Answer, expired: Sequence[EndedLease]
) -> Acquisition | Unsettled | PharoxError:
    request = command.request
    stats = answer.stats() if request.with_stats else None
    match answer.outcome:
        case "LeaseAcquired":
            return Acquisition(answer.lease(LeaseStatus.ACTIVE), None, stats, expired)
        case "AcquireMissed":
            return Acquisition(None, MissReason(answer.reason or ""), stats, expired)
        case "granted":
            return _granted_before(request, answer, expired)
        case _:
            return Unsettled(answer.outcome, expired)


def _granted_before(
    request: AcquireRequest, answer: Answer, expired: Sequence[EndedLease]
) -> Acquisition | PharoxError:
    """Return the lease that has the request's id already, or why it is not the caller's."""
    if answer.reason == "pruned":
        return granted_and_ended(answer.lease_id, "pruned", expired)
    lease = answer.lease(LeaseStatus.ACTIVE)
    try:
        check_granted(lease, request, expired)
    except PharoxError as error:
        return error
    if answer.reason != "active":
        return granted_and_ended(lease.id, answer.reason or "", expired)
    return Acquisition(lease, None, None, expired, is_new=False)


def _release_outcome(
    command: Release, answer: Answer, expired: Sequence[EndedLease]
) -> Returned | Unsettled:
    match answer.outcome:
        case "LeaseReleased":
            stats = answer.stats() if command.with_stats else None
            return Returned(answer.lease(LeaseStatus.RELEASED), True, stats, expired)
        case "ended":
            return Returned(answer.lease(LeaseStatus(answer.reason or "")), False, None, expired)
        case "unknown":
            return Returned(None, False, None, expired)
        case _:
            return Unsettled(answer.outcome, expired)


def result_of(command: Release, returned: Returned) -> ReleaseResult:
    """Return what a release came to; the caller's own lease ends as it is recorded."""
    lease, recorded, is_released, stats, expired = command.lease, *returned
    if not is_released:
        log_late_release(lease, recorded)
    copy_ending(recorded, lease)
    ended = EndedLease(lease, stats, command.reason) if is_released else None
    return ReleaseResult(ended, expired)


@lru_cache(maxsize=8)
def wait_statement(schema: str) -> Statement:
    """Return the statement that waits for what a command was answered "locked" for."""
    parameters = {
        "chosen_ids": "uuid[]",
        "released_id": "uuid",
        "pool_name": "text",
        "selector": "text",
        "condition": "text",
        "arguments": "jsonb",
        "wanted": "integer",
    }
    given = ", ".join(f"${n}::{type_}" for n, type_ in enumerate(parameters.values(), 1))
    text = f"SELECT {quoted(schema)}.wait_v1({given})"
    return Statement(text.encode(), tuple(parameters), {}, ("waited",))


def wait_query(schema: str, command: Command) -> Query:
    """Return what waits for all that a command needs, in the order of locks."""
    values: dict[str, Any] = dict.fromkeys(wait_statement(schema).names)
    if isinstance(command, Release):
        values |= {"chosen_ids": [], "released_id": command.lease.id}
    else:
        run = command.run
        values |= {
            "chosen_ids": [] if command.request.lease_id is None else [command.lease_id],
            "pool_name": run.pool_name,
            "selector": run.selector,
            "condition": run.condition,
            "arguments": run.arguments,
            "wanted": max(run.needs, 1),
        }
    return Query(wait_statement(schema), values)
