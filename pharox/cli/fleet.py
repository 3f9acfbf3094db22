"""``pharox fleet``: list the ledgers of a fleet, say which of them a pool is in, and move pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checking import duration_of
from .merged import say_missing
from .once import Commands
from .output import Format, Output, print_rows
from .session import FleetFile
from .session import fleet as opened_fleet
from .showing import in_utc, say

if TYPE_CHECKING:
    from ..fleet.merging import InLedger, LedgerStatus
    from ..models import PoolMove

app = Commands(help="List the ledgers of a fleet, say which of them a pool is in, and move pools.")

_COLUMNS = ("ledger", "home", "state", "pools", "leases", "events")
_FIELDS = ("name", "is_home", "is_reachable", "pools", "leases", "events", "error")


@app.command("list")
def list_ledgers(
    context: typer.Context, *, fleet: FleetFile = None, output: Output = Format.TABLE
) -> None:
    """List the ledgers with their pools, active leases and events, and whether they answer."""
    with opened_fleet(context, fleet) as opened:
        found = opened.status()
        print_rows(output, found, _COLUMNS, _row, fields=_FIELDS, attributes=_attributes)
        say_missing({each.name: each.error for each in found if each.error is not None})


@app.command()
def place(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool.")],
    ledger: Annotated[str, typer.Argument(metavar="LEDGER", help="The ledger that it is in.")],
    *,
    instead_of: Annotated[
        str | None,
        typer.Option(
            "--instead-of",
            metavar="LEDGER",
            help="The ledger that the directory says wrongly, to repair it.",
        ),
    ] = None,
    fleet: FleetFile = None,
) -> None:
    """Say which ledger a pool is in, such as one that was there before the fleet was.

    The ledger must have the pool: to bring it to another one, move it.
    """
    from ..errors import PoolNotFoundError  # noqa: PLC0415 - pydantic takes a while to import

    with opened_fleet(context, fleet) as opened:
        storage = opened.directory.named(ledger, pool).storage
        if storage.get_pool_by_name(pool) is None:
            raise PoolNotFoundError(f"the ledger {ledger!r} has no pool {pool!r}", pool_name=pool)
        is_new = opened.place(pool, ledger, instead_of=instead_of)
    say(f"pool {pool!r} is in the ledger {ledger!r}{'' if is_new else ', as it was'}")


@app.command()
def move(
    context: typer.Context,
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The pool.")],
    *,
    to: Annotated[
        str | None, typer.Option("--to", metavar="LEDGER", help="The ledger to move it to.")
    ] = None,
    back: Annotated[
        bool,
        typer.Option("--back", help="Cancel a move that was begun, so that the pool stays."),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="How long to wait for its leases to end; then it goes on draining.",
        ),
    ] = 900.0,
    revoke_after: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration_of,
            help="After how long leases that are still held are revoked.",
        ),
    ] = None,
    fleet: FleetFile = None,
) -> None:
    """Move a pool with all that is known of it to another ledger, or take that back.

    Nobody gets a lease of it while it moves. If the command is cut off, run it again: it goes on,
    or back, from where it was.
    """
    from ..errors import InvalidInputError  # noqa: PLC0415 - pydantic takes a while to import

    if (to is None) is not back:
        raise InvalidInputError("say where it moves by --to LEDGER, or take a move back by --back")
    with opened_fleet(context, fleet) as opened:
        if to is None:
            moved = opened.cancel_move(pool)
            say(f"pool {pool!r} stays: its move to the ledger {moved.ledger!r} is cancelled")
            return
        moved = opened.move(
            pool,
            to,
            timeout_seconds=timeout,
            revoke_after_seconds=revoke_after,
            on_step=lambda step: say(_STEPS[step].format(pool=pool)),
        )
    say(f"pool {pool!r} is in the ledger {moved.ledger!r}")


@app.command("moves")
def list_moves(
    context: typer.Context,
    pool: Annotated[
        str | None, typer.Argument(metavar="[POOL]", help="Only those of this pool.")
    ] = None,
    *,
    fleet: FleetFile = None,
    output: Output = Format.TABLE,
) -> None:
    """List the moves of pools as each ledger has them: which have left it, and which have come."""
    with opened_fleet(context, fleet) as opened:
        found = opened.moves(pool)
        print_rows(
            output,
            found,
            _MOVE_COLUMNS,
            _move_row,
            fields=_MOVE_FIELDS,
            attributes=_move_attributes,
        )
        say_missing(found.missing)


_MOVE_COLUMNS = ("ledger", "pool", "stage", "other ledger", "since")
_MOVE_FIELDS = (
    *("in_ledger", "pool_name", "stage", "ledger", "changed_at", "move_id", "pool_id"),
    *("last_seq", "last_position", "root"),
)


def _move_row(row: InLedger[PoolMove]) -> tuple[object, ...]:
    ledger, move = row
    return ledger, move.pool_name, move.stage.value, move.ledger, in_utc(move.changed_at)


def _move_attributes(row: InLedger[PoolMove]) -> dict[str, Any]:
    ledger, move = row
    return {**move.model_dump(mode="json", exclude={"position"}), "in_ledger": ledger}


_STEPS = {
    "began": "no more proxies of pool {pool!r} are leased; waiting for its leases to end",
    "drained": "no lease is left",
    "departed": "it has left its ledger",
    "arrived": "it has arrived",
    "moved": "its secrets are deleted where it was",
}
"""What is said after each step of a move."""


def _row(status: LedgerStatus) -> tuple[object, ...]:
    state = "answers" if status.is_reachable else "missing"
    home = "home" if status.is_home else None
    return status.name, home, state, status.pools, status.leases, status.events


def _attributes(status: LedgerStatus) -> dict[str, Any]:
    values = {name: getattr(status, name) for name in _FIELDS}
    return {**values, "error": None if status.error is None else str(status.error)}
