"""Record what targets said, and have pairs of proxy and target rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from projections import LeaseRow, PoolRow, TargetOutcomesRow, TroubledTargetRow

from ...errors import PharoxError, ProxyNotFoundError
from ...events import CoolDownSet, OutcomeReported, TargetRecovered, TargetTroubled
from ...models import CoolDown, OutcomeKind, PairRecord
from ..reports import CoolDownRequest, Reported, ReportRequest, report_rounds
from ..requests import no_lease
from .state import State

FAILURES = frozenset({OutcomeKind.TARGET_FAILED, OutcomeKind.UNCLEAR})
"""The kinds for which a target itself may be to blame."""

_Site = tuple[UUID, str]

FEWEST_PROXIES = 10
LATELY = timedelta(minutes=1)

_RECORD = ("successes", "failures", "streak", "cool_downs", "cools_until")


def report_outcomes(
    state: State, requests: Sequence[ReportRequest]
) -> list[Reported | PharoxError]:
    """Record outcomes, and return what each came to."""
    outcomes: dict[int, Reported | PharoxError] = {}
    for places in report_rounds(requests):
        sites: dict[_Site, set[OutcomeKind]] = {}
        for place in places:
            outcomes[place] = _report(state, requests[place], sites)
        for (pool_id, target), kinds in sorted(sites.items(), key=lambda site: site[0]):
            _judge(state, pool_id, target, kinds)
    return [outcomes[place] for place in range(len(requests))]


def is_troubled(state: State, pool_id: UUID, target: str) -> bool:
    """Return whether a target itself fails."""
    return (pool_id, target) in state.rows["troubled_targets"]


def rests_for(state: State, pool_id: UUID, target: str, now: datetime) -> Callable[[UUID], bool]:
    """Return the function that says whether a proxy is passed over for a target."""
    pairs = state.rows["target_outcomes"]

    def rests(proxy_id: UUID) -> bool:
        row: TargetOutcomesRow | None = pairs.get((pool_id, proxy_id, target))
        if row is None or row.cools_until is None:
            return False
        return row.cools_until > now or _is_tried(state, pool_id, proxy_id, target)

    return rests


def is_tried(state: State, pool_id: UUID, target: str) -> bool:
    """Return whether a target is in trouble, and a lease tries it already."""
    trouble: TroubledTargetRow | None = state.rows["troubled_targets"].get((pool_id, target))
    if trouble is None:
        return False
    active = (state.lease_row(each) for each in state.pools[pool_id].active())
    return any(row.target == target and row.acquired_at >= trouble.since for row in active)


def _is_tried(state: State, pool_id: UUID, proxy_id: UUID, target: str) -> bool:
    return any(row.target == target for row in state.held_rows(pool_id, proxy_id))


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


def _report(
    state: State, request: ReportRequest, sites: dict[_Site, set[OutcomeKind]]
) -> Reported | PharoxError:
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
        after = known.after(
            outcome.model_copy(update={"target": target}),
            policy,
            lease.id,
            now,
            is_troubled=is_troubled(state, pool_id, target),
        )
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
    if target is not None:
        sites.setdefault((pool_id, target), set()).add(outcome.kind)
    return Reported(target, record.get("cools_until"), record.get("streak", 0))


def _judge(state: State, pool_id: UUID, target: str, kinds: set[OutcomeKind]) -> None:
    """Record whether a target is in trouble after some reports, or no more."""
    now, is_ok = state.clock(), OutcomeKind.OK in kinds
    site: dict[str, Any] = {
        "pool_id": pool_id,
        "pool_name": state.pool_name(pool_id),
        "target": target,
    }
    if is_troubled(state, pool_id, target):
        if is_ok:
            state.append(TargetRecovered, now, **site)
    elif kinds & FAILURES and not is_ok:
        proxies, failed = _lately(state, pool_id, target, now)
        if proxies >= FEWEST_PROXIES and 2 * failed > proxies:
            state.append(TargetTroubled, now, **site, proxies=proxies, failed=failed)


def _lately(state: State, pool_id: UUID, target: str, now: datetime) -> tuple[int, int]:
    """Return how many proxies were reported at a target within a minute, and how many failed."""
    proxies = failed = 0
    for proxy_id in state.targets.latest(pool_id, target):
        pair = pair_row(state, pool_id, proxy_id, target)
        if pair is None or pair.reported_at is None:
            continue
        if pair.reported_at <= now - LATELY:
            break
        proxies += 1
        failed += pair.outcome in FAILURES
    return proxies, failed


def _record(row: TargetOutcomesRow | None) -> PairRecord:
    if row is None:
        return PairRecord()
    return PairRecord(
        row.successes, row.failures, row.streak, row.cool_downs, row.cools_until, row.reported_at
    )
