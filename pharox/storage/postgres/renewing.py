"""Renew leases: up to 500 in one statement and one commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Select, Uuid, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from projections.leases import leases

from ...errors import PharoxError
from ...events.attribution import current_attribution
from ...models import Lease, LeaseStatus
from ..requests import RenewRequest, lease_busy, renewal_rounds
from .driver import Program
from .registry import batches
from .revoking import revoke_reasons
from .sql import Query, Statement, by_schema, call_of, parameter

MOST = 500
"""How many leases one commit renews. More would keep those who end one of them waiting."""

_PARAMETERS = {
    "own_slot": "smallint",
    "actor": "text",
    "correlation_id": "text",
    "asked_ids": "uuid[]",
    "tokens": "bigint[]",
    "durations": "double precision[]",
}


class _Answer(NamedTuple):
    """A row of ``renew_leases_v1``. All fields are None if there is no such lease."""

    is_renewed: bool
    is_locked: bool
    status: str
    expires_at: datetime
    renewed_at: datetime | None
    ended_at: datetime | None
    fencing_token: int

    def recorded(self, lease: Lease, revoke_reason: str | None) -> Lease | None:
        """Return the lease as it is recorded."""
        if self.status is None:
            return None
        return lease.model_copy(
            update={
                "status": LeaseStatus(self.status),
                "expires_at": self.expires_at.astimezone(UTC),
                "renewed_at": self.renewed_at and self.renewed_at.astimezone(UTC),
                "released_at": self.ended_at and self.ended_at.astimezone(UTC),
                "fencing_token": self.fencing_token,
                "revoke_reason": revoke_reason,
            }
        )


def renew_leases(
    schema: str, requests: Sequence[RenewRequest], *, wait: bool
) -> Program[list[Lease | PharoxError]]:
    """Renew leases, in the order of their ids in each commit."""
    outcomes: dict[int, Lease | PharoxError] = {}
    for places in renewal_rounds(requests):
        for batch in batches(places, MOST):
            asked = {place: requests[place] for place in batch}
            locked = yield from _renew(schema, asked, outcomes, wait=False)
            # Whoever has locked a lease is ending or renewing it, and will commit soon.
            while wait and locked:
                locked = yield from _renew(schema, locked, outcomes, wait=True)
    return [outcomes[place] for place in range(len(requests))]


def _renew(
    schema: str,
    asked: Mapping[int, RenewRequest],
    outcomes: dict[int, Lease | PharoxError],
    *,
    wait: bool,
) -> Program[dict[int, RenewRequest]]:
    """Renew leases in one commit, set their outcomes, and return those that were locked."""
    actor, correlation_id = current_attribution()
    ids = [request.lease.id for request in asked.values()]
    values = {
        "actor": actor,
        "correlation_id": correlation_id,
        "asked_ids": ids,
        "tokens": [request.lease.fencing_token for request in asked.values()],
        "durations": [request.duration_seconds for request in asked.values()],
    }
    query = Query(_renew_statement(schema), values)
    if wait:
        _, rows = yield [Query(_lock_statement(schema), {"lease_ids": ids}), query]
    else:
        rows = yield query
    answers = list(map(_Answer._make, rows))
    ids_of_revoked = [
        lease_id
        for lease_id, answer in zip(ids, answers, strict=True)
        if answer.status == LeaseStatus.REVOKED
    ]
    reasons = yield from revoke_reasons(schema, ids_of_revoked)
    locked: dict[int, RenewRequest] = {}
    for (place, request), answer in zip(asked.items(), answers, strict=True):
        if answer.is_locked:
            locked[place] = request
            outcomes[place] = lease_busy(request.lease)
        else:
            recorded = answer.recorded(request.lease, reasons.get(request.lease.id))
            outcomes[place] = request.outcome(recorded, is_renewed=bool(answer.is_renewed))
    return locked


@lru_cache(maxsize=8)
def _renew_statement(schema: str) -> Statement:
    statement = call_of(schema, "renew_leases_v1", _PARAMETERS)
    return statement._replace(columns=_Answer._fields, writes=True, is_bare=True)


@by_schema
def _lock_statement() -> Select[Any]:
    """Lock leases in the order of their ids, once whoever has locked them has committed."""
    wanted = leases.c.id == func.any(parameter("lease_ids", ARRAY(Uuid)))
    return select(leases.c.id).where(wanted).order_by(leases.c.id).with_for_update(key_share=True)
