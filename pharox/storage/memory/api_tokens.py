"""Keep the tokens with which programs lease over HTTP."""

from __future__ import annotations

from uuid import UUID

from projections import ApiTokenRow

from ...events import ApiTokenIssued, ApiTokenWithdrawn
from ...models import MAX_TOKENS, ApiToken
from ..validation import token_known, too_many_tokens
from .state import State


def add(state: State, token: ApiToken) -> None:
    """Record that a token was issued."""
    known = state.rows["api_tokens"]
    if (token.id,) in known:
        raise token_known(token)
    if len(known) >= MAX_TOKENS:
        raise too_many_tokens()
    state.append(
        ApiTokenIssued,
        consumer=token.consumer,
        token_id=token.id,
        digest=token.digest,
        rights=tuple(sorted(token.rights)),
        pools=tuple(sorted(token.pools)),
        token_expires_at=token.expires_at,
    )


def withdraw(state: State, token_id: UUID) -> bool:
    """Record that a token was withdrawn. Return whether there was one."""
    known: ApiTokenRow | None = state.rows["api_tokens"].get((token_id,))
    if known is None:
        return False
    state.append(ApiTokenWithdrawn, consumer=known.consumer, token_id=token_id)
    return True


def listed(state: State) -> list[ApiToken]:
    """Return all tokens, by consumer and issue."""
    rows: list[ApiTokenRow] = list(state.rows["api_tokens"].values())
    rows.sort(key=lambda row: (row.consumer, row.issued_at, row.id))
    return [ApiToken.model_validate(row, from_attributes=True) for row in rows]
