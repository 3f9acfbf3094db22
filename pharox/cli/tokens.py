"""``pharox tokens``: who may lease over HTTP."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer

from ..errors import InvalidInputError, PharoxError
from ..models import ApiRight, ApiToken, utc_now
from .checking import duration_of
from .once import Commands
from .output import Format, Output, print_rows
from .pools import named
from .session import ledger
from .showing import AsJson, in_utc, print_json, say

app = Commands(help="Issue tokens for workers that lease over HTTP, and withdraw them.")

_COLUMNS = ("token", "consumer", "may", "pools", "issued", "expires")


@app.command()
def add(
    context: typer.Context,
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="Who the token acts as.")],
    *,
    can: Annotated[
        list[ApiRight] | None,
        typer.Option(help="What it may do; may be repeated. By default it may acquire."),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="POOL", help="Only in this pool; may be repeated. By default in all."),
    ] = None,
    expires: Annotated[
        float | None,
        typer.Option(metavar="TIME", parser=duration_of, help="For how long it is good: 30d, 12h."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a token for a consumer, and print it: it is shown this once.

    The ledger keeps only a digest of it.
    """
    token, text = ApiToken.draw(
        consumer, can or (ApiRight.ACQUIRE,), pools=pool or (), expires_at=_moment_in(expires)
    )
    with ledger(context) as storage:
        for name in sorted(token.pools):
            named(storage, name)
        storage.add_api_token(token)
    if as_json:
        print_json({**_attributes(token), "token": text})
        return
    say(f"token {token.id} of {consumer!r} may {_rights(token)}; it is shown this once:")
    print(text)


@app.command("list")
def list_tokens(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the tokens that were issued and not withdrawn."""
    with ledger(context) as storage:
        listed = storage.list_api_tokens()
    print_rows(
        output,
        listed,
        _COLUMNS,
        _row,
        fields=("id", "consumer", "rights", "pools", "issued_at", "expires_at"),
        attributes=_attributes,
        empty="there are no tokens: `pharox tokens add CONSUMER` issues one",
    )


@app.command()
def withdraw(
    context: typer.Context,
    token_id: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Its id, or the beginning of it.")
    ],
) -> None:
    """Withdraw a token, which is refused ten seconds later at most; fail if there is none.

    Leases that were acquired with it last on until they run out: `pharox revoke` ends them.
    """
    with ledger(context) as storage:
        begin = token_id.lower()
        known = [each for each in storage.list_api_tokens() if str(each.id).startswith(begin)]
        if len(known) > 1:
            raise InvalidInputError(f"{len(known)} tokens begin with {token_id!r}", value=token_id)
        if not begin or not known or not storage.withdraw_api_token(known[0].id):
            raise PharoxError(f"there is no token {token_id!r}; `pharox tokens list` has all")
    say(f"token {known[0].id} of {known[0].consumer!r} is withdrawn")


def _moment_in(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc_now() + timedelta(seconds=seconds)


def _row(token: ApiToken) -> tuple[object, ...]:
    state = "never" if token.expires_at is None else in_utc(token.expires_at)
    if not token.is_valid(utc_now()):
        state = f"{state} (over)"
    pools = ", ".join(sorted(token.pools)) or "all"
    return (token.id, token.consumer, _rights(token), pools, in_utc(token.issued_at), state)


def _rights(token: ApiToken) -> str:
    return ", ".join(sorted(token.rights))


def _attributes(token: ApiToken) -> dict[str, object]:
    """Return what is known of a token but its digest, which nobody needs to see."""
    return {
        "id": str(token.id),
        "consumer": token.consumer,
        "rights": sorted(token.rights),
        "pools": sorted(token.pools),
        "issued_at": token.issued_at.isoformat(),
        "expires_at": token.expires_at and token.expires_at.isoformat(),
    }
