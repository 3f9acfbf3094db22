"""Have proxies take another exit by their links: begin, claim and record what came of it.

The link is called by whoever claims it, with no transaction open meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.dialects.postgresql import ARRAY

from projections.rotations import rotations

from ...errors import ProxyNotFoundError, SecretKeyError
from ...events.attribution import current_attribution
from ...models import DueRotation, RotationAnswer, RotationClaims, RotationFailure
from ..validation import RETRY_LINK_S, no_rotate_url, rotates_too_soon
from .driver import Program, Rows
from .reading import description
from .sql import Query, Statement, by_schema, call_of, now, parameter
from .tables import proxy_credentials
from .vault import Place, Vault

_WHO = {"own_slot": "smallint", "actor": "text", "correlation_id": "text"}
_BEGIN = {**_WHO, "proxy_id": "uuid", "within_seconds": "double precision"}
_CLAIM = {**_WHO, "only": "uuid[]", "seconds": "double precision", "most": "integer"}
_ANSWER = {
    **_WHO,
    "proxy_id": "uuid",
    "claimed_until": "timestamptz",
    "failure": "text",
    "status": "integer",
    "exit_ip": "text",
    "retry_seconds": "double precision",
}


def _who() -> dict[str, str | None]:
    actor, correlation_id = current_attribution()
    return {"actor": actor, "correlation_id": correlation_id}


def begin_rotation(schema: str, proxy_id: UUID, within_seconds: float | None) -> Program[None]:
    """Have a proxy rest until it has another exit."""
    values = {**_who(), "proxy_id": proxy_id, "within_seconds": within_seconds}
    ((outcome, seconds),) = yield Query(_begin_statement(schema), values)
    if outcome == "unknown":
        raise ProxyNotFoundError(f"Proxy {proxy_id} not found.", proxy_id=proxy_id)
    if outcome == "no_link":
        raise no_rotate_url(proxy_id)
    if outcome == "too_soon":
        raise rotates_too_soon(proxy_id, seconds)


def claim_rotations(
    schema: str, vault: Vault, proxy_ids: Collection[UUID] | None, seconds: float, most: int
) -> Program[RotationClaims]:
    """Claim links that are due and readable, and say when the next may be.

    What this process cannot decrypt it does not claim: that would keep others from calling it.
    """
    only = None if proxy_ids is None else list(proxy_ids)
    links = yield Query(_due_statement(schema), {"only": only})
    readable, unreadable = _sorted_out(vault, links)
    if unreadable:
        only = readable
    values = {**_who(), "only": only, "seconds": seconds, "most": most}
    due: list[DueRotation] = []
    next_in_seconds: float | None = None
    rotated_at: datetime | None = None
    failed: RotationAnswer | None = None
    for pool_id, proxy_id, rotate_id, secret, claimed_until, following, failure, status in (
        yield Query(_claim_statement(schema), values)
    ):
        if proxy_id is None:
            next_in_seconds, rotated_at = following, claimed_until
            failed = failure and RotationAnswer(RotationFailure(failure), status)
            continue
        url: SecretStr | None = None
        if rotate_id is not None:
            try:
                url = vault.open_link(secret, Place(rotate_id, pool_id, proxy_id))
            except SecretKeyError:
                url = None
        due.append(DueRotation(pool_id, proxy_id, url, claimed_until))
    return RotationClaims(tuple(due), next_in_seconds, rotated_at, tuple(unreadable), failed)


def _sorted_out(vault: Vault, links: Rows) -> tuple[list[UUID], list[UUID]]:
    """Return the proxies whose links can be decrypted, and those whose cannot."""
    readable: list[UUID] = []
    unreadable: list[UUID] = []
    for row in links:
        proxy_id: UUID = row["id"]
        try:
            vault.open_link(row["secret"], Place(row["rotate_id"], row["pool_id"], proxy_id))
        except SecretKeyError:
            unreadable.append(proxy_id)
        else:
            readable.append(proxy_id)
    return readable, unreadable


def answer_rotation(schema: str, due: DueRotation, answer: RotationAnswer) -> Program[bool]:
    """Record what came of calling a link. Return False if it was not claimed any more."""
    retry = answer.retry_after_seconds
    values = {
        **_who(),
        "proxy_id": due.proxy_id,
        "claimed_until": due.claimed_until,
        "failure": answer.failure and answer.failure.value,
        "status": answer.status,
        "exit_ip": answer.exit_ip,
        "retry_seconds": RETRY_LINK_S if retry is None else retry,
    }
    ((outcome,),) = yield Query(_answer_statement(schema), values)
    return bool(outcome == "done")


@lru_cache(maxsize=8)
def _begin_statement(schema: str) -> Statement:
    statement = call_of(schema, "begin_rotation_v1", _BEGIN)
    return statement._replace(columns=("outcome", "seconds"), writes=True, is_bare=True)


@by_schema
def _due_statement() -> sa.Select[Any]:
    """Query the links that are due, of the proxies ``only`` or of all if it is null."""
    only = parameter("only", ARRAY(sa.Uuid))
    kept = proxy_credentials
    links = description.join(
        kept, sa.and_(kept.c.id == description.c.rotate_id, kept.c.proxy_id == description.c.id)
    )
    due = rotations.join(
        links,
        sa.and_(
            rotations.c.proxy_id == description.c.id, rotations.c.pool_id == description.c.pool_id
        ),
    )
    return (
        sa.select(description.c.pool_id, description.c.id, description.c.rotate_id, kept.c.secret)
        .select_from(due)
        .where(
            rotations.c.ends_at > now,
            sa.func.coalesce(rotations.c.calls_at, now) <= now,
            sa.func.coalesce(rotations.c.claimed_until, now) <= now,
            sa.or_(only.is_(None), rotations.c.proxy_id == sa.any_(only)),
        )
    )


@lru_cache(maxsize=8)
def _claim_statement(schema: str) -> Statement:
    statement = call_of(schema, "claim_rotations_v1", _CLAIM)
    columns = ("pool_id", "proxy_id", "rotate_id", "secret", "claimed_until", "next_in_seconds")
    last = ("failure", "http_status")
    return statement._replace(columns=(*columns, *last), writes=True, is_bare=True)


@lru_cache(maxsize=8)
def _answer_statement(schema: str) -> Statement:
    statement = call_of(schema, "answer_rotation_v1", _ANSWER)
    return statement._replace(columns=("outcome",), writes=True, is_bare=True)
