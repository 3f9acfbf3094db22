"""Run many commands of leasing in one call of the schema's function, and read its answer.

    requests ──> runs of similar consecutive requests ──> one statement ──> an outcome for each

The outcome of a command that a batch cannot finish without waiting is :class:`Unsettled`.
Its caller finishes it alone (:mod:`.commands`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast
from uuid import UUID

from ...errors import PharoxError
from ...events.attribution import current_attribution
from ...models import (
    DefaultSeconds,
    GatewayExit,
    Lease,
    LeasedProxy,
    LeaseStatus,
    LimitReached,
    MissReason,
    PoolMissed,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyProtocol,
    SelectorStrategy,
    Sticky,
)
from ...models.building import built
from ...models.ids import made_lease_id
from ..requests import (
    MAX_WAITING,
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    ReleaseRequest,
    ReleaseResult,
    SetAcquisition,
    assign_expired,
    batch_order,
    log_late_release,
    queue_full,
)
from ..validation import check_granted, granted_and_ended, too_few_granted
from .filtering import condition_text, filter_shape_of, values_of
from .sql import Query, Statement, call_of, numbered, quoted
from .vault import Place, Vault

DUE = 1000
"""How many leases one statement expires (``due_leases_v1``). More need several statements."""

EACH, SET, TRY, ONE = "each", "set", "try", "one"
"""The kinds of runs: single requests, a set, without recording a miss, one given proxy."""

WAIT, WAIT_SET, LOOK = "wait", "wait_set", "look"
"""The kinds of runs that get a ticket: one request or a set, and what looks for itself."""


class Run(NamedTuple):
    """The parameters that consecutive similar requests share."""

    pool_name: str
    selector: str | None
    condition: str | None = None
    arguments: str | None = None
    details: str | None = None
    kind: str = EACH
    needs: int = 0
    is_distinct: bool = False


@dataclass(frozen=True, slots=True)
class Acquire:
    """An acquisition of one lease or a set, with its attribution.

    ``ticket_ids`` are those of its tickets in the pools that it falls back to. If one of several
    pools is tried alone, ``also_in`` are the others, where its ids may have been granted before.
    """

    request: AcquireRequest | AcquireSetRequest
    run: Run
    lease_ids: tuple[UUID, ...]
    has_own_ids: bool
    attribution: tuple[str, str | None] = field(default_factory=current_attribution)
    ticket_ids: tuple[UUID, ...] = ()
    also_in: tuple[str, ...] = ()

    @property
    def lease_id(self) -> UUID:
        """The id of the first lease, which is reported if the outcome is unknown."""
        return self.lease_ids[0]

    @property
    def name(self) -> str:
        """The storage's method that takes such a request."""
        return "acquire_lease" if isinstance(self.request, AcquireRequest) else "acquire_set"


@dataclass(frozen=True, slots=True)
class Release:
    """A release, with its attribution."""

    request: ReleaseRequest
    attribution: tuple[str, str | None] = field(default_factory=current_attribution)

    @property
    def lease_id(self) -> UUID:
        """The id of the lease."""
        return self.request.lease.id


@dataclass(frozen=True, slots=True)
class Returned:
    """The state of a lease after a release. ``status`` is None if there is no such lease."""

    status: LeaseStatus | None
    ended_at: datetime | None
    is_released: bool
    stats: PoolStatsSnapshot | None
    revoke_reason: str | None = None
    expired: Sequence[EndedLease] = ()


@dataclass(frozen=True, slots=True)
class Unsettled:
    """The outcome of a command that must be repeated, with the leases that it expired.

    ``why`` is "locked" (repeat after waiting), "again" (repeat at once), or "none" (nothing
    was free).
    """

    why: str
    expired: Sequence[EndedLease] = ()


@dataclass(frozen=True, slots=True)
class Queued:
    """The outcome of an acquisition that has a ticket, with the leases that it expired."""

    expired: Sequence[EndedLease] = ()


Command = Acquire | Release
Settled = Acquisition | SetAcquisition | Returned | Queued | PharoxError
CommandOutcome = Settled | Unsettled


def command_of(request: AcquireRequest | AcquireSetRequest | ReleaseRequest) -> Command:
    """Convert a request to a command that a batch can carry out."""
    if isinstance(request, ReleaseRequest):
        return Release(request)
    if isinstance(request, AcquireRequest):
        ids = (made_lease_id(),) if request.lease_id is None else (request.lease_id,)
        return Acquire(request, run_of(request), ids, request.lease_id is not None)
    made = request.lease_ids or tuple(made_lease_id() for _ in range(request.count))
    return Acquire(request, run_of(request), made, request.lease_ids is not None)


def runs_alone(request: AcquireRequest | AcquireSetRequest | ReleaseRequest) -> bool:
    """Return whether a request is carried out in a commit of its own, and looks for itself."""
    return is_sticky(request) or has_predicate(request) or falls_back(request)


def falls_back(request: AcquireRequest | AcquireSetRequest | ReleaseRequest) -> bool:
    """Return whether a request tries several pools."""
    return not isinstance(request, ReleaseRequest) and bool(request.fallback)


def is_sticky(request: AcquireRequest | AcquireSetRequest | ReleaseRequest) -> bool:
    """Return whether a request is for a sticky session."""
    return isinstance(request, AcquireRequest) and request.sticky is not None


def has_predicate(request: AcquireRequest | AcquireSetRequest | ReleaseRequest) -> bool:
    """Return whether Python must evaluate proxies for a request, which is too slow for a batch."""
    if isinstance(request, ReleaseRequest) or request.filters is None:
        return False
    return request.filters.requires_python()


@lru_cache(maxsize=512)
def _plain_run(pool_name: str, selector: SelectorStrategy | None) -> Run:
    return Run(pool_name, None if selector is None else selector.value)


def run_of(request: AcquireRequest | AcquireSetRequest) -> Run:
    """Return the parameters that a request shares with similar ones."""
    run = _plain_run(request.pool_name, request.selector)
    if request.filters is not None or request.target is not None or is_sticky(request):
        condition, arguments = conditions(request.filters, request.target)
        details = json.dumps(request_details(request))
        run = run._replace(condition=condition, arguments=arguments, details=details)
    if isinstance(request, AcquireSetRequest):
        run = run._replace(kind=SET, needs=request.needed, is_distinct=request.distinct)
    return run


FOR_TARGET = "/*target*/"
"""The end of a condition by which ``matching_v1`` passes over proxies that rest for a target.

The target is the last argument.
"""


def conditions(filters: ProxyFilters | None, target: str | None) -> tuple[str | None, str | None]:
    """Return filters as SQL and its arguments. Python evaluates predicates afterwards."""
    text, values = condition_text(filter_shape_of(filters)), [*values_of(filters).values()]
    text, values = for_target(text, values, target)
    return text, json.dumps(values)


def for_target(
    condition: str | None, arguments: list[Any], target: str | None
) -> tuple[str | None, list[Any]]:
    """Return a condition and its arguments for a target, if there is one."""
    if target is None:
        return condition, arguments
    return f"({condition or 'true'}) {FOR_TARGET}", [*arguments, target]


def request_details(request: AcquireRequest | AcquireSetRequest) -> dict[str, Any]:
    """Return the fields that an event records about what was asked for."""
    details: dict[str, Any] = {}
    if request.filters is not None:
        details["filters"] = request.filters.recorded()
        details["predicate"] = request.filters.requires_python()
    if request.target is not None:
        details["target"] = request.target
    if isinstance(request, AcquireRequest) and request.sticky is not None:
        details["session"] = request.sticky.key
    return details


_PARAMETERS = {
    "own_process": "uuid",
    "max_waiting": "integer",
    "frees": "boolean",
    "serves": "boolean",
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
_DEFAULTS = {"default_durations": "double precision[]"}


_ONE = {
    "own_process": "uuid",
    "own_slot": "smallint",
    "with_stats": "boolean",
    "actor": "text",
    "correlation_id": "text",
}
_ACQUIRE_ONE = _ONE | {
    "pool_name": "text",
    "selector": "text",
    "lease_id": "uuid",
    "consumer": "text",
    "duration": "double precision",
    "default_duration": "double precision",
}
_ACQUIRE_FOR_TARGET = _ACQUIRE_ONE | {"target": "text"}
_RELEASE_ONE = _ONE | {"lease_id": "uuid", "reason": "text"}
_ACQUIRE_STICKY = {
    "own_process": "uuid",
    "max_waiting": "integer",
    "own_slot": "smallint",
    "with_stats": "boolean",
    "actor": "text",
    "correlation_id": "text",
    "pool_name": "text",
    "selector": "text",
    "lease_id": "uuid",
    "own_id": "boolean",
    "consumer": "text",
    "duration": "double precision",
    "default_duration": "double precision",
    "filters": "text",
    "arguments": "jsonb",
    "target": "text",
    "details": "jsonb",
    "key": "text",
    "seconds": "double precision",
    "requires": "boolean",
    "slides": "boolean",
    "shares": "boolean",
    "waits": "boolean",
}
_ACQUIRE_FALLBACK = {
    "own_process": "uuid",
    "max_waiting": "integer",
    "own_slot": "smallint",
    "with_stats": "boolean",
    "actor": "text",
    "correlation_id": "text",
    "pool_names": "text[]",
    "selector": "text",
    "needs": "integer",
    "is_distinct": "boolean",
    "asked_ids": "uuid[]",
    "own_id": "boolean",
    "consumer": "text",
    "duration": "double precision",
    "default_duration": "double precision",
    "filters": "text",
    "arguments": "jsonb",
    "target": "text",
    "details": "jsonb",
    "key": "text",
    "seconds": "double precision",
    "requires": "boolean",
    "slides": "boolean",
    "shares": "boolean",
    "ticket_ids": "uuid[]",
    "looks": "boolean",
}
_WAIT_FALLBACK = {
    "chosen_ids": "uuid[]",
    "pool_names": "text[]",
    "selector": "text",
    "filters": "text",
    "arguments": "jsonb",
    "target": "text",
    "key": "text",
    "requires": "boolean",
    "shares": "boolean",
    "wanted": "integer",
    "consumer": "text",
}
_WAIT_STICKY = {
    "chosen_ids": "uuid[]",
    "pool_name": "text",
    "selector": "text",
    "filters": "text",
    "arguments": "jsonb",
    "target": "text",
    "key": "text",
    "requires": "boolean",
    "shares": "boolean",
    "consumer": "text",
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
    host: str | None = None
    port: int = 0
    protocol: str = ""
    credential_id: UUID | None = None
    secret: bytes | None = None
    exit: dict[str, Any] | None = None
    rotates: bool | None = None
    pool_selector: str | None = None
    revoke_reason: str | None = None
    limit: LimitReached | None = None
    retry_after_seconds: float | None = None

    def selector(self, asked: SelectorStrategy | None) -> SelectorStrategy:
        """Return the selector that was used for a request."""
        of_pool = self.pool_selector or SelectorStrategy.FIRST_AVAILABLE
        return asked or SelectorStrategy(of_pool)

    def proxy(self, vault: Vault) -> LeasedProxy | None:
        """Return the proxy of the granted lease in this row."""
        if self.host is None:  # It was removed meanwhile.
            return None
        credentials = None
        if self.credential_id is not None:
            place = Place(self.credential_id, self.pool_id, self.proxy_id)
            credentials = partial(vault.open, self.secret, place)
        protocol = ProxyProtocol(self.protocol)
        address = protocol, self.host, self.port
        return LeasedProxy(*address, credentials, self.gateway_exit, rotates=bool(self.rotates))

    @property
    def gateway_exit(self) -> GatewayExit | None:
        """The exit of the granted lease in this row, if its proxy is a template."""
        return None if self.exit is None else built(GatewayExit, self.exit)

    def lease(self, status: LeaseStatus, target: str | None = None) -> Lease:
        """Return the lease in this row. It needs no validation: it was validated when recorded."""
        return built(
            Lease,
            {
                "id": self.lease_id,
                "proxy_id": self.proxy_id,
                "consumer_id": self.consumer_id,
                "pool_id": self.pool_id,
                "pool_name": self.pool_name,
                "consumer_name": self.consumer,
                "status": status,
                "acquired_at": self.acquired_at.astimezone(UTC),
                "expires_at": self.expires_at.astimezone(UTC),
                "released_at": self.ended_at and self.ended_at.astimezone(UTC),
                "fencing_token": self.fencing_token,
                "target": target,
                "exit": self.gateway_exit,
            },
        )

    def passed(self) -> PoolMissed:
        """Return the pool in this row, in which a request got nothing."""
        reason = MissReason(self.reason or "")
        return PoolMissed(
            pool_id=self.pool_id,
            pool_name=self.pool_name,
            reason=reason,
            limit=self.limit,
            retry_after_seconds=self.retry_after_seconds,
        )

    def stats(self) -> PoolStatsSnapshot | None:
        """Return the pool's statistics, or None if they were not requested."""
        if self.total_proxies is None:  # not requested
            return None
        return built(
            PoolStatsSnapshot,
            {
                "pool_name": self.pool_name,
                "collected_at": self.decided_at.astimezone(UTC),
                "total_proxies": self.total_proxies,
                "active_proxies": self.active_proxies,
                "available_proxies": self.available_proxies,
                "leased_proxies": self.leased_proxies,
                "total_leases": self.total_leases,
            },
        )

    def ended_lease(self) -> EndedLease:
        """Return the expired lease in this row."""
        return EndedLease(self.lease(LeaseStatus.EXPIRED), self.stats())

    def revoked_lease(self) -> EndedLease:
        """Return the lease in this row, which was revoked for the row's reason."""
        lease = self.lease(LeaseStatus.REVOKED)
        lease.revoke_reason = self.reason
        return EndedLease(lease, self.stats(), self.reason)

    @property
    def is_late(self) -> bool:
        """Whether this is the answer to the release of a lease that was revoked."""
        return self.outcome == "ended" and self.reason == LeaseStatus.REVOKED


def answers_of(rows: Iterable[Sequence[Any]]) -> list[Answer]:
    """Convert the rows of a function's result to answers."""
    return [Answer(*row) for row in rows]


def unknown_consumers(answers: Iterable[Answer]) -> list[str]:
    """Return the consumers that are not registered. If there are any, nothing was done."""
    unknown = (each.consumer for each in answers if each.outcome == "unknown_consumer")
    return list(dict.fromkeys(unknown))


@lru_cache(maxsize=8)
def commands_statement(schema: str) -> Statement:
    """Return the statement that carries out a batch in which all is given."""
    return _granting(schema, "lease_commands_v3", _PARAMETERS)


@lru_cache(maxsize=8)
def defaulting_statement(schema: str) -> Statement:
    """Return the statement that carries out a batch with what its pools give in place of nulls."""
    parameters = _PARAMETERS | _DEFAULTS
    given = numbered(parameters)
    asked = ("run_ends", "run_pools", "run_selectors", "durations", "default_durations")
    defaults = f"{quoted(schema)}.with_defaults_v1({', '.join(given[name] for name in asked)})"
    used = given | {"run_selectors": "chosen.selectors", "durations": "chosen.durations"}
    values = ", ".join(used[name] for name in _PARAMETERS)
    call = f"{defaults} AS chosen, LATERAL {quoted(schema)}.lease_commands_v3({values})"
    return _with_proxies(schema, call, _deciding(schema, "lease_commands_v3", parameters))


@lru_cache(maxsize=8)
def acquire_statement(schema: str) -> Statement:
    """Return the statement that acquires one lease, with the effect of a batch of one."""
    return _granting(schema, "acquire_one_v3", _ACQUIRE_ONE)


@lru_cache(maxsize=8)
def target_statement(schema: str) -> Statement:
    """Return the statement that acquires one lease for a target."""
    return _granting(schema, "acquire_for_target_v1", _ACQUIRE_FOR_TARGET)


@lru_cache(maxsize=8)
def sticky_statement(schema: str) -> Statement:
    """Return the statement that acquires one lease for a sticky session."""
    return _granting(schema, "acquire_sticky_v2", _ACQUIRE_STICKY)


@lru_cache(maxsize=8)
def fallback_statement(schema: str) -> Statement:
    """Return the statement that acquires one lease or a set from the first pool that has it."""
    return _granting(schema, "acquire_fallback_v1", _ACQUIRE_FALLBACK)


@lru_cache(maxsize=8)
def release_statement(schema: str) -> Statement:
    """Return the statement that releases one lease, with the effect of a batch of one."""
    return _granting(schema, "release_one_v2", _RELEASE_ONE)


@lru_cache(maxsize=8)
def serve_statement(schema: str) -> Statement:
    """Return the statement that grants the tickets of this process whose turn it is."""
    parameters = {
        "own_process": "uuid",
        "own_slot": "smallint",
        "actor": "text",
        "correlation_id": "text",
    }
    return _granting(schema, "serve_v1", parameters)


def _granting(schema: str, function: str, parameters: Mapping[str, str]) -> Statement:
    """Return the call of a function that grants leases, with the proxy of each."""
    statement = _deciding(schema, function, parameters)
    return _with_proxies(schema, statement.text.decode().removeprefix("SELECT * FROM "), statement)


def _with_proxies(schema: str, call: str, statement: Statement) -> Statement:
    """Return a statement with the proxy of each lease, and the selector of its pool."""
    text = (
        "SELECT answer.*, proxy.*, "  # noqa: S608 - quoted
        "CASE WHEN answer.outcome IN ('LeaseAcquired', 'AcquireMissed') THEN ("
        f"SELECT pool.selector FROM {quoted(schema)}.pools AS pool "
        "WHERE pool.id = answer.pool_id) END AS pool_selector "
        f"FROM {call} AS answer "
        f"LEFT JOIN LATERAL {_leased_proxy(schema)} AS proxy "
        "ON answer.outcome IN ('LeaseAcquired', 'granted')"
    )
    return statement._replace(text=text.encode())


def _leased_proxy(schema: str) -> str:
    """Return the call for what the holder of a lease in ``answer`` needs."""
    return f"{quoted(schema)}.leased_proxy_v2(answer.pool_id, answer.proxy_id, answer.lease_id)"


def _deciding(schema: str, function: str, parameters: Mapping[str, str]) -> Statement:
    statement = call_of(schema, function, parameters)
    return statement._replace(columns=Answer._fields, writes=True, is_bare=True)


class Batch:
    """Several commands as one statement: releases first, then acquisitions in request order.

    ``process`` is the id under which this process has its tickets, if it has any.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        due_pools: Sequence[UUID] = (),
        *,
        process: UUID | None = None,
        with_stats: bool = False,
    ) -> None:
        self.commands = commands
        self._process = process
        self._with_stats = with_stats or any(each.request.with_stats for each in commands)
        self._due_pools = due_pools
        self._order = batch_order([each.request for each in commands])
        self._releases = [each.request for each in commands if isinstance(each, Release)]
        self._acquisitions = [each for each in commands if isinstance(each, Acquire)]

    def query(self, schema: str) -> Query:
        """Return the statement and its values, without the slot, which the connection adds."""
        if len(self.commands) == 1 and not self._due_pools:
            query = _single_query(schema, self.commands[0], self._process)
            if query is not None:
                return query
        acquisitions, releases = self._acquisitions, self._releases
        ends, runs = self._runs()
        # The function numbers the leases of all commands in execution order: releases first.
        sizes = [*(1 for _ in releases), *(len(each.lease_ids) for each in acquisitions)]
        by_command = [self.commands[place].attribution for place in self._order]
        by_number = [each for each, n in zip(by_command, sizes, strict=True) for _ in range(n)]
        actors, jobs = zip(*(by_number or [current_attribution()]), strict=True)
        durations = [_duration(each.request) for each in acquisitions for _ in each.lease_ids]
        values: dict[str, Any] = {
            "own_process": self._process,
            "max_waiting": MAX_WAITING,
            "frees": bool(releases or self._due_pools),
            "serves": False,
            "lease_id": self.commands[0].lease_id if len(self.commands) == 1 else None,
            "with_stats": self._with_stats,
            "due_pools": list(self._due_pools),
            "actors": list(actors),
            "correlation_ids": list(jobs),
            "released_ids": [request.lease.id for request in releases],
            "reasons": [request.reason for request in releases],
            "run_ends": ends,
            "run_kinds": [run.kind for run in runs],
            "run_needs": [run.needs for run in runs],
            "run_distinct": [run.is_distinct for run in runs],
            "run_pools": [run.pool_name for run in runs],
            "run_selectors": [run.selector for run in runs],
            "run_conditions": [run.condition for run in runs],
            "run_arguments": [run.arguments for run in runs],
            "run_details": [run.details for run in runs],
            "asked_ids": [lease_id for each in acquisitions for lease_id in each.lease_ids],
            "own_ids": [each.has_own_ids for each in acquisitions for _ in each.lease_ids],
            "asked_consumers": [
                each.request.consumer_name for each in acquisitions for _ in each.lease_ids
            ],
            "durations": durations,
        }
        if None not in durations and all(run.selector is not None for run in runs):
            return Query(commands_statement(schema), values)
        values["default_durations"] = [
            float(each.request.duration_seconds) for each in acquisitions for _ in each.lease_ids
        ]
        return Query(defaulting_statement(schema), values)

    def outcomes(self, given: Iterable[Answer], vault: Vault) -> list[CommandOutcome]:
        """Return the outcome of each command, in the order of ``commands``.

        ``vault`` decrypts the credentials of leased proxies when they are read.
        """
        answers: dict[int, Answer] = {}
        expired: dict[str, list[EndedLease]] = {}
        passed: list[PoolMissed] = []
        for answer in given:
            if answer.outcome == "passed":
                passed.append(answer.passed())
            elif answer.outcome == "LeaseExpired":
                expired.setdefault(answer.pool_name, []).append(answer.ended_lease())
            elif answer.number and answer.outcome != "ProxyRemoved":  # which was drained
                answers[answer.number] = answer
        outcomes: list[Any] = [None] * len(self.commands)
        pools: list[str | None] = [None] * len(self.commands)
        # The function numbered the leases of all commands in execution order.
        number = 0
        for place in self._order:
            command = self.commands[place]
            if isinstance(command, Release):
                number += 1
                pools[place] = answers[number].pool_name
                outcomes[place] = _release_outcome(command.request, answers[number])
                continue
            first, number = number + 1, number + len(command.lease_ids)
            own = [answers[n] for n in range(first, number + 1) if n in answers]
            pools[place] = command.run.pool_name
            outcomes[place] = acquire_outcome(command, own, vault)
            if passed and isinstance(outcomes[place], Acquisition | SetAcquisition):
                outcomes[place] = outcomes[place].having_missed(passed)
        for name, ended_leases in expired.items():
            places = [place for place in self._order if pools[place] == name]
            assign_expired(outcomes, places or self._order, ended_leases)
        return outcomes

    def _runs(self) -> tuple[list[int], list[Run]]:
        ends: list[int] = []
        runs: list[Run] = []
        number = 0
        for command in self._acquisitions:
            run = command.run
            number += len(command.lease_ids)
            if runs and runs[-1] == run and run.kind == EACH:
                ends[-1] = number
            else:
                ends.append(number)
                runs.append(run)
        return ends, runs


def _single_query(schema: str, command: Command, process: UUID | None) -> Query | None:
    """Return the faster statement for a command without filters, own ids and round-robin."""
    actor, correlation_id = command.attribution
    request = command.request
    values: dict[str, Any] = {
        "own_process": process,
        "with_stats": request.with_stats,
        "actor": actor,
        "correlation_id": correlation_id,
        "lease_id": command.lease_id,
    }
    if isinstance(command, Release):
        values["reason"] = command.request.reason
        return Query(release_statement(schema), values)
    run, asked = command.run, command.request
    if falls_back(asked) or is_sticky(asked):
        return _alone_query(schema, command, values)
    if command.has_own_ids or run.selector == SelectorStrategy.ROUND_ROBIN.value:
        return None
    if run.kind != EACH or asked.filters is not None:
        return None
    values["pool_name"] = run.pool_name
    values["selector"] = run.selector
    values["consumer"] = asked.consumer_name
    values["duration"] = _duration(asked)
    values["default_duration"] = float(asked.duration_seconds)
    if asked.target is not None:
        return Query(target_statement(schema), {**values, "target": asked.target})
    return Query(acquire_statement(schema), values)


def _alone_query(schema: str, command: Acquire, values: Mapping[str, Any]) -> Query:
    """Return the statement for several pools, or for a sticky session."""
    if falls_back(command.request):
        return Query(fallback_statement(schema), {**values, **_fallback_values(command)})
    return Query(sticky_statement(schema), {**values, **_sticky_values(command)})


def _duration(request: AcquireRequest | AcquireSetRequest) -> float | None:
    """Return how long a lease was asked for, None if that is left to its pool."""
    seconds = request.duration_seconds
    return None if isinstance(seconds, DefaultSeconds) else float(seconds)


def _sticky_values(command: Acquire) -> dict[str, Any]:
    """Return what the statement for a sticky session needs beside what every one needs."""
    request = cast("AcquireRequest", command.request)
    return {
        **_alone_values(command, request.sticky),
        "pool_name": request.pool_name,
        "waits": command.run.kind == LOOK,
    }


def _fallback_values(command: Acquire) -> dict[str, Any]:
    """Return what the statement for several pools needs beside what every one needs."""
    request = command.request
    waits = command.run.kind == LOOK
    return {
        **_alone_values(command, getattr(request, "sticky", None)),
        "pool_names": list(request.pools),
        "needs": command.run.needs,
        "is_distinct": command.run.is_distinct,
        "asked_ids": list(command.lease_ids),
        "ticket_ids": list(command.ticket_ids) if waits else None,
        "looks": waits and has_predicate(request),
    }


def _alone_values(command: Acquire, sticky: Sticky | None) -> dict[str, Any]:
    """Return what both statements need of a request, and of its sticky session if it has one."""
    request = command.request
    filters, arguments = conditions(request.filters, None)
    return {
        "max_waiting": MAX_WAITING,
        "selector": command.run.selector,
        "own_id": command.has_own_ids,
        "consumer": request.consumer_name,
        "duration": _duration(request),
        "default_duration": float(request.duration_seconds),
        "filters": filters,
        "arguments": arguments,
        "target": request.target,
        "details": command.run.details,
        "key": sticky and sticky.key,
        "seconds": sticky and float(sticky.seconds),
        "requires": sticky is not None and sticky.policy == "require",
        "slides": sticky is not None and sticky.sliding,
        "shares": sticky is not None and sticky.shared,
    }


def acquire_outcome(command: Acquire, answers: Sequence[Answer], vault: Vault) -> CommandOutcome:
    """Return the outcome of an acquisition whose leases have these answers."""
    request = command.request
    if answers[0].outcome in ("queued", "queue_full"):
        return Queued() if answers[0].outcome == "queued" else queue_full(request.pool_name)
    if any(answer.outcome in ("locked", "again", "none") for answer in answers):
        return Unsettled(answers[0].outcome)
    if answers[0].outcome == "granted" or answers[-1].outcome == "granted":
        known = [each for each in answers if each.outcome == "granted"]
        return _granted_before(command, known, vault)
    if answers[0].outcome == "AcquireMissed":
        reason = MissReason(answers[0].reason or "")
        stats = answers[0].stats() if request.with_stats else None
        selector = answers[0].selector(request.selector)
        free = answers[0].free or 0
        limit: dict[str, Any] = {
            "limit": answers[0].limit,
            "retry_after_seconds": answers[0].retry_after_seconds,
        }
        return (
            Acquisition(None, reason, stats, selector=selector, **limit)
            if isinstance(request, AcquireRequest)
            else SetAcquisition((), reason, free, stats, selector=selector, **limit)
        )
    granted = tuple(
        Acquisition(
            answer.lease(LeaseStatus.ACTIVE, request.target).carry(answer.proxy(vault)),
            None,
            answer.stats() if request.with_stats else None,
            selector=answer.selector(request.selector),
        )
        for answer in answers
    )
    first = granted[0]
    if isinstance(request, AcquireSetRequest):
        return SetAcquisition(granted, selector=first.selector)
    return first


def _granted_before(command: Acquire, answers: Sequence[Answer], vault: Vault) -> Settled:
    """Return the existing leases with the request's ids, or an error if it may not have them."""
    request, granted = command.request, []
    for answer in answers:
        if answer.reason == "pruned":
            return granted_and_ended(answer.lease_id, "pruned")
        lease = answer.lease(LeaseStatus.ACTIVE, request.target).carry(answer.proxy(vault))
        try:
            check_granted(lease, request, also_in=command.also_in)
        except PharoxError as error:
            return error
        if answer.reason != "active":
            return granted_and_ended(lease.id, answer.reason or "")
        granted.append(Acquisition(lease, None, None, is_new=False))
    if isinstance(request, AcquireRequest):
        return granted[0]
    if len(granted) < request.needed:
        return too_few_granted(request, granted)
    return SetAcquisition(tuple(granted))


def _release_outcome(request: ReleaseRequest, answer: Answer) -> Returned | Unsettled:
    ended_at = answer.ended_at and answer.ended_at.astimezone(UTC)
    match answer.outcome:
        case "LeaseReleased":
            stats = answer.stats() if request.with_stats else None
            return Returned(LeaseStatus.RELEASED, ended_at, True, stats)
        case "ended":
            status = LeaseStatus(answer.reason or "")
            return Returned(status, ended_at, False, None, answer.revoke_reason)
        case "unknown":
            return Returned(None, None, False, None)
        case _:
            return Unsettled(answer.outcome)


def lacks_stats(command: Acquire, outcome: Acquisition | SetAcquisition) -> bool:
    """Return whether requested statistics need a separate query.

    For a lease that was granted before, or to a ticket by somebody who did not request them, the
    pool's current statistics are returned.
    """
    parts = (outcome,) if isinstance(outcome, Acquisition) else outcome.acquisitions
    return command.request.with_stats and any(
        not each.is_new or (each.lease is not None and each.stats is None) for each in parts
    )


def expired_of(outcome: CommandOutcome) -> Sequence[EndedLease]:
    """Return the leases that expired before an outcome or an error."""
    if isinstance(outcome, PharoxError):
        expired: Sequence[EndedLease] = outcome.data.get("expired", ())
        return expired
    return outcome.expired


def result_of(request: ReleaseRequest, returned: Returned) -> ReleaseResult:
    """Return the result of a release, and copy the recorded end to the caller's lease."""
    lease = request.lease
    if returned.status is not None:
        lease.status, lease.released_at = returned.status, returned.ended_at
        lease.revoke_reason = returned.revoke_reason
    if not returned.is_released:
        log_late_release(lease, None if returned.status is None else lease)
        return ReleaseResult(None, returned.expired)
    return ReleaseResult(EndedLease(lease, returned.stats, request.reason), returned.expired)


@lru_cache(maxsize=8)
def wait_statement(schema: str) -> Statement:
    """Return the statement that waits for the locks of a command whose outcome was "locked"."""
    parameters = {
        "chosen_ids": "uuid[]",
        "released_id": "uuid",
        "pool_name": "text",
        "selector": "text",
        "condition": "text",
        "arguments": "jsonb",
        "wanted": "integer",
        "consumer": "text",
        "target": "text",
    }
    return call_of(schema, "wait_v3", parameters)._replace(columns=("waited",))


@lru_cache(maxsize=8)
def _wait_sticky_statement(schema: str) -> Statement:
    return call_of(schema, "wait_sticky_v2", _WAIT_STICKY)._replace(columns=("waited",))


@lru_cache(maxsize=8)
def _wait_fallback_statement(schema: str) -> Statement:
    return call_of(schema, "wait_fallback_v1", _WAIT_FALLBACK)._replace(columns=("waited",))


def wait_query(schema: str, command: Command) -> Query:
    """Return the query that waits for all locks that a command needs, in locking order."""
    if isinstance(command, Release):
        return wait_for_release(schema, command.lease_id)
    run = command.run
    known: dict[str, Any] = {
        "chosen_ids": list(command.lease_ids) if command.has_own_ids else [],
        "wanted": max(run.needs, 1),
    }
    if falls_back(command.request):
        known |= _fallback_values(command)
        statement = _wait_fallback_statement(schema)
        return Query(statement, {name: known[name] for name in statement.names})
    if is_sticky(command.request):
        known |= _sticky_values(command)
        statement = _wait_sticky_statement(schema)
        return Query(statement, {name: known[name] for name in statement.names})
    values: dict[str, Any] = dict.fromkeys(wait_statement(schema).names)
    values |= known | {
        "pool_name": run.pool_name,
        "selector": run.selector,
        "condition": run.condition,
        "arguments": run.arguments,
        "consumer": command.request.consumer_name,
        "target": command.request.target,
    }
    return Query(wait_statement(schema), values)


def wait_for_release(schema: str, lease_id: UUID) -> Query:
    """Return the query that waits for all locks that are needed to end a lease."""
    values: dict[str, Any] = dict.fromkeys(wait_statement(schema).names)
    return Query(wait_statement(schema), values | {"chosen_ids": [], "released_id": lease_id})
