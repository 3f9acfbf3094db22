"""Lease proxies: one, a set of them, or a given one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

from ...errors import ProxyNotFoundError, ProxyUnavailableError
from ...events import AcquireMissed, CursorMoved, LeaseAcquired, SessionBound
from ...events.attribution import attributed_to
from ...models import (
    DefaultSeconds,
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
    check_selector,
)
from ...models.ids import made_lease_id
from ..requests import (
    LEASED_OUT,
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    SetAcquisition,
)
from ..validation import check_granted, granted_and_ended, too_few_granted
from . import sessions
from .candidates import candidates, without_kept
from .outcomes import is_troubled
from .pool_index import PoolIndex
from .registry import consumer_id, end_bans
from .release import expire
from .renewal import redate_leases
from .sessions import Choice
from .state import State, lease_from_row
from .waiting import Queue, Ticket, Told


def acquire(
    state: State, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> Acquisition | SetAcquisition | Ticket:
    """Lease a proxy or a set, or record why too few were free. The caller has expired due leases.

    A request that waits gets a ticket if what it needs may become free.
    """
    ids = ids_of(request)
    if granted := _granted_before(state, request, ids, now):
        return _answer(request, granted)
    choice = _choose(state, request, now)
    if len(choice.proxy_ids) >= needed_by(request):
        return _answer(request, _grant_all(state, request, choice, ids, now))
    if request.wait_seconds and _may_wait(state, request, now):
        return state.queues.take_ticket(request, state.pool_ids[request.pool_name], now)
    return _missed(state, request, now, len(choice.proxy_ids))


def serve_queue(state: State, pool_id: UUID, now: datetime) -> None:
    """Grant the tickets of a pool whose turn it is. The caller has expired due leases.

    What a set in front lacks is kept for it from those behind it.
    """
    queue = state.queues.of(pool_id)
    if queue is None:
        return
    queue.kept.clear()
    unfit: list[tuple[Any, ...]] = []
    for ticket in list(queue.tickets):
        request = ticket.request
        distinct = getattr(request, "distinct", True)
        sticky = getattr(request, "sticky", None)
        wish = request.filters, request.target, needed_by(request), distinct, sticky
        if wish in unfit and not ids_of(request):
            continue
        try:
            proxy_ids = _serve(state, queue, ticket, now)
        except Exception as error:  # Its predicate raises, or it may not have its lease.
            _tell(state, ticket, error)
        else:
            if not proxy_ids:
                unfit.append(wish)


def _serve(state: State, queue: Queue, ticket: Ticket, now: datetime) -> list[UUID]:
    """Grant a ticket if it can be. Return the proxies that fit it."""
    request, ids = ticket.request, ids_of(ticket.request)
    if granted := _granted_before(state, request, ids, now):
        _tell(state, ticket, _answer(request, granted))
        return [each.lease.proxy_id for each in granted if each.lease is not None]
    choice = _choose(state, request, now)
    proxy_ids = choice.proxy_ids
    if 0 < len(proxy_ids) < needed_by(request):
        if _has_room(state, request, only_healthy=True):
            queue.kept.update(proxy_ids)
    elif proxy_ids:
        waited_ms = ticket.waited_ms(now)
        with attributed_to(ticket.attribution):
            granted = _grant_all(state, request, choice, ids, now, waited_ms)
        _tell(state, ticket, replace(_answer(request, granted), waited_ms=waited_ms))
    return proxy_ids


def _tell(state: State, ticket: Ticket, outcome: Any) -> None:
    state.queues.leave(ticket)
    ticket.told.set_result(Told(outcome, time.monotonic()))


def _answer(
    request: AcquireRequest | AcquireSetRequest, granted: Sequence[Acquisition]
) -> Acquisition | SetAcquisition:
    """Return the outcome of a request that was granted these leases."""
    if isinstance(request, AcquireRequest):
        return granted[0]
    if len(granted) < request.needed:
        raise too_few_granted(request, granted)
    return SetAcquisition(tuple(granted), selector=granted[0].selector)


def end_wait(state: State, ticket: Ticket, now: datetime) -> Told:
    """End the wait of a caller whose time is over: a miss, unless it was granted."""
    if not state.queues.leave(ticket):
        return ticket.told.result()
    request, free = ticket.request, 0
    if isinstance(request, AcquireSetRequest):
        free = len(_choose(state, request, now, of_all=True).proxy_ids)
    return Told(_missed(state, request, now, free, ticket.waited_ms(now)), 0)


def _missed(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
    free: int,
    waited_ms: int | None = None,
) -> Acquisition | SetAcquisition:
    """Record a miss, and return the outcome that says why."""
    count, _ = _wanted(request)
    reason, stats = _miss(state, request, now, count=count, free=free, waited_ms=waited_ms)
    selector = _selector(state, request.pool_name, request.selector)
    if isinstance(request, AcquireRequest):
        return Acquisition(None, reason, stats, waited_ms=waited_ms, selector=selector)
    return SetAcquisition((), reason, free, stats, waited_ms=waited_ms, selector=selector)


def needed_by(request: AcquireRequest | AcquireSetRequest) -> int:
    """Return the minimum number of leases that a request needs."""
    return 1 if isinstance(request, AcquireRequest) else request.needed


def _wanted(request: AcquireRequest | AcquireSetRequest) -> tuple[int, bool]:
    """Return how many leases a request asks for, and whether of different proxies."""
    if isinstance(request, AcquireRequest):
        return 1, True
    return request.count, request.distinct


def _may_wait(state: State, request: AcquireRequest | AcquireSetRequest, now: datetime) -> bool:
    """Return whether what a request needs may become free."""
    pool_id = state.pool_ids.get(request.pool_name)
    reason = _reason(state, pool_id, request, now)
    return reason.may_pass and _has_room(state, request, only_healthy=False)


def _has_room(
    state: State, request: AcquireRequest | AcquireSetRequest, *, only_healthy: bool
) -> bool:
    """Return whether a pool could grant what a request needs if nothing were leased."""
    needed = needed_by(request)
    if needed == 1:
        return True
    pool_id = state.pool_ids[request.pool_name]
    pool, filters = state.pools[pool_id], request.filters
    matching = [
        each
        for each in pool.members
        if (not only_healthy or pool.is_healthy(each))
        and (filters is None or filters.matches(state.proxy(each)))
    ]
    if _wanted(request)[1]:
        return len(matching) >= needed
    capacities = (state.availability(pool_id, each).max_concurrency for each in matching)
    return sum(needed if each is None else each for each in capacities) >= needed


def create_lease(state: State, proxy: Proxy, consumer: str, duration_seconds: float) -> Lease:
    """Lease exactly this proxy."""
    check_duration(duration_seconds)
    check_name(consumer, "consumer")
    pool_id = state.pool_of_proxy.get(proxy.id)
    if pool_id is None:
        raise ProxyNotFoundError(f"Proxy {proxy.id} not found.", proxy_id=proxy.id)
    now = state.clock()
    end_bans(state, [pool_id], now)
    consumer_id(state, consumer, now=now)
    expire(state, [pool_id], now, with_stats=False)
    if proxy.id in state.drained:
        raise ProxyNotFoundError(f"Proxy {proxy.id} not found.", proxy_id=proxy.id)
    serve_queue(state, pool_id, now)
    pool, queue = state.pools[pool_id], state.queues.of(pool_id)
    offered = iter([proxy.id])
    if queue is not None:
        offered = without_kept(state, pool, offered, queue.kept, distinct=True)
    is_free = pool.is_leasable(proxy.id) and not pool.rests_until(proxy.id, now)
    if not is_free or next(offered, None) is None:
        raise _unavailable(state, pool_id, proxy.id, now)
    return _grant(state, pool_id, proxy.id, consumer, now, duration_seconds, made_lease_id(), {})


def find_available(
    state: State,
    pool_name: str,
    filters: ProxyFilters | None,
    selector: SelectorStrategy | None,
) -> Proxy | None:
    """Return the proxy that a selector offers next; ROUND_ROBIN moves its cursor."""
    check_name(pool_name, "pool")
    check_filters(filters)
    asked = None if selector is None else check_selector(selector)
    pool_id = state.pool_ids.get(pool_name)
    if pool_id is None:
        return None
    strategy = _selector(state, pool_name, asked)
    offered = candidates(state, state.pools[pool_id], strategy, filters, distinct=True)
    proxy_id = next(offered, None)
    if proxy_id is None:
        return None
    if strategy is SelectorStrategy.ROUND_ROBIN:
        state.append(CursorMoved, pool_id=pool_id, proxy_id=proxy_id)
    return state.proxy(proxy_id)


def _selector(state: State, pool_name: str, asked: SelectorStrategy | None) -> SelectorStrategy:
    """Return the selector to use: the one that was asked for, else the pool's, else the first."""
    if asked is not None:
        return asked
    of_pool = state.pool_default(pool_name, "selector")
    return SelectorStrategy(of_pool or SelectorStrategy.FIRST_AVAILABLE)


def _duration_s(state: State, request: AcquireRequest | AcquireSetRequest) -> float:
    """Return how long to lease, in seconds: what was asked for, else what the pool says."""
    seconds = request.duration_seconds
    if not isinstance(seconds, DefaultSeconds):
        return seconds
    return float(state.pool_default(request.pool_name, "lease_seconds") or seconds)


def ids_of(request: AcquireRequest | AcquireSetRequest) -> tuple[UUID, ...]:
    """Return the lease ids that the caller chose, if any."""
    if isinstance(request, AcquireSetRequest):
        return request.lease_ids or ()
    return () if request.lease_id is None else (request.lease_id,)


def is_granted(state: State, lease_id: UUID) -> bool:
    """Return whether a lease with this id was ever granted."""
    return lease_id in state.pool_of_lease or lease_id in state.pruned_ids


def _granted_before(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    ids: Iterable[UUID],
    now: datetime,
) -> list[Acquisition]:
    """Return the existing leases with these ids, if they were granted to this consumer."""
    leases = [_checked_lease(state, request, each, now) for each in ids if is_granted(state, each)]
    if not leases:
        return []
    pool_id = state.pool_ids.get(request.pool_name)
    wanted = request.with_stats and pool_id is not None
    stats = state.stats(pool_id, now) if wanted else None  # type: ignore[arg-type]
    return [Acquisition(lease, None, stats, is_new=False) for lease in leases]


def _checked_lease(
    state: State, request: AcquireRequest | AcquireSetRequest, lease_id: UUID, now: datetime
) -> Lease:
    if lease_id in state.pruned_ids:
        raise granted_and_ended(lease_id, "pruned")
    lease = state.lease(lease_id)
    check_granted(lease, request)
    if lease.status is not LeaseStatus.ACTIVE or lease.expires_at <= now:
        how = LeaseStatus.EXPIRED if lease.status is LeaseStatus.ACTIVE else lease.status
        raise granted_and_ended(lease.id, how.value)
    return lease.carry(state.leased_proxy(state.pool_of_lease[lease_id], lease.proxy_id))


def _choose(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
    *,
    of_all: bool = False,
) -> Choice:
    """Return the proxies to lease: those that are kept for who waits only ``of_all``."""
    if isinstance(request, AcquireRequest) and request.sticky is not None:
        selector = _selector(state, request.pool_name, request.selector)
        return sessions.choose(state, request, request.sticky, selector, now)
    count, distinct = _wanted(request)
    pool_id = state.pool_ids.get(request.pool_name)
    if pool_id is None:
        return Choice([])
    pool = state.pools[pool_id]
    asked = _selector(state, request.pool_name, request.selector), request.filters, request.target
    found = candidates(state, pool, *asked, distinct=distinct, count=count)
    queue = state.queues.of(pool_id)
    if queue is not None and queue.kept and not of_all:
        found = without_kept(state, pool, found, queue.kept, distinct=distinct)
    return Choice(list(islice(found, count)))


def _grant_all(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    choice: Choice,
    ids: Sequence[UUID],
    now: datetime,
    waited_ms: int | None = None,
) -> list[Acquisition]:
    """Lease these proxies in order, each with the next of the caller's ids if there are any."""
    pool_id = state.pool_ids[request.pool_name]
    request_fields = {
        **_request_fields(state, request),
        "own_id": bool(ids),
        "waited_ms": waited_ms,
    }
    if choice.is_own:
        request_fields["selector"] = None
    granted = []
    for place, proxy_id in enumerate(choice.proxy_ids):
        lease = _grant(
            state,
            pool_id,
            proxy_id,
            request.consumer_name,
            now,
            _duration_s(state, request),
            ids[place] if ids else made_lease_id(),
            request_fields,
        )
        stats = state.stats(pool_id, now) if request.with_stats else None
        selector = request_fields["selector"]
        granted.append(Acquisition(lease, None, stats, selector=selector))
        if choice.binding is not None:
            consumer, binding = request.consumer_name, choice.binding
            state.append(SessionBound, now, lease_id=lease.id, consumer=consumer, **binding)
    return granted


def _grant(
    state: State,
    pool_id: UUID,
    proxy_id: UUID,
    consumer: str,
    now: datetime,
    duration_seconds: float,
    lease_id: UUID,
    request_fields: dict[str, Any],
) -> Lease:
    """Append ``LeaseAcquired`` and return the lease."""
    before = state.current_state(pool_id, proxy_id)
    expires_at = now + timedelta(seconds=duration_seconds)
    state.append(
        LeaseAcquired,
        now,
        is_valid=True,
        pool_id=pool_id,
        proxy_id=proxy_id,
        lease_id=lease_id,
        consumer=consumer,
        consumer_id=state.rows["consumers"][(consumer,)].id,
        pool_name=state.pool_name(pool_id),
        expires_at=expires_at,
        before=before,
        after=before.with_leases(before.leases + 1),
        **request_fields,
    )
    state.pool_of_lease[lease_id] = pool_id
    state.pools[pool_id].hold(lease_id, proxy_id, expires_at)
    lease = lease_from_row(state.rows["leases"][lease_id, pool_id])
    return lease.carry(state.leased_proxy(pool_id, proxy_id))


def _miss(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
    *,
    count: int = 1,
    free: int = 0,
    waited_ms: int | None = None,
) -> tuple[MissReason, PoolStatsSnapshot | None]:
    """Append ``AcquireMissed``. Return its reason, and the statistics after it."""
    pool_id = state.pool_ids.get(request.pool_name)
    reason = _reason(state, pool_id, request, now) if not free else MissReason.TOO_FEW
    state.append(
        AcquireMissed,
        now,
        is_valid=True,
        **({} if pool_id is None else {"pool_id": pool_id}),
        consumer=request.consumer_name,
        pool_name=request.pool_name,
        reason=reason,
        count=count,
        free=free,
        waited_ms=waited_ms,
        session_proxy_id=_bound_proxy(state, pool_id, request, now),
        **_request_fields(state, request),
    )
    if reason in LEASED_OUT:
        redate_leases(state, now)
    wanted = request.with_stats and pool_id is not None
    return reason, state.stats(pool_id, now) if wanted else None  # type: ignore[arg-type]


def _reason(
    state: State,
    pool_id: UUID | None,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
) -> MissReason:
    filters, target = request.filters, request.target
    if pool_id is None:
        return MissReason.UNKNOWN_POOL
    pool = state.pools[pool_id]
    if not pool.members:
        return MissReason.EMPTY_POOL
    if (reason := _reason_of_session(state, request, now)) is not None:
        return reason
    if target is not None and _is_any_free(state, pool, filters):
        troubled = is_troubled(state, pool_id, target)
        return MissReason.TARGET_TROUBLED if troubled else MissReason.COOLING_DOWN
    if filters is not None:
        return _reason_of_filters(state, pool, filters, now)
    leased_out = MissReason.AT_CAPACITY if pool.has_healthy() else MissReason.NONE_HEALTHY
    return MissReason.RESTING if pool.has_resting(now) else leased_out


def _reason_of_session(
    state: State, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> MissReason | None:
    """Return why a request got nothing, if that is due to sticky sessions."""
    if not isinstance(request, AcquireRequest) or request.sticky is None:
        return None
    return sessions.reason(state, request, request.sticky, now)


def _bound_proxy(
    state: State,
    pool_id: UUID | None,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
) -> UUID | None:
    """Return the proxy that the key of a request is bound to, if it has one that is."""
    sticky = getattr(request, "sticky", None)
    if pool_id is None or sticky is None:
        return None
    return sessions.bound_proxy(state, pool_id, sticky.key, now)


def _is_any_free(state: State, pool: PoolIndex, filters: ProxyFilters | None) -> bool:
    """Return whether a proxy is free that fits, if it were for no target."""
    order = SelectorStrategy.FIRST_AVAILABLE
    return next(candidates(state, pool, order, filters, distinct=True), None) is not None


def _reason_of_filters(
    state: State, pool: PoolIndex, filters: ProxyFilters, now: datetime
) -> MissReason:
    matching = [i for i in pool.members if filters.matches(state.proxy(i))]
    if not matching:
        return MissReason.NO_MATCH
    if any(pool.is_leasable(each) and pool.rests_until(each, now) for each in matching):
        return MissReason.RESTING
    healthy = any(pool.is_healthy(proxy_id) for proxy_id in matching)
    return MissReason.AT_CAPACITY if healthy else MissReason.NONE_HEALTHY


def _request_fields(state: State, request: AcquireRequest | AcquireSetRequest) -> dict[str, Any]:
    """Return the fields of an event that describe the request."""
    filters, sticky = request.filters, getattr(request, "sticky", None)
    return {
        "selector": _selector(state, request.pool_name, request.selector),
        "filters": None if filters is None else filters.recorded(),
        "predicate": filters is not None and filters.requires_python(),
        "target": request.target,
        "session": sticky and sticky.key,
    }


def _unavailable(
    state: State, pool_id: UUID, proxy_id: UUID, now: datetime
) -> ProxyUnavailableError:
    redate_leases(state, now)
    holders = sorted(row.consumer_name for row in state.held_rows(pool_id, proxy_id))
    status = state.current_state(pool_id, proxy_id).status
    rests_until = state.pools[pool_id].rests_until(proxy_id, now)
    return ProxyUnavailableError.because(proxy_id, status, holders, rests_until)
