"""Renew leases: those whose holders ask for it, and all that the clock has left in the future."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from projections import LeaseRow

from ...errors import PharoxError
from ...events import LeaseRenewed
from ...models import Lease
from ..requests import RenewRequest, renewal_rounds
from .release import active_row, lease_fields
from .state import State

CLOCK_TOLERANCE = timedelta(seconds=1)
"""By how much the time may differ without the clock having gone back."""


def renew_leases(state: State, requests: Sequence[RenewRequest]) -> list[Lease | PharoxError]:
    """Renew leases, and return each or the reason why it was not renewed."""
    now = state.clock()
    order = [place for places in renewal_rounds(requests) for place in places]
    outcomes = {place: _renew(state, requests[place], now) for place in order}
    return [outcomes[place] for place in range(len(requests))]


def _renew(state: State, request: RenewRequest, now: datetime) -> Lease | PharoxError:
    """Extend a lease that is active, has not run out and has the request's fencing token."""
    lease, row = request.lease, active_row(state, request.lease.id)
    is_renewed = False
    if row is not None and row.expires_at > now:
        is_renewed = lease.fencing_token in (None, row.fencing_token)
        if is_renewed:
            seconds = request.duration_seconds
            asked = _duration_of(row) if seconds is None else timedelta(seconds=seconds)
            _extend(state, row, asked, now)
    recorded = state.lease(lease.id) if lease.id in state.pool_of_lease else None
    return request.outcome(recorded, is_renewed=is_renewed)


def redate_leases(state: State, now: datetime) -> None:
    """Renew the leases that were granted in the future, as ``sql/0003/redating.sql`` does."""
    tolerated = now + CLOCK_TOLERANCE
    if state.latest <= tolerated:
        return
    state.latest = now
    active = (state.lease_row(each) for pool in state.pools.values() for each in pool.active())
    dated = [row for row in active if _granted_at(row) > tolerated]
    for row in sorted(dated, key=lambda row: row.fencing_token):
        _extend(state, row, _duration_of(row), now, reason="clock_went_back")


def _granted_at(row: LeaseRow) -> datetime:
    return row.renewed_at or row.acquired_at


def _duration_of(row: LeaseRow) -> timedelta:
    return row.expires_at - _granted_at(row)


def _extend(state: State, row: LeaseRow, duration: timedelta, now: datetime, **why: Any) -> None:
    pool, before = state.pools[row.pool_id], row.expires_at
    expires_at = now + duration
    max_held_s = state.rows["pools"][(row.pool_id,)].max_held_seconds
    if max_held_s is not None:
        allowed = max(row.acquired_at + timedelta(seconds=max_held_s), before)
        if expires_at > allowed:
            expires_at, why = allowed, {"reason": "max_held"}
    state.append(
        LeaseRenewed,
        now,
        is_valid=True,
        **lease_fields(row),
        expires_at=expires_at,
        **why,
    )
    pool.extend(row.id, before, row.expires_at)
