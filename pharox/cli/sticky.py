"""``pharox sessions``: list the sticky sessions, forget one, or have another key inherit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..history.describing import lasting
from ..models import StickySession
from .once import Commands
from .output import Format, Output, print_rows
from .pools import named
from .session import ledger
from .showing import PAGE, in_utc, say

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

app = Commands()

_COLUMNS = ("session", "pool", "proxy", "target", "shared", "bound", "remaining")
_Key = Annotated[str, typer.Argument(metavar="KEY", help="The session's key.")]
_Pool = Annotated[str, typer.Option(metavar="POOL", help="The pool of the session.")]


@app.callback(invoke_without_command=True)
def sessions(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only sessions in this pool.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """List the sticky sessions: which proxy each key keeps, and for how long."""
    if context.invoked_subcommand is not None:
        return
    with ledger(context) as storage:
        pools = storage.list_pools() if pool is None else [named(storage, pool)]
        living = (session for each in pools for session in _living_in(storage, each.name))
        print_rows(output, living, _COLUMNS, _row, fields=StickySession)


@app.command()
def forget(context: typer.Context, key: _Key, *, pool: _Pool) -> None:
    """End a key's binding, so that its next lease makes a new one; fail if there is none."""
    from ..storage.validation import session_unknown  # noqa: PLC0415 - SQLAlchemy takes a while

    with ledger(context) as storage:
        named(storage, pool)
        if storage.forget_session(pool, key) is None:
            raise session_unknown(pool, key)
    say(f"session {key!r} of pool {pool!r} is forgotten")


@app.command()
def inherit(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The key that is bound.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The key that takes over.")],
    *,
    pool: _Pool,
) -> None:
    """Have another key take over a binding, until it would have ended."""
    with ledger(context) as storage:
        named(storage, pool)
        storage.inherit_session(pool, old, new)
    say(f"session {new!r} of pool {pool!r} has the proxy of {old!r}")


def _living_in(storage: PostgresStorage, pool_name: str) -> Iterator[StickySession]:
    """Yield the sessions of a pool, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.list_sessions(pool_name, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _row(session: StickySession) -> tuple[object, ...]:
    return (
        session.key,
        session.pool_name,
        session.address or f"{session.proxy_id} (removed)",
        session.target,
        "yes" if session.shared else "no",
        in_utc(session.bound_at),
        lasting(session.remaining_seconds),
    )
