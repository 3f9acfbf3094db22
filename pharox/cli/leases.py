"""``pharox leases``: list the leases that are held now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..history.describing import lasting
from ..models import HeldLease
from .merged import print_leases
from .narrowing import SHORT_ID, Cell, Wide, print_fitting, shortened
from .output import Format, Output
from .pools import named
from .session import is_of_fleet, ledger
from .showing import PAGE, in_utc

if TYPE_CHECKING:
    from ..storage.postgres import PostgresStorage

_CELLS: dict[str, Cell[HeldLease]] = {
    "lease": lambda lease: lease.id,
    "pool": lambda lease: lease.pool_name,
    "proxy": lambda lease: lease.address,
    "consumer": lambda lease: lease.consumer_name,
    "acquired": lambda lease: in_utc(lease.acquired_at),
    "held": lambda lease: lasting(round(_held_s(lease))),
    "remaining": lambda lease: _remaining(lease.remaining_seconds),
    "renewed": lambda lease: lease.renewed_at and in_utc(lease.renewed_at),
    "target": lambda lease: lease.target,
    "session": lambda lease: lease.session,
}
_SHORT: dict[str, Cell[HeldLease]] = {
    "lease": lambda lease: str(lease.id)[:SHORT_ID],
    "consumer": lambda lease: shortened(lease.consumer_name or ""),
}
_SPARE = ("acquired", "renewed", "pool", "held", "session", "target")
_RARE = ("renewed", "target", "session")


def leases(
    context: typer.Context,
    *,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Only leases in this pool.")
    ] = None,
    consumer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only leases of this consumer.")
    ] = None,
    wide: Wide = False,
    output: Output = Format.TABLE,
) -> None:
    """List the leases that are held now, by pool and proxy; `revoke` ends one by its id.

    A narrow terminal shows the beginnings of ids, which commands take as well.
    """
    if is_of_fleet(context):
        print_leases(context, pool, consumer, output)
        return
    with ledger(context) as storage:
        if consumer is not None:
            _check_known(storage, consumer)
        pools = storage.list_pools() if pool is None else [named(storage, pool)]
        print_fitting(
            output,
            (lease for each in pools for lease in _held_in(storage, each.name, consumer)),
            _CELLS,
            fields=HeldLease,
            spare=_SPARE,
            short=_SHORT,
            rare=_RARE,
            wide=wide,
            empty="nothing is leased",
        )


def _check_known(storage: PostgresStorage, consumer: str) -> None:
    """Raise ConsumerNotFoundError if nobody ever had this name."""
    from ..history.finding import find_consumer  # noqa: PLC0415 - SQLAlchemy takes a while
    from ..history.sealed_log import beginning  # noqa: PLC0415

    find_consumer(storage, consumer, beginning(storage))


def _held_in(storage: PostgresStorage, pool_name: str, consumer: str | None) -> Iterator[HeldLease]:
    """Yield the leases of a pool, page by page."""
    last, is_full = None, True
    while is_full:
        page = storage.list_held_leases(pool_name, consumer_name=consumer, after=last, limit=PAGE)
        yield from page
        is_full = len(page) == PAGE
        last = page[-1] if page else None


def _held_s(lease: HeldLease) -> float:
    """Return for how long it is held, by the storage's clock."""
    return max(
        0.0, (lease.expires_at - lease.acquired_at).total_seconds() - lease.remaining_seconds
    )


def _remaining(left_s: float) -> str:
    return lasting(round(left_s)) if left_s > 0 else f"ran out {lasting(round(-left_s))} ago"
