"""Record what targets said, and have pairs of proxy and target rest."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from projections import LeaseRow, PoolRow, TargetOutcomesRow

from ...errors import PharoxError, ProxyNotFoundError
from ...events import CoolDownSet, OutcomeReported
from ...models import CoolDown, PairRecord
from ..reports import CoolDownRequest, Reported, ReportRequest
from ..requests import no_lease
from .state import State

_RECORD = ("successes", "failures", "streak", "cool_downs", "cools_until")


def report_outcomes(
    state: State, requests: Sequence[ReportRequest]
) -> list[Reported | PharoxError]:
    """Record outcomes, and return what each came to."""
    return [_report(state, request) for request in requests]


def set_cool_down(state: State, request: CoolDownRequest) -> datetime | None:
    """Have a proxy rest for a target, or end that. Return until when it rests."""
    pool_id = state.pool_of_proxy.get(request.proxy_id)
    if pool_id is None:
        raise ProxyNotFoundError(f"Proxy {request.proxy_id} not found.", proxy_id=request.proxy_id)
    now = state.clock()
    row = pair_row(state, pool_id, request.proxy_id, request.target)
    known = _record(row)
    until = None if request.seconds is None else now + timedelta(seconds=request.seconds)
    is_ended = until is None
    state.append(
        CoolDownSet,
        now,
        pool_id=pool_id,
        proxy_id=request.proxy_id,
        target=request.target,
        reason=request.reason,
        successes=known.successes,
        failures=known.failures,
        streak=max(known.streak, 0) if is_ended else known.streak,
        cool_downs=0 if is_ended else known.cool_downs,
        cools_until=until,
        outcome=row and row.outcome,
        status=row and row.status,
        reported_at=known.reported_at,
    )
    return until


def pair_row(state: State, pool_id: UUID, proxy_id: UUID, target: str) -> TargetOutcomesRow | None:
    """Return the row of a pair, or None if nothing is known of it."""
    row: TargetOutcomesRow | None = state.rows["target_outcomes"].get((pool_id, proxy_id, target))
    return row


def _report(state: State, request: ReportRequest) -> Reported | PharoxError:
    lease, outcome, now = request.lease, request.outcome, state.clock()
    pool_id = state.pool_of_lease.get(lease.id)
    if pool_id is None or pool_id not in state.pools:
        return no_lease(lease.id)
    row: LeaseRow = state.rows["leases"][lease.id, pool_id]
    target = outcome.target or row.target
    record: dict[str, Any] = {}
    if target is not None:
        pool: PoolRow = state.rows["pools"][(pool_id,)]
        policy = CoolDown.model_validate(pool.cool_down or {})
        known = _record(pair_row(state, pool_id, row.proxy_id, target))
        after = known.after(outcome.model_copy(update={"target": target}), policy, lease.id, now)
        record = {name: getattr(after, name) for name in _RECORD}
    state.append(
        OutcomeReported,
        now,
        pool_id=pool_id,
        proxy_id=row.proxy_id,
        lease_id=row.id,
        consumer=row.consumer_name,
        consumer_id=row.consumer_id,
        pool_name=row.pool_name,
        outcome=outcome.kind,
        target=target,
        **outcome.model_dump(exclude={"kind", "target"}),
        **record,
    )
    return Reported(target, record.get("cools_until"), record.get("streak", 0))


def _record(row: TargetOutcomesRow | None) -> PairRecord:
    if row is None:
        return PairRecord()
    return PairRecord(
        row.successes, row.failures, row.streak, row.cool_downs, row.cools_until, row.reported_at
    )
