"""``pharox`` alone: where it is connected, what is there, and what to type next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from ..errors import PharoxError
from ..printable import escape_unprintable
from .exits import Exit
from .session import is_unset, ledger, shown_target

if TYPE_CHECKING:
    from ..models import PoolStatsSnapshot
    from ..storage.postgres import PostgresStorage

_NEW = ("db upgrade", "pools add NAME", "import SOURCE --pool NAME")
_EMPTY = ("pools add NAME", "import SOURCE --pool NAME", "acquire POOL")
_WITHOUT_PROXIES = ("import SOURCE --pool NAME", "acquire POOL", "proxies POOL")
_OLD = ("db upgrade", "doctor", "db current")
_IN_USE = ("leases", "stats --watch", "log --follow")
_UNREACHABLE = ("doctor", "--url URL doctor", "--help")

SHOWN = 20
"""How many pools have a line; `stats` has all of them."""


def print_front(context: typer.Context, version: str | None) -> None:
    """Print the connection, the versions and the pools, and three commands that come next.

    That nothing is set up yet is no error. Nothing is created or started for the first time.
    """
    print(f"pharox {version or 'from its source'}")
    if is_unset(context):
        print("not connected: PHAROX_DATABASE_URL is not set, and there is no embedded server yet")
        _print_next(_NEW)
        return
    try:
        with ledger(context) as storage:
            for line in _lines(context, storage):
                print(escape_unprintable(line))
    except PharoxError as error:
        print(escape_unprintable(f"not connected: {' '.join(str(error).split())}"))
        _print_next(_UNREACHABLE)
        raise typer.Exit(Exit.FAILURE) from None


def _lines(context: typer.Context, storage: PostgresStorage) -> Iterator[str]:
    from ..storage.postgres.migrations import HEAD  # noqa: PLC0415

    with storage.session(keep=False) as session:
        number = session.connection.info.server_version
    yield f"connected to {shown_target(context, storage)}"
    schema = storage.schema_version()
    states = {None: "does not exist yet", HEAD: f"has version {HEAD}"}
    needed = states.get(schema, f"has version {schema}; this pharox is of {HEAD}")
    yield f"PostgreSQL {number // 10_000}.{number % 10_000}; schema {storage.schema!r} {needed}"
    if schema is None or schema < HEAD:
        yield from _next(_NEW if schema is None else _OLD)
        return
    pools = storage.list_pool_stats()
    yield from map(_pool, pools[:SHOWN])
    if len(pools) > SHOWN:
        yield f"  and {len(pools) - SHOWN} more: `pharox stats`"
    if not pools:
        yield "there are no pools yet"
    has_proxies = any(pool.total_proxies for pool in pools)
    yield from _next(_IN_USE if has_proxies else _WITHOUT_PROXIES if pools else _EMPTY)


def _pool(pool: PoolStatsSnapshot) -> str:
    return (
        f"  {pool.pool_name}: {pool.available_proxies} of {pool.total_proxies} proxies available, "
        f"{pool.total_leases} leases"
    )


def _next(commands: Sequence[str]) -> Iterator[str]:
    yield "next:"
    for command in commands:
        yield f"  pharox {command}"


def _print_next(commands: Sequence[str]) -> None:
    for line in _next(commands):
        print(line)
