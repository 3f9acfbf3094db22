"""Record health checks, and say which proxies are due for one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from uuid import UUID

from projections import Availability

from ...errors import ProxyNotFoundError
from ...events import HealthChecked
from ...ids import NIL
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
from ..health_rules import Observation, in_rounds, judge
from ..requests import HealthOutcome, record_of_check, redated, result_of_record
from ..validation import check_age, check_statuses, checked_model, id_from_text, pool_named
from .state import State


def record_checks(
    state: State, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
) -> list[HealthOutcome]:
    """Record health checks; return what each came to, in their order."""
    seen = [Observation(result, result.healthy) for result in map(checked_model, results)]
    outcomes = [HealthOutcome(check.result, known=False) for check in seen]
    for _, places in in_rounds(seen, state.pool_of_proxy):
        for place in places:
            outcomes[place] = _record(state, seen[place], policy or HealthPolicy())
    return outcomes


def apply_result(state: State, result: HealthCheckResult) -> Proxy | None:
    """Record a health check and return the proxy as it then stands; None if unknown."""
    (outcome,) = record_checks(state, [result], None)
    return state.proxy(result.proxy_id) if outcome.known else None


def save_record(state: State, record: ProxyHealthRecord) -> None:
    """Record an observation made elsewhere; the proxy's status stays."""
    seen = Observation(result_of_record(record), record.reachable, counts=False)
    if record.proxy_id not in state.pool_of_proxy:
        raise ProxyNotFoundError(f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id)
    _record(state, seen, HealthPolicy())


def due_for_checks(
    state: State,
    pools: Sequence[ProxyPool],
    pool_name: str | None,
    stale_after: timedelta | float | None,
    statuses: Collection[ProxyStatus] | None,
) -> Iterator[Proxy]:
    """Yield the proxies that are due to be checked, by id within each pool.

    It takes the lock for one proxy at a time, as its caller may take a while for each.
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
    facts = asdict(row)
    del facts["pool_id"]
    error = facts.pop("error")
    facts["latency_ms"] = row.latency_ms or 0
    return HealthCheckResult(**facts, error_message=error)


def records_of(state: State, proxy_id: UUID, limit: int) -> list[ProxyHealthRecord]:
    """Return the newest health checks of a proxy, newest first."""
    check_whole(limit, "limit")
    checks = list(state.checks.get(id_from_text(proxy_id) or NIL, ()))
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


def _record(state: State, seen: Observation, policy: HealthPolicy) -> HealthOutcome:
    proxy_id = seen.result.proxy_id
    pool_id = state.pool_of_proxy[proxy_id]
    result = redated(seen.result, min(seen.result.checked_at, state.clock()))
    event = _append_check(state, seen, result, policy)
    state.checks.setdefault(proxy_id, []).append(event)
    return HealthOutcome(
        result,
        applied=event.applied,
        status_before=event.before.status,
        status_after=event.after.status,
        pool_name=state.pool_name(pool_id),
        leases=event.before.leases,
        lease_ids=event.lease_ids,
        source=event.source,
    )


def _append_check(
    state: State, seen: Observation, result: HealthCheckResult, policy: HealthPolicy
) -> HealthChecked:
    proxy_id = result.proxy_id
    pool_id = state.pool_of_proxy[proxy_id]
    row = state.availability(pool_id, proxy_id)
    judgement = judge(row, seen, result.checked_at, policy)
    before = state.standing(pool_id, proxy_id)
    dropped = before.status in LEASABLE and judgement.status not in LEASABLE
    held = state.held_rows(pool_id, proxy_id) if dropped else ()
    return state.append(
        HealthChecked,
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
        source=state.proxy_row(proxy_id).source,
    )
