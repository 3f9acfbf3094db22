"""Record what targets said, have pairs of proxy and target rest, and list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from projections import LeaseRow, PoolRow, ProxyRow, TargetOutcomesRow, TroubledTargetRow

from ...errors import PharoxError, ProxyNotFoundError
from ...events import CoolDownSet, OutcomeReported, TargetRecovered, TargetTroubled
from ...models import (
    UNCLEAR_LATELY,
    CoolDown,
    OutcomeKind,
    PairRecord,
    TargetOutcomes,
    TargetSummary,
    kept_part,
)
from ...models.money import cost_of_bytes
from ...models.text import url_of
from ..reports import CoolDownRequest, Reported, ReportRequest, report_rounds
from ..requests import no_lease
from ..validation import TargetPage, rests_no_gateway
from .exits import is_template_with_sessions
from .prices import price_of
from .state import State

FAILURES = frozenset({OutcomeKind.TARGET_FAILED, OutcomeKind.UNCLEAR})
"""The kinds for which a target itself may be to blame."""

_Site = tuple[UUID, str]

_BLOCKED = OutcomeKind.BLOCKED.value

FEWEST_PROXIES = 10
LATELY = timedelta(minutes=1)
TROUBLE = timedelta(minutes=15)
"""For how long a target is in trouble of which nobody says more."""

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
    return _trouble(state, pool_id, target) is not None


def _trouble(state: State, pool_id: UUID, target: str) -> TroubledTargetRow | None:
    """Return since when a target itself fails, or None if it does not (``lasts_v1``)."""
    row: TroubledTargetRow | None = state.rows["troubled_targets"].get((pool_id, target))
    return row if row is not None and row.since > state.clock() - TROUBLE else None


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
    trouble = _trouble(state, pool_id, target)
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
    if request.seconds is not None and is_template_with_sessions(state, pool_id, request.proxy_id):
        raise rests_no_gateway(request.proxy_id)
    now = state.clock()
    row = pair_row(state, pool_id, request.proxy_id, request.target)
    if request.seconds is None and (row is None or not _is_cooling(row, now)):
        return None
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


def end_cool_downs(state: State, proxy_id: UUID) -> None:
    """End the rests of a proxy for targets that refused an exit, if another is taken for that."""
    now, pool_id = state.clock(), state.pool_of_proxy[proxy_id]
    pool: PoolRow = state.rows["pools"][(pool_id,)]
    if pool.rotation is None or pool.rotation["on"] != "blocked":
        return
    pairs = state.targets.of_proxy(state.rows["target_outcomes"], pool_id, proxy_id)
    refusing = [row.target for row in pairs if row.outcome == _BLOCKED and _is_cooling(row, now)]
    for target in sorted(refusing):
        set_cool_down(state, CoolDownRequest(proxy_id, target, None, "another exit"))


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
        if is_template_with_sessions(state, pool_id, row.proxy_id):
            # The target refuses an exit of the gateway, and the gateway has others.
            policy = policy.model_copy(update={"base_seconds": 0})
        known = _record(pair_row(state, pool_id, row.proxy_id, target))
        after = known.after(
            outcome.model_copy(update={"target": target}),
            policy,
            lease.id,
            now,
            is_troubled=is_troubled(state, pool_id, target),
        )
        record = {name: getattr(after, name) for name in _RECORD}
        record["begins_rest"] = after.cool_downs > known.cool_downs
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
        cost=cost_of_bytes(outcome.bytes, price_of(state, pool_id, row.proxy_id, "cost_per_gb")),
        **record,
    )
    if target is not None:
        sites.setdefault((pool_id, target), set()).add(outcome.kind)
    until = record.get("cools_until")
    return Reported(target, until if until and until > now else None, record.get("streak", 0))


def _judge(state: State, pool_id: UUID, target: str, kinds: set[OutcomeKind]) -> None:
    """Record whether a target is in trouble after some reports, or no more."""
    now, is_ok = state.clock(), OutcomeKind.OK in kinds
    site: dict[str, Any] = {
        "pool_id": pool_id,
        "pool_name": state.pool_name(pool_id),
        "target": target,
    }
    if is_ok:
        if (pool_id, target) in state.rows["troubled_targets"]:
            state.append(TargetRecovered, now, **site)
    elif kinds & FAILURES and not is_troubled(state, pool_id, target):
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


def count_unclear(state: State, proxy_id: UUID) -> int:
    """Return at how many targets a proxy failed lately, nobody knows why, and since any success."""
    pool_id = state.pool_of_proxy.get(proxy_id)
    pairs: list[TargetOutcomesRow] = [
        row
        for (pool, proxy, _), row in state.rows["target_outcomes"].items()
        if (pool, proxy) == (pool_id, proxy_id) and row.reported_at is not None
    ]
    since = max(
        (row.reported_at for row in pairs if row.outcome == OutcomeKind.OK and row.reported_at),
        default=datetime.min.replace(tzinfo=UTC),
    )
    since = max(since, state.clock() - UNCLEAR_LATELY)
    unclear = [row for row in pairs if row.outcome == OutcomeKind.UNCLEAR]
    return sum(row.reported_at is not None and row.reported_at > since for row in unclear)


def _record(row: TargetOutcomesRow | None) -> PairRecord:
    if row is None:
        return PairRecord()
    return PairRecord(
        row.successes, row.failures, row.streak, row.cool_downs, row.cools_until, row.reported_at
    )


def list_pairs(state: State, page: TargetPage) -> list[TargetOutcomes]:
    """Return a page of pairs, ordered by the ids of pool and proxy, then by target."""
    now = state.clock()
    rows = [
        row
        for key, row in state.rows["target_outcomes"].items()
        if key > page.after
        and _is_wanted(state, row, page)
        and page.proxy_id in (None, row.proxy_id)
        and (not page.cooling or _is_cooling(row, now))
    ]
    rows.sort(key=lambda row: (row.pool_id, row.proxy_id, row.target))
    return [_listed(state, row, now) for row in rows[: page.limit]]


def summarize(state: State, page: TargetPage) -> list[TargetSummary]:
    """Return a page of targets, each summed up over its pairs."""
    pool_id, _, target = page.after
    of_target: dict[tuple[UUID, str], list[TargetOutcomesRow]] = {}
    for row in state.rows["target_outcomes"].values():
        if (row.pool_id, row.target) > (pool_id, target) and _is_wanted(state, row, page):
            of_target.setdefault((row.pool_id, row.target), []).append(row)
    now = state.clock()
    places = sorted(of_target)[: page.limit]
    return [_summary(state, of_target[place], now) for place in places]


def _is_wanted(state: State, row: TargetOutcomesRow, page: TargetPage) -> bool:
    is_of_pool = page.pool_name in (None, state.pool_name(row.pool_id))
    return is_of_pool and page.target in (None, row.target)


def _is_cooling(row: TargetOutcomesRow, now: datetime) -> bool:
    return row.cools_until is not None and row.cools_until > now


def _listed(state: State, row: TargetOutcomesRow, now: datetime) -> TargetOutcomes:
    proxy: ProxyRow | None = state.rows["proxies"].get((row.proxy_id, row.pool_id))
    return TargetOutcomes(
        **asdict(row),
        pool_name=state.pool_name(row.pool_id),
        address=proxy and url_of(proxy.protocol, proxy.host, proxy.port),
        remaining_seconds=(
            (row.cools_until - now).total_seconds()
            if row.cools_until is not None and row.cools_until > now
            else None
        ),
    )


def _summary(state: State, rows: Sequence[TargetOutcomesRow], now: datetime) -> TargetSummary:
    kept = [1.0 if row.reported_at is None else kept_part(row.reported_at, now) for row in rows]
    resting = [row.cools_until for row in rows if row.cools_until and _is_cooling(row, now)]
    blocked = [row for row in rows if row.outcome == OutcomeKind.BLOCKED]
    return TargetSummary(
        pool_id=rows[0].pool_id,
        pool_name=state.pool_name(rows[0].pool_id),
        target=rows[0].target,
        pairs=len(rows),
        cooling=len(resting),
        successes=sum(row.successes * part for row, part in zip(rows, kept, strict=True)),
        failures=sum(row.failures * part for row, part in zip(rows, kept, strict=True)),
        blocked=len(blocked),
        unclear=sum(row.outcome == OutcomeKind.UNCLEAR for row in rows),
        refused_at=max((row.reported_at for row in blocked if row.reported_at), default=None),
        free_at=min(resting, default=None),
    )
