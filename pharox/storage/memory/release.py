"""End leases: release or revoke them, or expire those that are due."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from projections import LeaseRow, PoolRow

from ...errors import PharoxError
from ...events import LeaseEnd, LeaseExpired, LeaseReleased, LeaseRevoked
from ...models import LeaseStatus
from ..requests import (
    EndedLease,
    ReleaseRequest,
    ReleaseResult,
    RevokeRequest,
    copy_ending,
    log_late_release,
)
from . import rotations
from .state import State, lease_from_row

ACTIVE = LeaseStatus.ACTIVE.value


def release(state: State, request: ReleaseRequest, now: datetime) -> ReleaseResult:
    """Release a lease, unless it has ended before. The caller has expired due leases."""
    lease = request.lease
    row = active_row(state, lease.id)
    if row is None:
        recorded = state.lease(lease.id) if lease.id in state.pool_of_lease else None
        log_late_release(lease, recorded)
        copy_ending(recorded, lease)
        return ReleaseResult(None)
    end(state, LeaseReleased, row, now, reason=request.reason)
    lease.status, lease.released_at = LeaseStatus.RELEASED, now
    stats = state.stats(row.pool_id, now) if request.with_stats else None
    return ReleaseResult(EndedLease(lease, stats, request.reason))


def revoke(state: State, request: RevokeRequest) -> list[EndedLease | PharoxError]:
    """Revoke leases that have not ended or run out, and return each or why it was not revoked."""
    now = state.clock()
    ended: dict[UUID, EndedLease] = {}
    for lease_id in request.lease_ids:
        row = active_row(state, lease_id)
        if row is None or row.expires_at <= now:
            continue
        end(state, LeaseRevoked, row, now, reason=request.reason)
        stats = state.stats(row.pool_id, now) if request.with_stats else None
        ended[lease_id] = EndedLease(lease_from_row(row), stats, request.reason)
    known = (each for each in request.lease_ids if each in state.pool_of_lease)
    return request.outcomes(ended, {each: state.lease(each) for each in known})


def expire(
    state: State, pool_ids: Iterable[UUID], now: datetime, *, with_stats: bool
) -> dict[UUID, Sequence[EndedLease]]:
    """Expire the due leases of these pools, and return them by pool."""
    expired: dict[UUID, Sequence[EndedLease]] = {}
    for pool_id in pool_ids:
        if state.pools[pool_id].has_due(now):
            expired[pool_id] = _expire(state, pool_id, now, with_stats)
    return expired


def release_held(state: State, pool_id: UUID, proxy_id: UUID, reason: str) -> None:
    """Release all leases of a proxy."""
    now = state.clock()
    for row in state.held_rows(pool_id, proxy_id):
        end(state, LeaseReleased, row, now, is_removed=True, reason=reason)


def active_row(state: State, lease_id: UUID) -> LeaseRow | None:
    """Return the row of an active lease, or None if it has ended or does not exist."""
    pool_id = state.pool_of_lease.get(lease_id)
    if pool_id is None:
        return None
    row: LeaseRow = state.rows["leases"][lease_id, pool_id]
    return row if row.status == ACTIVE else None


def end(
    state: State,
    kind: type[LeaseEnd],
    row: LeaseRow,
    now: datetime,
    *,
    is_removed: bool = False,
    **why: Any,
) -> None:
    """Append the event that ends a lease. A proxy that is being removed does not rest."""
    before = state.current_state(row.pool_id, row.proxy_id)
    own_rest = rests_until = None if is_removed else _rests_until(state, kind, row, now)
    place, policy = (row.pool_id, row.proxy_id), None
    if not is_removed:
        policy = rotations.begins(state, *place, before.leases - 1, now)
    if policy is not None:
        ends_at = rotations.bound(state, *place, policy, now)
        rests_until = max(ends_at, own_rest or ends_at)
    state.append(
        kind,
        now,
        is_valid=True,
        **lease_fields(row),
        before=before,
        after=before.with_leases(before.leases - 1),
        rests_until=rests_until,
        **why,
    )
    state.pools[row.pool_id].let_go(row.id, row.proxy_id, row.expires_at)
    if policy is not None:
        rotations.begin_after_lease(state, *place, row.id, policy, now, own_rest)
    is_last = before.leases == 1 and not is_removed
    if is_last and state.availability(row.pool_id, row.proxy_id).drains:
        state.drained.append(row.proxy_id)


def _rests_until(
    state: State, kind: type[LeaseEnd], row: LeaseRow, now: datetime
) -> datetime | None:
    """Return until when the proxy of a lease that ends now rests: no shorter than before."""
    pool: PoolRow = state.rows["pools"][(row.pool_id,)]
    is_orderly = kind is LeaseReleased
    seconds = pool.rest_after_release_seconds if is_orderly else pool.rest_after_expiry_seconds
    known = state.pools[row.pool_id].rests_until(row.proxy_id, now)
    rests = [known] if known else []
    if seconds:
        rests.append(now + timedelta(seconds=seconds))
    return max(rests, default=None)


def lease_fields(row: LeaseRow) -> dict[str, Any]:
    """Return the fields of an event that say which lease it is about."""
    return {
        "pool_id": row.pool_id,
        "proxy_id": row.proxy_id,
        "lease_id": row.id,
        "consumer": row.consumer_name,
        "consumer_id": row.consumer_id,
        "pool_name": row.pool_name,
        "acquired_at": row.acquired_at,
    }


def _expire(state: State, pool_id: UUID, now: datetime, with_stats: bool) -> list[EndedLease]:
    rows = [state.lease_row(lease_id) for lease_id in state.pools[pool_id].due(now)]
    rows.sort(key=lambda row: (row.proxy_id, row.fencing_token))
    for row in rows:
        end(state, LeaseExpired, row, now, expires_at=row.expires_at)
    stats = state.stats(pool_id, now) if with_stats else None
    return [EndedLease(lease_from_row(row), stats) for row in rows]
