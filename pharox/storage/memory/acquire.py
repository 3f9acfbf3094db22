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
    PoolMissed,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    SelectorStrategy,
    Sticky,
    check_duration,
    check_filters,
    check_name,
    check_selector,
    step_of,
    turns_after,
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
from . import exits, limits, rotations, sessions
from .budgets import UNBOUNDED
from .candidates import candidates, is_free, without_kept
from .fallback import Attempt, Missed, attempts, passed
from .moves import moved_reason
from .outcomes import is_troubled
from .pool_index import PoolIndex
from .prices import price_of
from .registry import consumer_id, end_bans
from .release import expire
from .renewal import redate_leases
from .sessions import Choice
from .state import State, lease_from_row
from .waiting import Queue, Ticket, Told

_WEIGHTED = SelectorStrategy.WEIGHTED


def acquire(
    state: State, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> Acquisition | SetAcquisition | Ticket:
    """Lease a proxy or a set, or record why too few were free. The caller has expired due leases.

    A request that waits gets a ticket if what it needs may become free.
    """
    ids = ids_of(request)
    if granted := _granted_before(state, request, ids, now):
        return _answer(request, granted)
    missed: list[Missed] = []
    for attempt in attempts(state, request, now):
        choice = _choose(state, attempt, now)
        if len(choice.proxy_ids) >= needed_by(request):
            granted = _grant_all(state, attempt.request, choice, ids, now, missed=missed)
            return _having_missed(state, request, _answer(request, granted), missed)
        missed.append(_missed_in(state, attempt, now, len(choice.proxy_ids)))
    if request.wait_seconds and any(_may_wait(state, miss) for miss in missed):
        asked = [miss.attempt.request.pool_name for miss in missed]
        names = [name for name in asked if name in state.pool_ids]
        return state.queues.take_ticket(request, names, [state.pool_ids[n] for n in names], now)
    return _missed(state, request, now, missed)


def serve_queue(state: State, pool_id: UUID, now: datetime) -> None:
    """Grant the tickets of a pool whose turn it is. The caller has expired due leases.

    What a set in front lacks is kept for it from those behind it.
    """
    queue = state.queues.of(pool_id)
    if queue is None:
        return
    queue.kept.clear()
    is_unlimited = limits.limits_of(state, pool_id) is None
    unfit: list[tuple[Any, ...]] = []
    for ticket in list(queue.tickets):
        request = ticket.request
        distinct = getattr(request, "distinct", True)
        sticky = getattr(request, "sticky", None)
        consumer = None if is_unlimited else request.consumer_name
        asked = request.filters, request.target, needed_by(request), distinct
        wish = *asked, sticky, consumer, request.pools
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
    missed: list[Missed] = []
    proxy_ids: list[UUID] = []
    for attempt in attempts(state, request, now):
        choice = _choose(state, attempt, now)
        proxy_ids = choice.proxy_ids
        if len(proxy_ids) >= needed_by(request):
            waited_ms = ticket.waited_ms(now)
            with attributed_to(ticket.attribution):
                granted = _grant_all(
                    state, attempt.request, choice, ids, now, waited_ms, missed=missed
                )
            answer = _having_missed(state, request, _answer(request, granted), missed)
            _tell(state, ticket, replace(answer, waited_ms=waited_ms))
            break
        if request.fallback:
            missed.append(_missed_in(state, attempt, now, len(proxy_ids)))
    # Of several pools it is not known which will grant it, so nothing is kept in any.
    is_short = 0 < len(proxy_ids) < needed_by(request) and not request.fallback
    if is_short and _has_room(state, request, only_healthy=True):
        queue.kept.update(proxy_ids)
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
    request, missed = ticket.request, []
    for attempt in attempts(state, request, now):
        free = 0
        if isinstance(request, AcquireSetRequest):
            free = len(_choose(state, attempt, now, of_all=True).proxy_ids)
        missed.append(_missed_in(state, attempt, now, free))
    return Told(_missed(state, request, now, missed, ticket.waited_ms(now)), 0)


def _missed_in(state: State, attempt: Attempt, now: datetime, free: int) -> Missed:
    """Return why a request got nothing in one pool, where ``free`` were too few."""
    pool_id = state.pool_ids.get(attempt.request.pool_name)
    reason = MissReason.TOO_FEW if free else _reason(state, pool_id, attempt.request, now)
    is_limited = reason is MissReason.LIMIT_REACHED
    limit = _limit(state, pool_id, attempt.request, now) if is_limited else {}
    return Missed(attempt, reason, free, limit)


def _having_missed(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    found: Acquisition | SetAcquisition,
    missed: list[Missed],
) -> Acquisition | SetAcquisition:
    """Return an outcome that says in which pools a request with a fallback got nothing."""
    return found.having_missed(passed(state, missed)) if request.fallback else found


def _missed(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
    missed: list[Missed],
    waited_ms: int | None = None,
) -> Acquisition | SetAcquisition:
    """Record one miss, of the first pool, and return the outcome that says why."""
    first, *others = missed
    asked, reason, free, limit = first.attempt.request, first.reason, first.free, first.limit
    stats = _miss(state, first, now, waited_ms, passed(state, others))
    selector = _selector(state, asked.pool_name, asked.selector)
    found: Acquisition | SetAcquisition = (
        Acquisition(None, reason, stats, waited_ms=waited_ms, selector=selector, **limit)
        if isinstance(request, AcquireRequest)
        else SetAcquisition(
            (), reason, free, stats, waited_ms=waited_ms, selector=selector, **limit
        )
    )
    return _having_missed(state, request, found, missed)


def needed_by(request: AcquireRequest | AcquireSetRequest) -> int:
    """Return the minimum number of leases that a request needs."""
    return 1 if isinstance(request, AcquireRequest) else request.needed


def _wanted(state: State, request: AcquireRequest | AcquireSetRequest) -> tuple[int, bool]:
    """Return how many leases a request asks for, and whether of different proxies."""
    if isinstance(request, AcquireRequest):
        return 1, True
    pool_id = state.pool_ids.get(request.pool_name)
    is_paced = pool_id is not None and limits.has_paced_proxies(state, pool_id)
    return request.count, request.distinct or is_paced


def _may_wait(state: State, miss: Missed) -> bool:
    """Return whether what a request lacks in one pool may become free."""
    is_here = miss.reason is not MissReason.POOL_MOVING
    may_pass = miss.reason.may_pass and is_here
    return may_pass and _has_room(state, miss.attempt.request, only_healthy=False)


def _has_room(
    state: State, request: AcquireRequest | AcquireSetRequest, *, only_healthy: bool
) -> bool:
    """Return whether a pool could grant what a request needs if nothing were leased."""
    needed = needed_by(request)
    if needed == 1:
        return True
    pool_id = state.pool_ids[request.pool_name]
    most = limits.most(state, pool_id, request.consumer_name, request.target, state.clock())
    if most < needed:
        return False
    pool, filters = state.pools[pool_id], request.filters
    matching = [
        each
        for each in pool.members
        if (not only_healthy or pool.is_healthy(each))
        and (filters is None or filters.matches(state.proxy(each)))
    ]
    if _wanted(state, request)[1]:
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
    is_leasable = pool.is_leasable(proxy.id) and not pool.rests_until(proxy.id, now)
    if is_leasable:
        _check_limits(state, pool_id, proxy.id, consumer, now)
    if not is_leasable or next(offered, None) is None:
        raise _unavailable(state, pool_id, proxy.id, now)
    return _grant(state, pool_id, proxy.id, consumer, now, duration_seconds, made_lease_id(), {})


def _check_limits(
    state: State, pool_id: UUID, proxy_id: UUID, consumer: str, now: datetime
) -> None:
    """Raise ProxyUnavailableError if a limit refuses a given proxy."""
    paced = limits.is_paced(state, pool_id, None, now)
    has_room = limits.room(state, pool_id, consumer, None, now) >= 1
    if has_room and (paced is None or not paced(proxy_id)):
        return
    found = limits.reached(state, pool_id, consumer, None, 1, now, is_free=proxy_id.__eq__)
    row = state.current_state(pool_id, proxy_id)
    limit = None if found is None else found.limit
    raise ProxyUnavailableError.because(proxy_id, row.status, (), limit=limit)


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
    pool = state.pools[pool_id]
    offered = candidates(state, pool, strategy, filters, distinct=True, is_unpaced=True)
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
    return lease.carry(state.leased_proxy(lease, state.pool_of_lease[lease_id]))


def _choose(state: State, attempt: Attempt, now: datetime, *, of_all: bool = False) -> Choice:
    """Return the proxies to lease: those that are kept for who waits only ``of_all``."""
    request = attempt.request
    pool_id = state.pool_ids.get(request.pool_name)
    if pool_id is None:
        return Choice([])
    room = _room(state, request, now)
    if room < needed_by(request):
        return Choice([])
    if isinstance(request, AcquireRequest) and request.sticky is not None:
        selector = _selector(state, request.pool_name, request.selector)
        choose = sessions.lend if attempt.lends else sessions.choose
        return choose(state, request, request.sticky, selector, now)
    count, distinct = _wanted(state, request)
    count = min(count, room)
    pool = state.pools[pool_id]
    asked = _selector(state, request.pool_name, request.selector), request.filters, request.target
    found = candidates(state, pool, *asked, distinct=distinct, count=count, now=now)
    queue = state.queues.of(pool_id)
    if queue is not None and queue.kept and not of_all:
        found = without_kept(state, pool, found, queue.kept, distinct=distinct)
    return Choice(list(islice(found, count)))


def _room(state: State, request: AcquireRequest | AcquireSetRequest, now: datetime) -> int:
    """Return how many leases the limits of a pool have room for."""
    pool_id = state.pool_ids.get(request.pool_name)
    if pool_id is None:
        return UNBOUNDED
    return limits.room(state, pool_id, request.consumer_name, request.target, now)


def _grant_all(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    choice: Choice,
    ids: Sequence[UUID],
    now: datetime,
    waited_ms: int | None = None,
    *,
    missed: list[Missed],
) -> list[Acquisition]:
    """Lease these proxies in order, each with the next of the caller's ids if there are any."""
    pool_id = state.pool_ids[request.pool_name]
    request_fields = {
        **_request_fields(state, request),
        "own_id": bool(ids),
        "waited_ms": waited_ms,
        "fallback_from": passed(state, missed),
    }
    if choice.is_own:
        request_fields["selector"] = None
    selector = request_fields["selector"]
    reached = state.pools[pool_id].turns_reached() if selector is _WEIGHTED else None
    granted = []
    for place, proxy_id in enumerate(choice.proxy_ids):
        turns = {} if reached is None else _turns(state, pool_id, proxy_id, reached)
        lease = _grant(
            state,
            pool_id,
            proxy_id,
            request.consumer_name,
            now,
            _duration_s(state, request),
            ids[place] if ids else made_lease_id(),
            request_fields | turns,
            request.filters,
            getattr(request, "sticky", None),
            binds=choice.binding is not None,
        )
        stats = state.stats(pool_id, now) if request.with_stats else None
        granted.append(Acquisition(lease, None, stats, selector=selector))
        if choice.binding is not None:
            consumer, binding = request.consumer_name, {**choice.binding, "exit": lease.exit}
            state.append(SessionBound, now, lease_id=lease.id, consumer=consumer, **binding)
    return granted


def _turns(state: State, pool_id: UUID, proxy_id: UUID, reached: dict[str, int]) -> dict[str, int]:
    """Return the turns in the event of a lease by WEIGHTED."""
    row, step = state.availability(pool_id, proxy_id), step_of(state.proxy_row(proxy_id).weight)
    turn, later = turns_after(proxy_id, row.next_turn, step, reached.get(row.status))
    return {"turn": turn, "next_turn": later}


def _grant(
    state: State,
    pool_id: UUID,
    proxy_id: UUID,
    consumer: str,
    now: datetime,
    duration_seconds: float,
    lease_id: UUID,
    request_fields: dict[str, Any],
    filters: ProxyFilters | None = None,
    sticky: Sticky | None = None,
    *,
    binds: bool = False,
) -> Lease:
    """Append ``LeaseAcquired`` and return the lease. With ``binds`` its key is bound by it."""
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
        **limits.recorded(state, pool_id),
        exit=exits.exit_for(
            state,
            state.proxy_row(proxy_id),
            lease_id,
            now,
            now + sticky.lasts if sticky is not None and binds else expires_at,
            filters,
            sticky,
        ),
        cost=price_of(state, pool_id, proxy_id, "cost_per_lease") or None,
        **request_fields,
    )
    state.pool_of_lease[lease_id] = pool_id
    state.pools[pool_id].hold(lease_id, proxy_id, expires_at)
    lease = lease_from_row(state.rows["leases"][lease_id, pool_id])
    return lease.carry(state.leased_proxy(lease, pool_id))


def _miss(
    state: State,
    missed: Missed,
    now: datetime,
    waited_ms: int | None,
    fallback: tuple[PoolMissed, ...],
) -> PoolStatsSnapshot | None:
    """Append ``AcquireMissed``. Return the statistics after it, if they were requested."""
    request, reason = missed.attempt.request, missed.reason
    pool_id = state.pool_ids.get(request.pool_name)
    count, _ = _wanted(state, request)
    state.append(
        AcquireMissed,
        now,
        is_valid=True,
        **({} if pool_id is None else {"pool_id": pool_id}),
        consumer=request.consumer_name,
        pool_name=request.pool_name,
        reason=reason,
        count=count,
        free=missed.free,
        waited_ms=waited_ms,
        session_proxy_id=_bound_proxy(state, pool_id, request, now),
        **missed.limit,
        fallback=fallback,
        **_request_fields(state, request),
    )
    if reason in LEASED_OUT:
        redate_leases(state, now)
    wanted = request.with_stats and pool_id is not None
    return state.stats(pool_id, now) if wanted else None  # type: ignore[arg-type]


def _limit(
    state: State,
    pool_id: UUID | None,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
) -> dict[str, Any]:
    """Return the limit that a request has reached, and in how many seconds time frees it."""
    if pool_id is None:
        return {}
    pool, required = state.pools[pool_id], sessions.required_proxy(state, pool_id, request, now)

    def fits(proxy_id: UUID) -> bool:
        return required in (None, proxy_id) and is_free(
            state, pool, proxy_id, request.filters, request.target, is_unpaced=True
        )

    asked = request.consumer_name, request.target, needed_by(request)
    found = limits.reached(state, pool_id, *asked, now, is_free=fits)
    if found is None:
        return {}
    at = found.frees_at
    seconds = None if at is None else (at - now).total_seconds()
    return {"limit": found.limit, "retry_after_seconds": seconds}


def _reason(
    state: State,
    pool_id: UUID | None,
    request: AcquireRequest | AcquireSetRequest,
    now: datetime,
) -> MissReason:
    filters, target = request.filters, request.target
    if pool_id is None:
        return moved_reason(state, request.pool_name) or MissReason.UNKNOWN_POOL
    pool = state.pools[pool_id]
    if not pool.members:
        return MissReason.EMPTY_POOL
    if (reason := _reason_of_limits(state, pool, request, now)) is not None:
        return reason
    if target is not None and _is_any_free(state, pool, filters):
        troubled = is_troubled(state, pool_id, target)
        return MissReason.TARGET_TROUBLED if troubled else MissReason.COOLING_DOWN
    return _reason_of_proxies(state, pool, filters, now)


def _reason_of_proxies(
    state: State, pool: PoolIndex, filters: ProxyFilters | None, now: datetime
) -> MissReason:
    """Return why no proxy is free."""
    if filters is not None:
        return _reason_of_filters(state, pool, filters, now)
    leased_out = MissReason.AT_CAPACITY if pool.has_healthy() else MissReason.NONE_HEALTHY
    if not pool.has_resting(now):
        return leased_out
    return _reason_of_rests(state, pool, pool.members, now)


def _reason_of_rests(
    state: State, pool: PoolIndex, proxy_ids: Iterable[UUID], now: datetime
) -> MissReason:
    """Return why proxies rest: one of them for another exit, or each after its last lease."""
    rotating = any(
        pool.is_leasable(each) and rotations.is_rotating(state, pool.pool_id, each, now)
        for each in proxy_ids
    )
    return MissReason.ROTATING if rotating else MissReason.RESTING


def _reason_of_limits(
    state: State, pool: PoolIndex, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> MissReason | None:
    """Return why a request got nothing, if that is due to limits or to sticky sessions."""
    reason, filters = _reason_of_session(state, request, now), request.filters
    has_room = _room(state, request, now) >= needed_by(request)
    if (
        not has_room
        and reason is not MissReason.NO_MATCH
        and any(filters is None or filters.matches(state.proxy(each)) for each in pool.members)
    ):
        return MissReason.LIMIT_REACHED
    if reason is None and _is_paced(state, pool, request, now):
        return MissReason.LIMIT_REACHED
    return reason


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


def _is_paced(
    state: State, pool: PoolIndex, request: AcquireRequest | AcquireSetRequest, now: datetime
) -> bool:
    """Return whether what is free and fits is passed over for a pace."""
    filters, target = request.filters, request.target
    if limits.is_paced(state, pool.pool_id, target, now) is None:
        return False
    order = SelectorStrategy.FIRST_AVAILABLE
    within = next(candidates(state, pool, order, filters, target, distinct=True), None)
    return within is None and _is_any_free(state, pool, filters, target)


def _is_any_free(
    state: State, pool: PoolIndex, filters: ProxyFilters | None, target: str | None = None
) -> bool:
    """Return whether a proxy is free that fits, if none were passed over for a pace."""
    order = SelectorStrategy.FIRST_AVAILABLE
    found = candidates(state, pool, order, filters, target, distinct=True, is_unpaced=True)
    return next(found, None) is not None


def _reason_of_filters(
    state: State, pool: PoolIndex, filters: ProxyFilters, now: datetime
) -> MissReason:
    matching = [i for i in pool.members if filters.matches(state.proxy(i))]
    if not matching:
        return MissReason.NO_MATCH
    if any(pool.is_leasable(each) and pool.rests_until(each, now) for each in matching):
        return _reason_of_rests(state, pool, matching, now)
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
