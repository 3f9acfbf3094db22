"""api_tokens: the tokens with which programs lease over HTTP, by their digests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    DateTime,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    delete,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import ApiTokenIssued, ApiTokenWithdrawn, EventBase

from .base import Events, Fold, Projection, fact, metadata, of_type


@dataclass(slots=True)
class ApiTokenRow:
    """A token that was issued and not withdrawn."""

    id: UUID
    digest: str
    consumer: str
    rights: list[str]
    pools: list[str]
    expires_at: datetime | None
    issued_at: datetime


api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("digest", Text, nullable=False),
    Column("consumer", Text, nullable=False),
    Column("rights", JSONB, nullable=False),
    Column("pools", JSONB, nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("issued_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("id"),
)


class ApiTokens(Projection):
    """Keeps each token from its issue until it is withdrawn; an id is never issued again."""

    name = "api_tokens"
    table = api_tokens
    row: ClassVar[type] = ApiTokenRow
    key = ("id",)

    def apply(self, state: dict[Any, ApiTokenRow], event: EventBase) -> None:
        match event:
            case ApiTokenIssued():
                state[(event.token_id,)] = ApiTokenRow(
                    event.token_id,
                    event.digest,
                    event.consumer,
                    [right.value for right in event.rights],
                    list(event.pools),
                    event.token_expires_at,
                    event.recorded_at,
                )
            case ApiTokenWithdrawn():
                state.pop((event.token_id,), None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"ApiTokenIssued"}), _keep),
            # After those that were issued: a range may have both of a token, in this order.
            Fold(frozenset({"ApiTokenWithdrawn"}), _withdraw),
        )


def _keep(events: Events) -> UpdateBase:
    """Keep the tokens that were issued."""
    issued = select(
        fact(events, "token_id", Uuid),
        fact(events, "digest", Text),
        events.c.consumer,
        fact(events, "rights", JSONB),
        fact(events, "pools", JSONB),
        fact(events, "token_expires_at", DateTime(timezone=True)),
        events.c.recorded_at,
    ).where(of_type(events, "ApiTokenIssued"))
    columns = ["id", "digest", "consumer", "rights", "pools", "expires_at", "issued_at"]
    return insert(api_tokens).from_select(columns, issued)


def _withdraw(events: Events) -> UpdateBase:
    """Delete the tokens that were withdrawn."""
    withdrawn = select(fact(events, "token_id", Uuid)).where(of_type(events, "ApiTokenWithdrawn"))
    return delete(api_tokens).where(api_tokens.c.id.in_(withdrawn))


API_TOKENS = ApiTokens()
