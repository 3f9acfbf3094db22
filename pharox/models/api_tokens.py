"""Tokens with which programs in other languages lease: whose they are, and what they may do.

A token is 256 random bits, shown once. The ledger keeps its SHA-256: whoever reads the ledger
cannot make the token of it, and nobody can guess as much. So no slow hash is needed, and a token is
found by its digest: the time that takes tells nothing of the tokens that there are.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from secrets import token_urlsafe
from typing import Annotated, Self
from uuid import UUID, uuid4

from pydantic import ConfigDict, Field

from .refusing import Refusing
from .validation import Name, UtcDatetime, utc_now

TOKEN_PREFIX = "pharox_"  # noqa: S105 - what scanners of repositories find a leaked token by
"""How the text of a token begins."""

MAX_TOKENS = 1000
"""How many tokens there may be: every process that serves the API reads them all."""

MAX_TOKEN_POOLS = 100
"""How many pools one token may name."""

_SECRET_BYTES = 32


class ApiRight(StrEnum):
    """What a token may do.

    ACQUIRE: lease proxies for its consumer, and renew, release, look at and report of those leases.
    REVOKE: end leases of others. STATS: read the statistics of pools.
    """

    ACQUIRE = "acquire"
    REVOKE = "revoke"
    STATS = "stats"


class ApiToken(Refusing):
    """What is known of a token, but for its text.

    Parameters
    ----------
    consumer:
        Who it acts as.
    rights:
        What it may do, at least one.
    pools:
        The names of the pools that it is for; all if there are none.
    expires_at:
        From when on it is refused, by the clock of whoever serves the API; None if never.
    digest:
        The SHA-256 of its text, in hexadecimal digits.
    issued_at:
        When it was stored, by the storage's clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: UUID = Field(default_factory=uuid4)
    consumer: Name
    rights: Annotated[frozenset[ApiRight], Field(min_length=1)] = frozenset({ApiRight.ACQUIRE})
    pools: Annotated[frozenset[Name], Field(max_length=MAX_TOKEN_POOLS)] = frozenset()
    expires_at: UtcDatetime | None = None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", repr=False)]
    issued_at: UtcDatetime = Field(default_factory=utc_now)

    @classmethod
    def draw(
        cls,
        consumer: str,
        rights: Collection[ApiRight | str] = (ApiRight.ACQUIRE,),
        *,
        pools: Collection[str] = (),
        expires_at: datetime | None = None,
    ) -> tuple[Self, str]:
        """Return a new token, to be stored with ``add_api_token``, and its text, to be handed over.

        Raises
        ------
        InvalidInputError
            If a name, a right or the moment is none.
        """
        text = TOKEN_PREFIX + token_urlsafe(_SECRET_BYTES)
        token = cls(
            consumer=consumer,
            rights=rights,
            pools=pools,
            expires_at=expires_at,
            digest=digest_of(text),
        )
        return token, text

    def may(self, right: ApiRight, pools: Collection[str | None] = ()) -> bool:
        """Return whether it has a right, in each of these pools."""
        return right in self.rights and (not self.pools or self.pools.issuperset(pools))

    def is_valid(self, now: datetime) -> bool:
        """Return whether it has not run out."""
        return self.expires_at is None or now < self.expires_at


def digest_of(text: str) -> str:
    """Return the digest by which a token is known."""
    return sha256(text.encode(errors="surrogatepass")).hexdigest()
