"""Keep the tokens with which programs lease over HTTP."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from projections.api_tokens import api_tokens

from ...models import MAX_TOKENS, ApiRight, ApiToken
from ...models.ids import NIL
from ..validation import token_known, too_many_tokens
from .appending import append, event_row, json_object, origin
from .driver import Program
from .reporting import in_utc
from .sql import ONE, Query, by_schema, parameter

_known = api_tokens.c
_ID = parameter("token_id", sa.Uuid)


def add(schema: str, token: ApiToken) -> Program[None]:
    """Record that a token was issued."""
    facts = {
        "token_id": str(token.id),
        "digest": token.digest,
        "rights": sorted(token.rights),
        "pools": sorted(token.pools),
        "token_expires_at": token.expires_at and token.expires_at.isoformat(),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    values = {
        **origin(),
        "token_id": token.id,
        "consumer": token.consumer,
        "facts": json.dumps(known),
    }
    rows = yield Query(_add_statement(schema), values)
    if rows[0]["is_known"]:
        raise token_known(token)
    if not rows[0]["appended"]:
        raise too_many_tokens()


def withdraw(schema: str, token_id: UUID) -> Program[bool]:
    """Record that a token was withdrawn. Return whether there was one."""
    rows = yield Query(_withdraw_statement(schema), {**origin(), "token_id": token_id})
    return bool(rows[0]["appended"])


def listed(schema: str) -> Program[list[ApiToken]]:
    """Return all tokens, by consumer and issue."""
    rows = yield Query(_list_statement(schema), {})
    return [_token(dict(row)) for row in rows]


def _token(row: dict[str, Any]) -> ApiToken:
    """Return a token, which was checked when it was stored.

    A later version may have given it rights that this one does not know, and so does not grant: it
    may have none at all, which no token can be made with.
    """
    return ApiToken.model_construct(
        **{
            **row,
            "rights": frozenset(right for right in ApiRight if right in row["rights"]),
            "pools": frozenset(row["pools"]),
            "issued_at": in_utc(row["issued_at"]),
            "expires_at": row["expires_at"] and in_utc(row["expires_at"]),
        }
    )


@by_schema
def _add_statement() -> sa.Select[Any]:
    """Append that a token was issued, unless its id is known or there are too many."""
    is_known = sa.exists().where(_known.id == _ID)
    number = sa.select(sa.func.count()).select_from(api_tokens).scalar_subquery()
    row = event_row(
        "ApiTokenIssued",
        pool_id=sa.literal(NIL, sa.Uuid),
        consumer=parameter("consumer"),
        data=parameter("facts", JSONB),
    )
    one = sa.select(ONE.label("one")).subquery("one")
    wanted = sa.select(row).select_from(one).where(~is_known, number < MAX_TOKENS)
    appended = append(wanted)
    count = sa.select(sa.func.count()).select_from(appended).scalar_subquery()
    return sa.select(count.label("appended"), is_known.label("is_known"))


@by_schema
def _withdraw_statement() -> sa.Select[Any]:
    """Append that a token was withdrawn, if it is known."""
    # Who withdraws the same token waits here, and then finds it no more.
    known = sa.select(api_tokens).where(_known.id == _ID).with_for_update().cte("known")
    row = event_row(
        "ApiTokenWithdrawn",
        pool_id=sa.literal(NIL, sa.Uuid),
        consumer=known.c.consumer,
        data=json_object(token_id=known.c.id),
    )
    appended = append(sa.select(row).select_from(known))
    return sa.select(sa.func.count().label("appended")).select_from(appended)


@by_schema
def _list_statement() -> sa.Select[Any]:
    ordered = (sa.collate(_known.consumer, "C"), _known.issued_at, _known.id)
    return sa.select(api_tokens).order_by(*ordered)
