"""Rotations: a proxy with a link rests until it has another exit, or until a bound.

It is what ``sql/0006/rotating.sql`` does.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from projections import PoolRow, RotationRow

from ...errors import ProxyNotFoundError
from ...events import RotationAnswered, RotationBegan, RotationCalled
from ...models import (
    ROTATE_WITHIN_S,
    DueRotation,
    OutcomeKind,
    RotationAnswer,
    RotationCause,
    RotationClaims,
    RotationFailure,
    RotationPolicy,
)
from ..validation import RETRY_LINK_S, no_rotate_url, rotates_too_soon
from .state import State

_BLOCKED = OutcomeKind.BLOCKED.value


def begins(
    state: State, pool_id: UUID, proxy_id: UUID, leases_after: int, now: datetime
) -> RotationPolicy | None:
    """Return the pool's policy if a lease that ends now has its proxy take another exit."""
    pool: PoolRow = state.rows["pools"][(pool_id,)]
    if pool.rotation is None or not _has_link(state, pool_id, proxy_id):
        return None
    policy = RotationPolicy.model_validate(pool.rotation)
    row = record(state, pool_id, proxy_id)
    if leases_after > 0 and (policy.on == "release" or _is_under_way(row, now)):
        return None
    if policy.on == "blocked" and not _is_refused(state, pool_id, proxy_id, row):
        return None
    _, ends_at = _times(policy, row, now)
    return policy if ends_at is not None else None


def begin_after_lease(
    state: State,
    pool_id: UUID,
    proxy_id: UUID,
    lease_id: UUID,
    policy: RotationPolicy,
    now: datetime,
    own_rest: datetime | None,
) -> None:
    """Record that a rotation began with the end of a lease, which has the rest already."""
    _begin(state, pool_id, proxy_id, policy.on, policy, now, own_rest, lease_id=lease_id)


def bound(
    state: State, pool_id: UUID, proxy_id: UUID, policy: RotationPolicy, now: datetime
) -> datetime:
    """Return until when a rotation that begins now lasts at most."""
    _, ends_at = _times(policy, record(state, pool_id, proxy_id), now)
    return ends_at or now


def begin(state: State, proxy_id: UUID, within_seconds: float | None) -> None:
    """Have a proxy take another exit, as somebody asks for it."""
    now = state.clock()
    pool_id = state.pool_of_proxy.get(proxy_id)
    if pool_id is None:
        raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
    if not _has_link(state, pool_id, proxy_id):
        raise no_rotate_url(proxy_id)
    pool: PoolRow = state.rows["pools"][(pool_id,)]
    known = {"on": "release", **(pool.rotation or {})}
    if within_seconds is not None:
        known["within_seconds"] = within_seconds
    policy = RotationPolicy.model_validate(known)
    row = record(state, pool_id, proxy_id)
    if row is not None and row.claimed_until is not None and row.claimed_until > now:
        return  # It is being called: that is what is asked for.
    if _times(policy, row, now)[1] is None:
        raise rotates_too_soon(proxy_id, (_callable_at(policy, row, now) - now).total_seconds())
    own_rest = state.pools[pool_id].rests_until(proxy_id, now)
    _begin(state, pool_id, proxy_id, "asked", policy, now, own_rest)


def claim(
    state: State, proxy_ids: Collection[UUID] | None, seconds: float, most: int
) -> RotationClaims:
    """Claim links that are due, and say when the next may be."""
    now = state.clock()
    asked = [each for each in proxy_ids or () if each in state.pool_of_proxy]
    rows = [
        row
        for row in state.rows["rotations"].values()
        if row.ends_at is not None and (proxy_ids is None or row.proxy_id in proxy_ids)
    ]
    due = [row for row in rows if _is_due(state, row, now)]
    # Who failed waits for the others.
    due.sort(key=lambda row: (*_since(row.calls_at), row.pool_id, row.proxy_id))
    taken = sorted(due[:most], key=lambda row: (row.pool_id, row.proxy_id))
    claimed = tuple(_claim(state, row, now, seconds) for row in taken)
    pauses = [
        _pause_s(state, row, now)
        for row in rows
        for row in [state.rows["rotations"][row.proxy_id, row.pool_id]]
        if max(row.ends_at, row.claimed_until or row.ends_at) > now
    ]
    found = (record(state, state.pool_of_proxy[each], each) for each in asked)
    known = [row for row in found if row is not None]
    rotated = [row.rotated_at for row in known if row.rotated_at is not None]
    failed = ((row.failure, row.status) for row in known if row.failure is not None)
    last = next((RotationAnswer(RotationFailure(why), status) for why, status in failed), None)
    return RotationClaims(
        claimed, min(pauses, default=None), max(rotated, default=None), failed=last
    )


def answer(state: State, due: DueRotation, given: RotationAnswer) -> bool:
    """Record what came of calling a link. Return False if it was not claimed any more."""
    now = state.clock()
    row = record(state, due.pool_id, due.proxy_id)
    if row is None or row.claimed_until != due.claimed_until:
        return False
    own_rest = row.rested_until if row.rested_until and row.rested_until > now else None
    after: dict[str, Any] = {"rotated_at": row.rotated_at, "rests_until": own_rest}
    if given.failure is None:
        pool: PoolRow = state.rows["pools"][(due.pool_id,)]
        settle = (pool.rotation or {}).get("settle_seconds") or 0
        settled = now + timedelta(seconds=settle) if settle else None
        after = {"rotated_at": now, "rests_until": _latest(own_rest, settled)}
        after["exit_ip"] = given.exit_ip
    else:
        retry = given.retry_after_seconds
        again_at = now + timedelta(seconds=RETRY_LINK_S if retry is None else retry)
        after |= {"failure": given.failure, "calls_at": again_at}
        if row.ends_at is not None and again_at < row.ends_at:
            after |= {
                "because": row.because,
                "ends_at": row.ends_at,
                "rested_until": own_rest,
                "rests_until": _latest(own_rest, row.ends_at),
            }
    _append(state, RotationAnswered, due.pool_id, due.proxy_id, now, status=given.status, **after)
    return True


def record(state: State, pool_id: UUID, proxy_id: UUID) -> RotationRow | None:
    """Return the record of a proxy's rotations, if it has one."""
    row: RotationRow | None = state.rows["rotations"].get((proxy_id, pool_id))
    return row


def is_rotating(state: State, pool_id: UUID, proxy_id: UUID, now: datetime) -> bool:
    """Return whether a proxy rests until it has another exit."""
    return _is_under_way(record(state, pool_id, proxy_id), now)


def _has_link(state: State, pool_id: UUID, proxy_id: UUID) -> bool:
    return bool(state.rows["proxies"][proxy_id, pool_id].rotate_id is not None)


def _is_under_way(row: RotationRow | None, now: datetime) -> bool:
    return row is not None and row.ends_at is not None and row.ends_at > now


def _is_refused(state: State, pool_id: UUID, proxy_id: UUID, row: RotationRow | None) -> bool:
    """Return whether a target has refused the exit since it was taken."""
    since = None if row is None else row.rotated_at
    return any(
        pair.outcome == _BLOCKED
        and (since is None or (pair.reported_at is not None and pair.reported_at > since))
        for pair in state.targets.of_proxy(state.rows["target_outcomes"], pool_id, proxy_id)
    )


def _callable_at(policy: RotationPolicy, row: RotationRow | None, now: datetime) -> datetime:
    """Return when a link may be called: after a pause since the last exit, and as it asked."""
    moments = [now]
    if row is not None and row.calls_at is not None:
        moments.append(row.calls_at)
    if row is not None and row.rotated_at is not None:
        moments.append(row.rotated_at + timedelta(seconds=policy.every_seconds))
    return max(moments)


def _times(
    policy: RotationPolicy, row: RotationRow | None, now: datetime
) -> tuple[datetime | None, datetime | None]:
    """Return when a link is called at the earliest, and the bound; None if it cannot be."""
    calls_at = _callable_at(policy, row, now)
    ends_at = now + timedelta(seconds=policy.within_seconds or ROTATE_WITHIN_S)
    if calls_at >= ends_at:
        return None, None
    if row is not None and row.ends_at is not None:
        ends_at = max(ends_at, row.ends_at)  # Somebody has asked for more.
    return (calls_at if calls_at > now else None), ends_at


def _begin(
    state: State,
    pool_id: UUID,
    proxy_id: UUID,
    because: RotationCause,
    policy: RotationPolicy,
    now: datetime,
    own_rest: datetime | None,
    **lease: Any,
) -> None:
    row = record(state, pool_id, proxy_id)
    calls_at, ends_at = _times(policy, row, now)
    is_under_way = row is not None and _is_under_way(row, now)
    _append(
        state,
        RotationBegan,
        pool_id,
        proxy_id,
        now,
        because=because,
        ends_at=ends_at,
        calls_at=calls_at,
        rotated_at=row and row.rotated_at,
        rested_until=row.rested_until if row and is_under_way else own_rest,
        rests_until=_latest(state.pools[pool_id].rests_until(proxy_id, now), own_rest, ends_at),
        **lease,
    )


def _is_due(state: State, row: RotationRow, now: datetime) -> bool:
    is_called = row.claimed_until is not None and row.claimed_until > now
    is_early = row.calls_at is not None and row.calls_at > now
    held = state.availability(row.pool_id, row.proxy_id).current_leases
    return _is_under_way(row, now) and not (is_called or is_early or held)


def _claim(state: State, row: RotationRow, now: datetime, seconds: float) -> DueRotation:
    until = now + timedelta(seconds=seconds)
    _append(
        state,
        RotationCalled,
        row.pool_id,
        row.proxy_id,
        now,
        because=row.because,
        ends_at=row.ends_at,
        claimed_until=until,
        rotated_at=row.rotated_at,
        rested_until=row.rested_until,
        rests_until=_latest(state.pools[row.pool_id].rests_until(row.proxy_id, now), until),
    )
    return DueRotation(row.pool_id, row.proxy_id, state.links.get(row.proxy_id), until)


def _pause_s(state: State, row: RotationRow, now: datetime) -> float:
    """Return in how many seconds a rotation may be due."""
    moments = [each for each in (row.calls_at, row.claimed_until) if each is not None]
    if state.availability(row.pool_id, row.proxy_id).current_leases:
        moments.append(now + timedelta(seconds=1))  # Nobody knows when the last lease ends.
    return (max([now, *moments]) - now).total_seconds()


def _since(moment: datetime | None) -> tuple[bool, datetime]:
    return moment is not None, moment or datetime.min.replace(tzinfo=UTC)


def _latest(*moments: datetime | None) -> datetime | None:
    return max((each for each in moments if each is not None), default=None)


def _append(
    state: State, kind: Any, pool_id: UUID, proxy_id: UUID, now: datetime, **fields: Any
) -> None:
    before = state.current_state(pool_id, proxy_id)
    state.append(
        kind,
        now,
        pool_id=pool_id,
        proxy_id=proxy_id,
        before=before,
        after=before,
        pool_name=state.pool_name(pool_id),
        **fields,
    )
