"""Programs that record health checks and set statuses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from ...errors import ProxyNotFoundError
from ...models import HealthCheckResult, HealthPolicy, Proxy, ProxyHealthRecord, ProxyStatus
from ...models.ids import NIL
from ..health_rules import Observation, in_rounds
from ..requests import HealthOutcome, redated, result_of_record
from ..validation import check_ban, check_reason, check_status, checked_model, id_from_text
from . import health_statements, registry_statements
from .appending import origin
from .driver import Program, Rows
from .lookups import Lookups
from .sql import Query


class Health(Lookups):
    """The commands that change a proxy's health."""

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Program[list[HealthOutcome]]:
        """Record checks. Return the outcome of each, in the same order."""
        checked = (checked_model(result, HealthCheckResult) for result in results)
        seen = [Observation(result, result.healthy) for result in checked]
        return self._record_health_checks(seen, policy or HealthPolicy())

    def apply_health_check(self, result: HealthCheckResult) -> Program[Proxy | None]:
        """Record a check. Return the updated proxy, or None if it is unknown."""
        (outcome,) = yield from self.record_health_checks([result], None)
        if not outcome.known:
            return None
        return (yield from self.updated_proxy(result.proxy_id))

    def save_health_record(self, record: ProxyHealthRecord) -> Program[None]:
        """Record a check that was made elsewhere. It does not change the proxy's status."""
        seen = Observation(result_of_record(record), record.reachable, counts=False)
        (outcome,) = yield from self._record_health_checks([seen], HealthPolicy())
        if not outcome.known:
            raise ProxyNotFoundError(
                f"Proxy {record.proxy_id} not found.", proxy_id=record.proxy_id
            )

    def _record_health_checks(
        self, seen: Sequence[Observation], policy: HealthPolicy
    ) -> Program[list[HealthOutcome]]:
        ids = list({x.result.proxy_id for x in seen})
        rows = yield Query(health_statements.pools_of_statement(self.schema), {"ids": ids})
        outcomes = [HealthOutcome(check.result, known=False) for check in seen]
        pools = {row["id"]: row["pool_id"] for row in rows}
        names = {row["pool_id"]: row["pool_name"] for row in rows}
        sources = {row["id"]: row["source"] for row in rows}
        for pool_id, places in in_rounds(seen, pools):
            checks = {seen[place].result.proxy_id: seen[place] for place in places}
            recorded = yield from self._record_batch(pool_id, checks, sources, policy)
            for place in places:
                result = seen[place].result
                if (row := recorded.get(result.proxy_id)) is not None:
                    outcomes[place] = _outcome(result, row, names[pool_id])
        return outcomes

    def _record_batch(
        self,
        pool_id: UUID,
        checks: Mapping[UUID, Observation],
        sources: Mapping[UUID, str | None],
        policy: HealthPolicy,
    ) -> Program[dict[UUID, Mapping[str, Any]]]:
        """Record one check each for some proxies of a pool. Return the appended events."""
        values = {
            **origin(),
            "pool_id": pool_id,
            "failures": policy.failures_before_inactive,
            "successes": policy.successes_before_active,
            "window": policy.latency_window,
        }

        def record(answers: Sequence[Rows]) -> Query:
            # Only locked proxies: one that was registered during the wait for locks is not.
            ids = [row["proxy_id"] for row in answers[0]]
            rows = [_check_row(checks[proxy_id], sources[proxy_id]) for proxy_id in ids]
            statement = health_statements.record_statement(self.schema)
            return Query(statement, {**values, "rows": json.dumps(rows)})

        lock = health_statements.lock_statement(self.schema)
        _, recorded = yield [Query(lock, {**values, "ids": list(checks)}), record]
        return {row["proxy_id"]: row for row in recorded}

    def set_status(
        self,
        proxy_id: UUID,
        status: ProxyStatus,
        reason: str | None,
        for_seconds: float | None = None,
    ) -> Program[Proxy]:
        """Set a proxy's status: for so many seconds if it is a ban with an end."""
        check_reason(reason)
        wanted = check_status(status)
        check_ban(wanted, for_seconds)
        return self._set_status(id_from_text(proxy_id) or NIL, wanted, reason, for_seconds)

    def _set_status(
        self, proxy_id: UUID, status: ProxyStatus, reason: str | None, for_seconds: float | None
    ) -> Program[Proxy]:
        row = yield from self.current(proxy_id)
        values = {
            **origin(),
            "pool_id": row["pool_id"],
            "proxy_id": proxy_id,
            "ids": [proxy_id],
            "status": status.value,
            "reason": reason,
        }
        # The change must see the latest state, so the proxy is locked in a statement before it.
        statement = registry_statements.set_status_statement(self.schema)
        if for_seconds is not None:
            statement = registry_statements.ban_statement(self.schema)
            values["for_seconds"] = float(for_seconds)
        change = Query(statement, values)
        locked, _ = yield [
            Query(health_statements.lock_statement(self.schema), values),
            lambda answers: change if answers[0] else None,
        ]
        proxy = yield from self.updated_proxy(proxy_id)
        if not locked or proxy is None:
            raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
        return proxy


def _check_row(check: Observation, source: str | None) -> dict[str, Any]:
    """Convert a check to a row for ``health_statements.record_statement``."""
    result = check.result
    data = {
        "status": result.status,
        "reachable": check.reachable,
        "latency_ms": result.latency_ms,
        "protocol": result.protocol,
        "attempts": result.attempts,
        "status_code": result.status_code,
        "error": result.error_message,
        "failure": result.failure,
        "source": source,
    }
    return {
        "proxy_id": str(result.proxy_id),
        "status": result.status,
        "reachable": check.reachable,
        "counts": check.counts,
        "latency_ms": result.latency_ms,
        "exit_ip": result.exit_ip,
        "checked_at": result.checked_at.isoformat(),
        "data": data,
    }


def _outcome(result: HealthCheckResult, row: Mapping[str, Any], pool_name: str) -> HealthOutcome:
    """Return the outcome of a check from its event."""
    data = row["data"]
    return HealthOutcome(
        result=redated(result, datetime.fromisoformat(data["checked_at"])),
        applied=data["applied"],
        status_before=ProxyStatus(row["status_before"]),
        status_after=ProxyStatus(row["status_after"]),
        pool_name=pool_name,
        leases=row["leases_before"],
        lease_ids=tuple(UUID(lease_id) for lease_id in data["lease_ids"]),
        source=data["source"],
    )
