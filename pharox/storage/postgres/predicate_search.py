"""Lease proxies that a predicate accepts: Python evaluates it page by page.

The first pass is in the selector's order and skips locked proxies. The second pass is over
the whole pool by id and waits for locks. It decides a miss, unless a free proxy was found and
another caller took it: then both passes are repeated. A predicate may be slow, so
this never runs in a batch that others wait for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import UUID

from ...models import MissReason, PoolMissed, Proxy, ProxyFilters, ProxyPool, SelectorStrategy
from ...models.ids import NIL, following
from ..requests import (
    LEASED_OUT,
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    SetAcquisition,
)
from . import filtering, finding, limits, moves, reading
from .appending import origin
from .batch import DUE, TRY, Acquire, Queued, Run, Settled, Unsettled, command_of, for_target
from .commands import Commands
from .driver import Program, Rows
from .finding import FIRST_PAGE, LARGEST_PAGE
from .sql import Query
from .vault import Vault


@dataclass
class Seen:
    """The findings of a pass so far; ``free`` is how many leases could be granted.

    ``free_ids`` are the proxies of these.
    """

    run: Run
    any_row: bool = False
    matched: bool = False
    healthy: bool = False
    resting: bool = False
    rotating: bool = False
    cooling: bool = False
    troubled: bool = False
    free: int = 0
    free_ids: list[UUID] = field(default_factory=list)

    def judge(self, rows: Rows, filters: ProxyFilters, vault: Vault) -> list[UUID]:
        """Evaluate a page. Return the matching free proxies in its order."""
        free = []
        self.any_row |= bool(rows)
        by_id = {row["id"]: row for row in rows}
        for proxy in reading.readable_proxies(rows, vault):
            if filters.matches(proxy):
                row = by_id[proxy.id]
                self.matched = True
                self.healthy |= row["healthy"]
                self.resting |= row["resting"]
                self.rotating |= row["rotating"]
                self.cooling |= row["cooling"]
                self.troubled |= row["troubled"]
                if row["leasable"]:
                    free.append(proxy.id)
                    self.free += self._room(proxy)
        self.free_ids += free
        return free

    def _room(self, proxy: Proxy) -> int:
        """Return how many leases of the request a free proxy can take."""
        if self.run.is_distinct:
            return 1
        wanted = max(self.run.needs, 1)
        if proxy.max_concurrency is None:
            return wanted
        return min(wanted, proxy.max_concurrency - proxy.current_leases)

    def reason(self) -> MissReason:
        """Return the reason for a miss, if nothing was free."""
        if not self.matched:
            return MissReason.NO_MATCH
        if self.cooling:
            return MissReason.TARGET_TROUBLED if self.troubled else MissReason.COOLING_DOWN
        if self.resting:
            return MissReason.ROTATING if self.rotating else MissReason.RESTING
        return MissReason.AT_CAPACITY if self.healthy else MissReason.NONE_HEALTHY


def acquire(
    commands: Commands,
    request: AcquireRequest | AcquireSetRequest,
    *,
    command: Acquire | None = None,
    waits: bool = False,
) -> Program[Acquisition | SetAcquisition | Queued]:
    """Lease a proxy or a set of them, or record a miss.

    Parameters
    ----------
    command:
        The request as a command, if it has been converted already.
    waits:
        Whether not to record a miss, but return that it waits, if something may become free.
    """
    command = command or cast("Acquire", command_of(request))
    pools: list[ProxyPool] = []
    moved: dict[str, MissReason] = {}
    for name in request.pools:
        pool = yield from commands.pool_by_name(name)
        if pool is None:
            reason = yield from moves.moved_reason(commands.schema, name)
            if reason is None or not request.fallback:
                return (yield from commands.finish_acquisition(command))
            moved[name] = reason
        pools.append(pool or ProxyPool(id=NIL, name=name))
    expired: list[EndedLease] = []
    misses: list[_Miss] = []
    for pool in pools:
        missed_in = tuple(miss.passed for miss in misses)
        if pool.name in moved:
            passed_over = _for_pool(command, pool, missed_in)
            misses.append(_Miss(passed_over, pool, moved[pool.name], 0, {}))
            continue
        found = yield from _acquire_in(commands, _for_pool(command, pool, missed_in), pool, expired)
        if not isinstance(found, _Miss):
            return found.having_missed(missed_in)
        misses.append(found)
    if waits and any(miss.reason.may_pass for miss in misses if miss.pool.name not in moved):
        return Queued(tuple(expired))
    return (yield from _missed(commands, misses, expired))


@dataclass(frozen=True)
class _Miss:
    """What a search in one pool came to that found nothing; ``free`` is how many were too few."""

    command: Acquire
    pool: ProxyPool
    reason: MissReason
    free: int
    limit: dict[str, Any]

    @property
    def passed(self) -> PoolMissed:
        """The pool and the reason, as events have them."""
        known = {"pool_id": self.pool.id, "pool_name": self.pool.name, "reason": self.reason}
        return PoolMissed(**known, **self.limit)


def _for_pool(command: Acquire, pool: ProxyPool, missed_in: Sequence[PoolMissed]) -> Acquire:
    """Return an acquisition for one of its pools, whose events say in which others it missed."""
    if not command.request.fallback:
        return _selected(command, pool)
    request = replace(command.request, pool_name=pool.name, fallback=())
    run = command.run._replace(pool_name=pool.name)
    if missed_in:
        missed = [each.model_dump(mode="json", exclude_none=True) for each in missed_in]
        details = {**json.loads(run.details or "{}"), "fallback_from": missed}
        run = run._replace(details=json.dumps(details))
    also_in = command.request.pools
    return _selected(replace(command, request=request, run=run, also_in=also_in), pool)


def _acquire_in(
    commands: Commands, command: Acquire, pool: ProxyPool, expired: list[EndedLease]
) -> Program[Acquisition | SetAcquisition | _Miss]:
    """Lease a proxy or a set of one pool, if there is one. ``expired`` gets what has run out."""
    needed = max(command.run.needs, 1)
    while True:
        # Only the second pass, which waits for locks, can decide that there is no match.
        for wait in (False, True):
            seen = Seen(command.run)
            outcome, more = yield from _begin(commands, command)
            expired += more
            if outcome is None:
                outcome, more = yield from _look_through(
                    commands, command, pool.id, seen, wait=wait
                )
                expired += more
            if outcome is not None:
                finished = yield from commands.finish_acquisition(command, outcome)
                found = cast("Acquisition | SetAcquisition", finished)
                return replace(found, expired=(*expired, *found.expired))
        limit = yield from _limit(commands, pool, command, seen)
        if seen.free < needed or limit:
            break
    reason = MissReason.TOO_FEW if seen.free else seen.reason()
    if limit:
        reason = MissReason.LIMIT_REACHED
    if not seen.any_row:
        total = yield Query(reading.pool_size_statement(commands.schema), {"pool_id": pool.id})
        reason = MissReason.NO_MATCH if total else MissReason.EMPTY_POOL
    return _Miss(command, pool, reason, 0 if limit else seen.free, limit)


def _limit(
    commands: Commands, pool: ProxyPool, command: Acquire, seen: Seen
) -> Program[dict[str, Any]]:
    """Return the limit that a request has reached, if it has one: of a proxy if any was free."""
    if pool.limits is None or not seen.matched:
        return {}
    request, needed = command.request, max(command.run.needs, 1)
    asked = request.pool_name, request.consumer_name, request.target, needed
    found = yield from limits.reached(commands.schema, *asked, proxy_ids=seen.free_ids)
    is_of_proxy = bool(found) and found["limit"].per in ("proxy", "pair")
    return {} if is_of_proxy and seen.free < needed else found


def _begin(
    commands: Commands, command: Acquire
) -> Program[tuple[Settled | None, Sequence[EndedLease]]]:
    """Run the acquisition with no candidates before looking at proxies.

    This registers the consumer, expires due leases, and finds leases that were granted
    before with the caller's ids, on proxies that a pass would not find free.
    """
    expired: list[EndedLease] = []
    while True:
        (outcome,) = yield from commands.carry_out(
            (_with_candidates(command, ()),), wait=command.has_own_ids
        )
        if not isinstance(outcome, Unsettled):
            return outcome, expired
        expired += outcome.expired
        if len(outcome.expired) < DUE:
            return None, expired


def _look_through(
    commands: Commands, command: Acquire, pool_id: UUID, seen: Seen, *, wait: bool
) -> Program[tuple[Settled | None, Sequence[EndedLease]]]:
    """Make one pass over a pool. Return its outcome, if any, and the leases that expired."""
    request, filters = command.request, cast("ProxyFilters", command.request.filters)
    filter_shape = filtering.filter_shape_of(filters)
    page = finding.page_statement(commands.schema, request.selector, filter_shape, by_id=wait)
    values = {**filtering.values_of(filters), "pool_id": pool_id, "target": request.target}
    place: dict[str, Any] = {"offset": 0, "from_id": NIL, "page_size": FIRST_PAGE}
    expired: list[EndedLease] = []
    free: list[UUID] = []
    while True:
        rows: Rows = yield Query(page, {**values, **place})
        found = seen.judge(rows, filters, commands.vault)
        free += found
        is_last = len(rows) < place["page_size"]
        # Lease as soon as enough are found: others may take them while later pages are read.
        if free and (is_last or (found and len(free) >= len(command.lease_ids))):
            (outcome,) = yield from commands.carry_out(
                (_with_candidates(command, free),), wait=wait
            )
            if not isinstance(outcome, Unsettled):
                return outcome, expired
            expired += outcome.expired
            if command.run.needs == 0:
                free = []
        if is_last:
            return None, expired
        place["offset"] += len(rows)
        place["from_id"] = following(rows[-1]["id"])
        place["page_size"] = min(2 * place["page_size"], LARGEST_PAGE)


def _selected(command: Acquire, pool: ProxyPool) -> Acquire:
    """Return an acquisition with the selector of its pool, if it was asked without one."""
    if command.request.selector is not None:
        return command
    selector = pool.selector or SelectorStrategy.FIRST_AVAILABLE
    request = replace(command.request, selector=selector)
    return replace(command, request=request, run=command.run._replace(selector=selector.value))


def _with_candidates(command: Acquire, proxy_ids: Sequence[UUID]) -> Acquire:
    """Return an acquisition that is limited to some proxies and records no miss."""
    condition, arguments = for_target(
        limits.GIVEN, [list(map(str, proxy_ids))], command.request.target
    )
    run = command.run._replace(condition=condition, arguments=json.dumps(arguments), kind=TRY)
    return replace(command, run=run)


def _missed(
    commands: Commands, misses: Sequence[_Miss], expired: Sequence[EndedLease]
) -> Program[Acquisition | SetAcquisition]:
    """Record one miss, of the first pool, with the reasons of the others."""
    first, *others = misses
    command, reason, free = first.command, first.reason, first.free
    request = command.request
    details = {**json.loads(command.run.details or "{}"), "reason": reason.value}
    limit = first.limit
    if limit:
        details |= {**limit, "limit": limit["limit"].model_dump(exclude_none=True)}
    if others:
        details["fallback"] = [
            miss.passed.model_dump(mode="json", exclude_none=True) for miss in others
        ]
    if isinstance(request, AcquireSetRequest):
        details |= {"count": request.count, "free": free}
    values = {
        **origin(),
        "pool_id": first.pool.id,
        "pool_name": request.pool_name,
        "consumer": request.consumer_name,
        "selector": command.run.selector,
        "details": json.dumps(details),
    }
    yield Query(finding.record_miss_statement(commands.schema), values)
    if reason in LEASED_OUT:
        yield from commands.look_back([miss.pool.name for miss in misses])
    wants_stats = request.with_stats and first.pool.id != NIL
    stats = (yield from commands.stats(request.pool_name)) if wants_stats else None
    if isinstance(request, AcquireSetRequest):
        found: Acquisition | SetAcquisition = SetAcquisition(
            (), reason, free, stats, tuple(expired), **limit
        )
    else:
        found = Acquisition(None, reason, stats, tuple(expired), **limit)
    found = replace(found, selector=request.selector)
    return found.having_missed([miss.passed for miss in misses]) if others else found
