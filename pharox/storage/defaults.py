"""Default implementations of storage methods, in terms of the abstract ones.

They are programs that request calls of the adapter's own methods, so one implementation
serves blocking adapters and adapters with coroutines. An adapter that can decide
atomically overrides these methods. Their limits are documented where they are
declared, in :class:`~pharox.storage.IStorage`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

from ..effects import Calls
from ..errors import InvalidInputError, ProxyNotFoundError, raise_together
from ..models import (
    HealthCheckResult,
    HealthPolicy,
    HeldLease,
    Lease,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyStatus,
    utc_now,
)
from ..models.gateway import exit_for_lease, wished_country
from ..models.ids import NIL
from ..models.text import url_of
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    CommandOutcome,
    CommandOutcomes,
    EndedLease,
    HealthOutcome,
    ReleaseRequest,
    ReleaseResult,
    SetAcquisition,
    assign_expired_by_pool,
    batch_order,
    copy_ending,
    held_lease,
    log_late_release,
)
from .validation import HeldPage, check_commands, check_reason, check_status

CANNOT_RENEW = "{} cannot renew leases: it does not override renew_leases"
CANNOT_DRAIN = "{} cannot drain proxies: it does not override drain_proxy"
CANNOT_REPORT = "{} cannot record outcomes: it does not override report_outcomes"
CANNOT_END_BANS = "{} cannot end a ban by itself: it does not override set_status"
CANNOT_KEEP_RULES = "{} cannot keep rules for targets: it does not override set_target_rules"
CANNOT_KEEP_TOKENS = "{} cannot keep tokens of the API: it does not override add_api_token"
CANNOT_KEEP_SOURCES = "{} cannot keep sources: it does not override save_source"
CANNOT_PLACE_POOLS = "{} cannot keep a directory of pools: it does not override place_pool"

CANNOT_RECORD_ACTIONS = "{} cannot record actions: it does not override record_action"
CANNOT_MOVE_POOLS = "{} cannot move pools: it does not override carry_out_move"
CANNOT_KEEP_SESSIONS = "{} cannot keep sticky sessions: it does not say can_stick"
CANNOT_FALL_BACK = "{} cannot fall back to another pool: it does not say can_fall_back"
CANNOT_ROTATE = "{} cannot rotate exits: it does not override rotate_exit"
CANNOT_ROTATE_PROXIES = "{} cannot rotate proxies: it does not override claim_rotations"
CANNOT_REVOKE = "{} cannot revoke leases: it does not override revoke_leases"


def acquire_lease(storage: Any, request: AcquireRequest) -> Calls[Acquisition]:
    """Find a proxy and lease it."""
    if request.lease_id is not None:
        raise InvalidInputError(
            f"{type(storage).__name__} cannot grant a lease under the caller's own id"
        )
    yield partial(storage.ensure_consumer, request.consumer_name)
    yield storage.cleanup_expired_leases
    arguments = (request.pool_name, request.filters, request.selector)
    proxy = yield partial(storage.find_available_proxy, *arguments)
    if proxy is None:
        return Acquisition(None, stats=(yield from _stats(storage, request)))
    terms = (request.consumer_name, request.duration_seconds)
    lease = yield partial(storage.create_lease, proxy, *terms)
    if proxy.placeholders:
        country = wished_country(request.filters) or proxy.country
        lasting = timedelta(seconds=request.duration_seconds)
        lease.exit = exit_for_lease(proxy.placeholders, lease.id, country, lasting)
    lease.carry(proxy.with_exit(lease.exit))
    try:
        return Acquisition(lease, stats=(yield from _stats(storage, request)))
    except GeneratorExit:
        raise
    except BaseException:  # The caller will never see this lease.
        yield partial(storage.release_lease, lease)
        raise


def list_held_leases(storage: Any, page: HeldPage) -> Calls[list[HeldLease]]:
    """Return a page of the active leases, found among all leases."""
    pools = {pool.id: pool.name for pool in (yield storage.list_pools)}
    held = {
        (lease.pool_id or NIL, lease.proxy_id, lease.id): lease
        for lease in (yield storage.list_leases)
        if lease.status is LeaseStatus.ACTIVE
        and page.consumer_name in (None, lease.consumer_name)
        and page.pool_name in (None, pools.get(lease.pool_id))
    }
    found: list[HeldLease] = []
    for place in sorted(place for place in held if place > page.after)[: page.limit]:
        proxy = yield partial(storage.get_proxy, str(held[place].proxy_id))
        address = url_of(proxy.protocol, proxy.host, proxy.port)
        stats = yield partial(storage.get_pool_stats, pools[proxy.pool_id])
        found.append(held_lease(held[place], address, stats.collected_at))
    return found


def return_lease(
    storage: Any, lease: Lease, reason: str | None, *, with_stats: bool
) -> Calls[ReleaseResult]:
    """Release a lease and return the result."""
    recorded = yield partial(storage.get_lease, str(lease.id))
    was_active = recorded is not None and recorded.status is LeaseStatus.ACTIVE
    if was_active:
        yield partial(storage.release_lease, lease)
        recorded = yield partial(storage.get_lease, str(lease.id))
    copy_ending(recorded, lease)
    if not was_active or recorded is None:
        log_late_release(lease, recorded)
        return ReleaseResult(None)
    name = recorded.pool_name if with_stats else None
    stats = (yield partial(storage.get_pool_stats, name)) if name else None
    return ReleaseResult(EndedLease(lease, stats, reason))


def acquire_set(storage: Any, request: AcquireSetRequest) -> Calls[SetAcquisition]:
    """Lease one proxy after another, and release all of them if they are too few."""
    if request.lease_ids is not None:
        raise InvalidInputError(
            f"{type(storage).__name__} cannot grant a set under the caller's own ids"
        )
    granted: list[Acquisition] = []
    try:
        last = yield from _lease_up_to(storage, request, granted)
        if len(granted) >= request.needed:
            leased = tuple(replace(each, expired=()) for each in granted)
            return SetAcquisition(leased, expired=_expired_of(granted))
    except GeneratorExit:
        raise
    except BaseException:  # The caller will never see these leases.
        yield from _give_back(storage, granted)
        raise
    yield from _give_back(storage, granted)
    return SetAcquisition(
        miss_reason=MissReason.TOO_FEW if granted else last.miss_reason,
        free=len(granted),
        stats=(yield from _stats(storage, request)),
        expired=_expired_of([*granted, last]),
    )


def return_leases(
    storage: Any, leases: Sequence[Lease], reason: str | None, *, with_stats: bool
) -> Calls[list[ReleaseResult]]:
    """Release leases. Try all of them, then raise the errors."""
    commands = [ReleaseRequest(lease, reason, with_stats) for lease in leases]
    outcomes: list[Any] = yield partial(storage.run_batch, commands)
    raise_together([outcome for outcome in outcomes if isinstance(outcome, Exception)])
    return outcomes


def run_batch(storage: Any, commands: Sequence[Command]) -> Calls[CommandOutcomes]:
    """Carry out commands one after another: expiry, then releases, then acquisitions."""
    check_commands(commands)
    expired: Sequence[EndedLease] = ()
    asking = [command for command in commands if not isinstance(command, ReleaseRequest)]
    for consumer in dict.fromkeys(command.consumer_name for command in asking):
        yield partial(storage.ensure_consumer, consumer)
    if asking:
        with_stats = any(command.with_stats for command in commands)
        _, expired = yield partial(storage.expire_leases, with_stats=with_stats)
    outcomes: list[Any] = [None] * len(commands)
    order = batch_order(commands)
    for place in order:
        outcomes[place] = yield from _carry_out(storage, commands[place])
    assign_expired_by_pool(outcomes, commands, expired)
    return outcomes


def record_health_checks(
    storage: Any, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
) -> Calls[list[HealthOutcome]]:
    """Record health checks, one after the other."""
    if policy not in (None, HealthPolicy()):
        raise InvalidInputError(
            f"{type(storage).__name__} does not count results in a row; use the default policy"
        )
    outcomes = []
    for result in results:
        outcomes.append((yield from _record_one(storage, result)))
    return outcomes


def set_status(
    storage: Any,
    proxy_id: UUID,
    status: ProxyStatus,
    reason: str | None,
    for_seconds: float | None,
) -> Calls[Proxy]:
    """Set a proxy's status. The reason is not stored."""
    check_reason(reason)
    wanted = check_status(status)
    if for_seconds is not None:
        raise InvalidInputError(CANNOT_END_BANS.format(type(storage).__name__))
    proxy: Proxy = yield partial(storage.get_proxy, str(proxy_id))
    proxy.status = wanted
    yield partial(storage.save_proxy, proxy)
    return proxy


def is_due(
    storage: Any, proxy: Proxy, age: timedelta | None, statuses: Collection[ProxyStatus]
) -> Calls[bool]:
    """Return whether a proxy has one of the statuses and its last check is old enough."""
    if proxy.status not in statuses:
        return False
    last = None if age is None else (yield partial(storage.get_last_health_result, proxy.id))
    return age is None or last is None or last.checked_at <= utc_now() - age


def _record_one(storage: Any, result: HealthCheckResult) -> Calls[HealthOutcome]:
    unknown = HealthOutcome(result, known=False)
    try:
        before = (yield partial(storage.get_proxy, str(result.proxy_id))).status
    except ProxyNotFoundError:
        return unknown
    proxy = yield partial(storage.apply_health_check_result, result)
    if proxy is None:
        return unknown
    last = yield partial(storage.get_last_health_result, proxy.id)
    pool = yield partial(storage.get_pool, str(proxy.pool_id))
    return HealthOutcome(
        result,
        applied=last == result,
        status_before=before,
        status_after=proxy.status,
        pool_name=pool.name,
        leases=proxy.current_leases,
        source=proxy.source,
    )


def _lease_up_to(
    storage: Any, request: AcquireSetRequest, granted: list[Acquisition]
) -> Calls[Acquisition]:
    """Add acquisitions to ``granted`` until there are enough. Return the last, maybe a miss."""
    while True:
        acquisition: Acquisition = yield partial(storage.acquire_lease, _next(request, granted))
        if acquisition.lease is not None:
            granted.append(acquisition)
        if acquisition.lease is None or len(granted) == request.count:
            return acquisition


def _next(request: AcquireSetRequest, granted: Sequence[Acquisition]) -> AcquireRequest:
    """Return the request for the next lease of a set, on another proxy if ``distinct``."""
    filters = request.filters
    if request.distinct and granted:
        taken = {each.lease.proxy_id for each in granted if each.lease is not None}
        filters = ProxyFilters(
            all_of=None if filters is None else [filters],
            predicate=lambda proxy: proxy.id not in taken,
        )
    return AcquireRequest(
        request.pool_name,
        request.consumer_name,
        request.duration_seconds,
        filters,
        request.selector,
        request.with_stats,
    )


def _give_back(storage: Any, granted: Sequence[Acquisition]) -> Calls[None]:
    errors: list[Exception] = []
    for each in granted:
        try:
            yield partial(storage.return_lease, each.lease, reason=MissReason.TOO_FEW.value)
        except Exception as error:
            errors.append(error)
    raise_together(errors)


def _expired_of(acquisitions: Sequence[Acquisition]) -> tuple[EndedLease, ...]:
    return tuple(ended for each in acquisitions for ended in each.expired)


def _carry_out(storage: Any, command: Command) -> Calls[CommandOutcome | Exception]:
    try:
        if isinstance(command, ReleaseRequest):
            how = {"reason": command.reason, "with_stats": command.with_stats}
            return cast(
                "CommandOutcome", (yield partial(storage.return_lease, command.lease, **how))
            )
        single = isinstance(command, AcquireRequest)
        ask = storage.acquire_lease if single else storage.acquire_set
        return cast("CommandOutcome", (yield partial(ask, command)))
    except Exception as error:
        return error


def _stats(
    storage: Any, request: AcquireRequest | AcquireSetRequest
) -> Calls[PoolStatsSnapshot | None]:
    if not request.with_stats:
        return None
    answer: PoolStatsSnapshot | None = yield partial(storage.get_pool_stats, request.pool_name)
    return answer
