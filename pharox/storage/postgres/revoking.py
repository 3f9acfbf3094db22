"""Revoke leases: up to 500 in one statement and one commit.

What others have locked is then waited for, each lease in a transaction of its own, as for a
release: :mod:`.commands` waits with the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, Uuid, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from projections.leases import leases

from ...errors import PharoxError
from ...events.attribution import current_attribution
from ..requests import EndedLease, RevokeRequest
from .batch import Answer, answers_of, wait_for_release
from .driver import Program
from .reading import lease_from_row
from .registry import batches
from .sql import Query, Statement, by_schema, call_of, parameter

MOST = 500
"""How many leases one commit revokes. More would keep those who use one of the proxies waiting."""

_PARAMETERS = {
    "own_slot": "smallint",
    "with_stats": "boolean",
    "actor": "text",
    "correlation_id": "text",
    "revoked_ids": "uuid[]",
    "reason": "text",
}


def revoke_leases(schema: str, request: RevokeRequest) -> Program[list[EndedLease | PharoxError]]:
    """Revoke leases. Those that have ended or run out stay as they are."""
    ended: dict[UUID, EndedLease] = {}
    for batch in batches(list(dict.fromkeys(request.lease_ids)), MOST):
        locked = yield from _revoke(schema, request, batch, ended, wait=False)
        for lease_id in locked:
            alone = [lease_id]
            while alone:
                alone = yield from _revoke(schema, request, alone, ended, wait=True)
    others = [lease_id for lease_id in request.lease_ids if lease_id not in ended]
    known = {}
    if others:
        rows = yield Query(_known_statement(schema), {"lease_ids": others})
        known = {row["id"]: lease_from_row(row) for row in rows}
    return request.outcomes(ended, known)


def revoke_reasons(schema: str, lease_ids: Sequence[UUID]) -> Program[dict[UUID, str]]:
    """Return why leases were revoked."""
    if not lease_ids:
        return {}
    rows = yield Query(_known_statement(schema), {"lease_ids": list(lease_ids)})
    return {row["id"]: row["revoke_reason"] for row in rows}


def with_reasons(schema: str, answers: list[Answer]) -> Program[list[Answer]]:
    """Return answers, those about revoked leases with the reason."""
    reasons = yield from revoke_reasons(schema, [each.lease_id for each in answers if each.is_late])
    if not reasons:
        return answers
    return [
        each._replace(revoke_reason=reasons.get(each.lease_id)) if each.is_late else each
        for each in answers
    ]


def _revoke(
    schema: str,
    request: RevokeRequest,
    lease_ids: Sequence[UUID],
    ended: dict[UUID, EndedLease],
    *,
    wait: bool,
) -> Program[list[UUID]]:
    """Revoke leases in one commit, add them to ``ended``, and return those that were locked."""
    actor, correlation_id = current_attribution()
    values = {
        "with_stats": request.with_stats,
        "actor": actor,
        "correlation_id": correlation_id,
        "revoked_ids": list(lease_ids),
        "reason": request.reason,
    }
    query = Query(_statement(schema), values)
    if wait:
        _, rows = yield [wait_for_release(schema, lease_ids[0]), query]
    else:
        rows = yield query
    answers = answers_of(rows)
    revoked: Iterable[Answer] = (each for each in answers if each.outcome == "LeaseRevoked")
    ended.update((answer.lease_id, answer.revoked_lease()) for answer in revoked)
    return [answer.lease_id for answer in answers if answer.outcome == "locked"]


@lru_cache(maxsize=8)
def _statement(schema: str) -> Statement:
    statement = call_of(schema, "revoke_leases_v1", _PARAMETERS)
    return statement._replace(columns=Answer._fields, writes=True, is_bare=True)


@by_schema
def _known_statement() -> Select[Any]:
    """Return the leases with some ids."""
    return select(leases).where(leases.c.id == func.any(parameter("lease_ids", ARRAY(Uuid))))
