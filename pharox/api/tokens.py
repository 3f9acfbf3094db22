"""Know tokens by their digests, from a list that is read every few seconds.

A withdrawn token is refused once the list was read again: :data:`REFRESH_S` later at most, and the
time that reading takes. A new one is known at once, as the list is read for a token that it lacks,
but not more than once a second, so that guessing costs the ledger nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from ..models import ApiRight, ApiToken, digest_of, utc_now
from ..storage.async_interface import IAsyncStorage
from .problems import NOT_ALLOWED, TOKEN_EXPIRED, TOKEN_MISSING, TOKEN_UNKNOWN, Problem

REFRESH_S = 5.0
"""How old the list may be."""

AGAIN_S = 1.0
"""How old it is at least when a token that it lacks has it read again."""

_ASK = {"www-authenticate": 'Bearer realm="pharox"'}
_BEARER = "bearer "


class Tokens:
    """The tokens of a ledger, as of some seconds ago at most."""

    def __init__(self, storage: IAsyncStorage) -> None:
        self._storage = storage
        self._known: dict[str, ApiToken] = {}
        self._read_at = float("-inf")
        self._reading: asyncio.Future[None] | None = None

    async def of(self, header: str) -> ApiToken:
        """Return the token of an ``Authorization`` header, or raise the problem with it."""
        if not header[:7].lower().startswith(_BEARER):
            raise Problem(TOKEN_MISSING, headers=_ASK)
        digest = digest_of(header[len(_BEARER) :].strip())
        await self._read_if_older(REFRESH_S)
        if digest not in self._known:
            await self._read_if_older(AGAIN_S)
        return self._valid(digest)

    async def check_again(self, token: ApiToken) -> None:
        """Raise the problem if a token was withdrawn, or has run out, while its bearer waited."""
        await self._read_if_older(REFRESH_S)
        self._valid(token.digest)

    def _valid(self, digest: str) -> ApiToken:
        token = self._known.get(digest)
        if token is None:
            raise Problem(TOKEN_UNKNOWN, headers=_ASK)
        if token.expires_at is not None and not token.is_valid(utc_now()):
            raise Problem(TOKEN_EXPIRED, headers=_ASK)
        return token

    async def _read_if_older(self, seconds: float) -> None:
        """Read the list if it is older: once for all who wait for it, as is a failure to."""
        if time.monotonic() - self._read_at < seconds:
            return
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(self._has_read)
        await asyncio.shield(self._reading)  # Who leaves does not end it for the others.

    async def _read(self) -> None:
        began = time.monotonic()
        tokens = await self._storage.list_api_tokens()
        self._known = {token.digest: token for token in tokens}
        self._read_at = began

    def _has_read(self, reading: asyncio.Future[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # Known to those who wait, if there still are any.


def check_right(token: ApiToken, right: ApiRight, pools: Collection[str | None] = ()) -> None:
    """Raise the problem if a token may not do something in these pools."""
    if not token.may(right, pools):
        pools = ", ".join(sorted(token.pools)) or "all pools"
        rights = " and ".join(sorted(token.rights)) or "do nothing that this version knows"
        raise Problem(NOT_ALLOWED, f"The token may {rights} in {pools}.")
