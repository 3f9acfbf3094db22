"""Lease proxies that a predicate accepts: Python evaluates it page by page.

The first pass is in the selector's order and skips locked proxies. The second pass is over
the whole pool by id and waits for locks. It decides a miss, unless a free proxy was found and
another caller took it: then both passes are repeated. A predicate may be slow, so
this never runs in a batch that others wait for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast
from uuid import UUID

from ...models import MissReason, Proxy, ProxyFilters, ProxyPool, SelectorStrategy
from ...models.ids import NIL, following
from ..requests import (
    LEASED_OUT,
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    SetAcquisition,
)
from . import filtering, finding, reading
from .appending import origin
from .batch import DUE, TRY, Acquire, Queued, Run, Settled, Unsettled, command_of, for_target
from .commands import Commands
from .driver import Program, Rows
from .finding import FIRST_PAGE, LARGEST_PAGE
from .sql import Query
from .vault import Vault

_GIVEN = (
    "availability.proxy_id IN "
    "(SELECT id::uuid FROM jsonb_array_elements_text($5 -> 0) AS given (id))"
)
"""The condition that a proxy is one of those that were found."""


@dataclass
class Seen:
    """The findings of a pass so far; ``free`` is how many leases could be granted."""

    run: Run
    any_row: bool = False
    matched: bool = False
    healthy: bool = False
    resting: bool = False
    cooling: bool = False
    troubled: bool = False
    free: int = 0

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
                self.cooling |= row["cooling"]
                self.troubled |= row["troubled"]
                if row["leasable"]:
                    free.append(proxy.id)
                    self.free += self._room(proxy)
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
            return MissReason.RESTING
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
    needed = max(command.run.needs, 1)
    expired: list[EndedLease] = []
    while True:
        pool = yield from commands.pool_by_name(request.pool_name)
        if pool is None:
            return (yield from commands.finish_acquisition(command))
        command = _selected(command, pool)
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
                found = yield from commands.finish_acquisition(command, outcome)
                return replace(found, expired=(*expired, *found.expired))
        if seen.free < needed:
            break
    reason = MissReason.TOO_FEW if seen.free else seen.reason()
    if not seen.any_row:
        total = yield Query(reading.pool_size_statement(commands.schema), {"pool_id": pool.id})
        reason = MissReason.NO_MATCH if total else MissReason.EMPTY_POOL
    if waits and reason not in (MissReason.NO_MATCH, MissReason.EMPTY_POOL):
        return Queued(tuple(expired))
    return (yield from _missed(commands, pool.id, command, reason, seen.free, expired))


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
    condition, arguments = for_target(_GIVEN, [list(map(str, proxy_ids))], command.request.target)
    run = command.run._replace(condition=condition, arguments=json.dumps(arguments), kind=TRY)
    return replace(command, run=run)


def _missed(
    commands: Commands,
    pool_id: UUID,
    command: Acquire,
    reason: MissReason,
    free: int,
    expired: Sequence[EndedLease],
) -> Program[Acquisition | SetAcquisition]:
    request = command.request
    details = {**json.loads(command.run.details or "{}"), "reason": reason.value}
    if isinstance(request, AcquireSetRequest):
        details |= {"count": request.count, "free": free}
    values = {
        **origin(),
        "pool_id": pool_id,
        "pool_name": request.pool_name,
        "consumer": request.consumer_name,
        "selector": command.run.selector,
        "details": json.dumps(details),
    }
    yield Query(finding.record_miss_statement(commands.schema), values)
    if reason in LEASED_OUT:
        yield from commands.look_back([request.pool_name])
    stats = (yield from commands.stats(request.pool_name)) if request.with_stats else None
    if isinstance(request, AcquireSetRequest):
        return SetAcquisition((), reason, free, stats, tuple(expired), selector=request.selector)
    return Acquisition(None, reason, stats, tuple(expired), selector=request.selector)
