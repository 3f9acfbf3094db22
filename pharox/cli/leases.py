"""``pharox leases``: list the leases that are held now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..models import HeldLease
from .describing import lasting
from .pools import named
from .session import ledger
from .showing import PAGE, AsJson, in_utc, print_json, print_table

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

_COLUMNS = ("lease", "pool", "proxy", "consumer", "acquired", "remaining", "renewed")


def leases(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only leases in this pool.")
    ] = None,
    consumer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only leases of this consumer.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the leases that are held now, by pool and proxy; `revoke` ends one by its id."""
    with ledger(context) as storage:
        pools = storage.list_pools() if pool is None else [named(storage, pool)]
        held = (lease for each in pools for lease in _held_in(storage, each.name, consumer))
        if as_json:
            for lease in held:
                print_json(lease)
        else:
            print_table(_COLUMNS, map(_row, held))


def _held_in(storage: PostgresStorage, pool_name: str, consumer: str | None) -> Iterator[HeldLease]:
    """Yield the leases of a pool, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.list_held_leases(pool_name, consumer_name=consumer, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _row(lease: HeldLease) -> tuple[object, ...]:
    left = lease.remaining_seconds
    return (
        lease.id,
        lease.pool_name,
        lease.address,
        lease.consumer_name,
        in_utc(lease.acquired_at),
        lasting(left) if left > 0 else f"ran out {lasting(-left)} ago",
        lease.renewed_at and in_utc(lease.renewed_at),
    )
