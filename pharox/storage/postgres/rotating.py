"""Have the lease of a template take another exit."""

from __future__ import annotations

from functools import lru_cache
from uuid import UUID

from ...errors import LeaseEndedError
from ...events.attribution import current_attribution
from ...models import GatewayExit, LeaseStatus
from ..requests import ending_of, no_lease
from ..validation import no_session_id
from . import reading
from .driver import Program
from .sql import Query, Statement, call_of

_ROTATE = {
    "own_slot": "smallint",
    "actor": "text",
    "correlation_id": "text",
    "lease_id": "uuid",
}


def rotate_exit(schema: str, lease_id: UUID) -> Program[GatewayExit]:
    """Have a lease take another exit, and return it."""
    actor, correlation_id = current_attribution()
    values = {"actor": actor, "correlation_id": correlation_id, "lease_id": lease_id}
    ((outcome, status, gateway_exit),) = yield Query(_rotate_statement(schema), values)
    if outcome == "unknown":
        raise no_lease(lease_id)
    if outcome == "fixed":
        raise no_session_id(lease_id)
    if outcome == "ended":
        rows = yield Query(reading.lease_statement(schema), {"lease_id": lease_id})
        if not rows:  # It was pruned meanwhile.
            raise no_lease(lease_id)
        lease = reading.lease_from_row(rows[0])
        lease.status = LeaseStatus(status)
        raise LeaseEndedError(ending_of(lease), lease_id=lease_id)
    return GatewayExit(**gateway_exit)


@lru_cache(maxsize=8)
def _rotate_statement(schema: str) -> Statement:
    statement = call_of(schema, "rotate_exit_v1", _ROTATE)
    return statement._replace(columns=("outcome", "status", "exit"), writes=True, is_bare=True)
