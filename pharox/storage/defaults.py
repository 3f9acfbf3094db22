"""What an adapter need not write: the methods of an interface that follow from its others.

Programs that ask for calls of the adapter's own methods, so that they stand once
for adapters with methods that block and for those with coroutines. An adapter
that can decide in one go overrides these methods; what they cannot do is said
where they are declared, in :class:`~pharox.storage.IStorage`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from ..effects import Calls
from ..errors import InvalidInputError, ProxyNotFoundError
from ..models import (
    HealthCheckResult,
    HealthPolicy,
    Lease,
    LeaseStatus,
    PoolStatsSnapshot,
    Proxy,
    ProxyStatus,
    utc_now,
)
from .requests import (
    AcquireRequest,
    Acquisition,
    EndedLease,
    HealthOutcome,
    ReleaseResult,
    copy_ending,
    log_late_release,
)
from .validation import check_reason, check_status


def acquire_lease(storage: Any, request: AcquireRequest) -> Calls[Acquisition]:
    """Find a proxy and lease it."""
    if request.lease_id is not None:
        raise InvalidInputError(
            f"{type(storage).__name__} grants no lease under an id of the caller's"
        )
    yield partial(storage.ensure_consumer, request.consumer_name)
    yield storage.cleanup_expired_leases
    asked = (request.pool_name, request.filters, request.selector)
    proxy = yield partial(storage.find_available_proxy, *asked)
    if proxy is None:
        return Acquisition(None, stats=(yield from _stats(storage, request)))
    terms = (request.consumer_name, request.duration_seconds)
    lease = yield partial(storage.create_lease, proxy, *terms)
    try:
        return Acquisition(lease, stats=(yield from _stats(storage, request)))
    except GeneratorExit:
        raise
    except BaseException:  # The caller will never see this lease.
        yield partial(storage.release_lease, lease)
        raise


def return_lease(
    storage: Any, lease: Lease, reason: str | None, *, with_stats: bool
) -> Calls[ReleaseResult]:
    """Release a lease and tell what came of it."""
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


def record_health_checks(
    storage: Any, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
) -> Calls[list[HealthOutcome]]:
    """Record health checks, one after the other."""
    if policy not in (None, HealthPolicy()):
        raise InvalidInputError(
            f"{type(storage).__name__} counts no results in a row; it takes the default policy"
        )
    outcomes = []
    for result in results:
        outcomes.append((yield from _record_one(storage, result)))
    return outcomes


def set_status(
    storage: Any, proxy_id: UUID, status: ProxyStatus, reason: str | None
) -> Calls[Proxy]:
    """Decide a proxy's status; there is nowhere to keep the reason."""
    check_reason(reason)
    wanted = check_status(status)
    proxy: Proxy = yield partial(storage.get_proxy, str(proxy_id))
    proxy.status = wanted
    yield partial(storage.save_proxy, proxy)
    return proxy


def is_due(
    storage: Any, proxy: Proxy, age: timedelta | None, statuses: Collection[ProxyStatus]
) -> Calls[bool]:
    """Tell whether a proxy is to be checked: its status is wanted, its last check so old."""
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


def _stats(storage: Any, request: AcquireRequest) -> Calls[PoolStatsSnapshot | None]:
    if not request.with_stats:
        return None
    return (yield partial(storage.get_pool_stats, request.pool_name))  # type: ignore[no-any-return]
