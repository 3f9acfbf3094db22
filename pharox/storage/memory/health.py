"""Record health checks, and find proxies that are due for one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import cast
from uuid import UUID

from projections import Availability

from ...errors import ProxyNotFoundError
from ...events import EventBase, HealthChecked, ProxiesChecked
from ...models import (
    LEASABLE,
    HealthCheckResult,
    HealthPolicy,
    Proxy,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    check_whole,
)
from ...models.ids import NIL
from ..health_rules import Observation, in_rounds, judge
from ..requests import HealthOutcome, record_of_check, redated, result_of_record
from ..validation import check_age, check_statuses, checked_model, id_from_text, pool_named
from .state import State


def record_checks(
    state: State, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
) -> list[HealthOutcome]:
    """Record health checks. Return the outcome of each, in the same order."""
    checked = (checked_model(result, HealthCheckResult) for result in results)
    seen = [Observation(result, result.healthy) for result in checked]
    outcomes = [HealthOutcome(check.result, known=False) for check in seen]
    for pool_id, places in in_rounds(seen, state.pool_of_proxy):
        checks = [seen[place] for place in places]
        recorded = _record(state, pool_id, checks, policy or HealthPolicy())
        for place, outcome in zip(places, recorded, strict=True):
            outcomes[place] = outcome
    return outcomes


def apply_result(state: State, result: HealthCheckResult) -> Proxy | None:
    """Record a health check. Return the updated proxy, or None if it is unknown."""
    (outcome,) = record_checks(state, [result], None)
    return state.proxy(result.proxy_id) if outcome.known else None


def save_record(state: State, record: ProxyHealthRecord) -> None:
    """Record a check that was made elsewhere. The proxy's status does not change."""
    seen = Observation(result_of_record(record), record.reachable, counts=False)
    if record.proxy_id not in state.pool_of_proxy:
        raise ProxyNotFoundError(f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id)
    _record(state, state.pool_of_proxy[record.proxy_id], [seen], HealthPolicy())


def due_for_checks(
    state: State,
    pools: Sequence[ProxyPool],
    pool_name: str | None,
    stale_after: timedelta | float | None,
    statuses: Collection[ProxyStatus] | None,
) -> Iterator[Proxy]:
    """Yield the proxies that are due for a check, ordered by id within each pool.

    It takes the lock for one proxy at a time, as its caller may be slow between them.
    """
    age, wanted = check_age(stale_after), check_statuses(statuses)
    members = [
        (proxy_id, pool.id)
        for pool in pool_named(pool_name, pools)
        for proxy_id in sorted(state.pools[pool.id].members)
    ]
    due = (_if_due(state, proxy_id, pool_id, age, wanted) for proxy_id, pool_id in members)
    return (proxy for proxy in due if proxy is not None)


def last_result(state: State, proxy_id: UUID) -> HealthCheckResult | None:
    """Return the newest health check of a proxy, or None if there was none."""
    uuid = id_from_text(proxy_id) or NIL
    row = state.rows["proxy_health"].get((uuid, state.pool_of_proxy.get(uuid)))
    if row is None:
        return None
    fields = asdict(row)
    del fields["pool_id"]
    error = fields.pop("error")
    fields["latency_ms"] = row.latency_ms or 0
    return HealthCheckResult(**fields, error_message=error)


def records_of(state: State, proxy_id: UUID, limit: int) -> list[ProxyHealthRecord]:
    """Return the newest health checks of a proxy, newest first."""
    check_whole(limit, "limit")
    uuid = id_from_text(proxy_id) or NIL
    places = state.checks.get(uuid, ())
    checks = [cast("HealthChecked", state.event_at(place).part_of(uuid)) for place in places]
    checks.sort(key=lambda event: (event.checked_at, event.position), reverse=True)
    return [record_of_check(event) for event in checks[: max(limit, 0)]]


def _if_due(
    state: State,
    proxy_id: UUID,
    pool_id: UUID,
    age: timedelta | None,
    statuses: Collection[ProxyStatus],
) -> Proxy | None:
    with state.lock:
        row: Availability | None = state.rows["available_proxies"].get((proxy_id, pool_id))
        if row is None or row.status not in statuses:
            return None
        if age is not None and row.probed_at and row.probed_at > state.clock() - age:
            return None
        return state.proxy(proxy_id)


def _record(
    state: State, pool_id: UUID, seen: Sequence[Observation], policy: HealthPolicy
) -> list[HealthOutcome]:
    """Record one check each for some proxies of a pool."""
    at, name = state.clock(), state.pool_name(pool_id)
    seen = [_redated(each, at) for each in seen]
    checks = [_judged(state, pool_id, at, each, policy) for each in seen]
    _append(state, at, checks)
    return [
        HealthOutcome(
            result,
            applied=check.applied,
            status_before=check.before.status,
            status_after=check.after.status,
            pool_name=name,
            leases=check.before.leases,
            lease_ids=check.lease_ids,
            source=check.source,
        )
        for (result, *_), check in zip(seen, checks, strict=True)
    ]


def _redated(seen: Observation, at: datetime) -> Observation:
    """Return an observation whose time is not later than ``at``."""
    return seen._replace(result=redated(seen.result, min(seen.result.checked_at, at)))


def _append(state: State, at: datetime, checks: Sequence[HealthChecked]) -> None:
    """Append checks of different proxies. Those that change no status share one event."""
    alike = [check for check in checks if check.before == check.after]
    if len(alike) > 1:
        fields = ProxiesChecked.fields_of(alike)
        together = state.append(
            ProxiesChecked, at, is_valid=True, pool_id=alike[0].pool_id, **fields
        )
        _note(state, together, together.proxy_ids)
        checks = [check for check in checks if check.before != check.after]
    for check in checks:
        event = state.append(HealthChecked, at, is_valid=True, **vars(check))
        _note(state, event, [event.proxy_id])


def _note(state: State, event: EventBase, proxy_ids: Iterable[UUID]) -> None:
    """Remember the log position of the proxies' checks."""
    for proxy_id in proxy_ids:
        state.checks.setdefault(proxy_id, []).append(event.position)


def _judged(
    state: State, pool_id: UUID, at: datetime, seen: Observation, policy: HealthPolicy
) -> HealthChecked:
    """Return the event of a check."""
    result, proxy_id = seen.result, seen.result.proxy_id
    row = state.availability(pool_id, proxy_id)
    judgement = judge(row, seen, result.checked_at, policy)
    before = state.current_state(pool_id, proxy_id)
    dropped = before.status in LEASABLE and judgement.status not in LEASABLE
    held = state.held_rows(pool_id, proxy_id) if dropped else ()
    description = state.proxy_row(proxy_id)
    return HealthChecked(
        recorded_at=at,
        pool_id=pool_id,
        proxy_id=proxy_id,
        before=before,
        after=replace(before, status=judgement.status),
        applied=judgement.applied,
        status=result.status,
        reachable=seen.reachable,
        latency_ms=result.latency_ms,
        mean_latency_ms=judgement.mean_latency_ms,
        protocol=result.protocol,
        attempts=result.attempts,
        status_code=result.status_code,
        checked_at=result.checked_at,
        error=result.error_message,
        failure=result.failure,
        streak=judgement.streak,
        lease_ids=tuple(lease.id for lease in held),
        source=description.source,
        exit_ip=result.exit_ip if result.exit_ip != description.exit_ip else None,
    )
