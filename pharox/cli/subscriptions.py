"""``pharox subscriptions``: list subscriptions, their lag and their parked events.

A request to a subscription is carried out by its reader, so the output says whether
there is one.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import InvalidInputError
from ..history.describing import counted
from ..models.text import escape_unprintable
from .once import Commands
from .output import Format, Output, print_rows
from .session import ledger
from .showing import in_utc

if TYPE_CHECKING:
    from ..ledger.subscriptions import ParkedEvent, SubscriptionStatus
    from ..storage.postgres import PostgresStorage

app = Commands()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The subscription's name.")]

ERROR_WIDTH = 60
"""How much of an error a table shows."""


@app.callback(invoke_without_command=True)
def subscriptions(context: typer.Context, *, output: Output = Format.TABLE) -> None:
    """Print the subscriptions, and how far each is behind the log."""
    if context.invoked_subcommand is not None:
        return
    from ..ledger.subscriptions import SubscriptionStatus  # noqa: PLC0415 - slow to import
    from ..ledger.subscriptions import subscriptions as statuses  # noqa: PLC0415

    with ledger(context) as storage:
        found = statuses(storage)
    print_rows(
        output,
        found,
        ("name", "checkpoint", "behind", "seconds", "parked", "reader"),
        _status_row,
        fields=[field.name for field in fields(SubscriptionStatus)],
        empty="there are no subscriptions; a program creates one when it first reads",
    )


def _status_row(status: SubscriptionStatus) -> tuple[object, ...]:
    return (
        status.name,
        status.checkpoint,
        status.lag_events,
        f"{status.lag_seconds:.1f}",
        status.parked,
        "active" if status.active else "none",
    )


@app.command()
def parked(context: typer.Context, name: Name, *, output: Output = Format.TABLE) -> None:
    """Print the events that a subscription's handler failed on, and those that wait behind them.

    A table cuts a long error; the other forms have all of it.
    """
    from ..ledger.subscriptions import ParkedEvent  # noqa: PLC0415
    from ..ledger.subscriptions import parked as parked_events  # noqa: PLC0415

    with ledger(context) as storage:
        found = parked_events(storage, name)
    print_rows(
        output,
        found,
        ("seq", "type", "key", "attempts", "retry", "error"),
        _parked_row,
        fields=[field.name for field in fields(ParkedEvent)],
        attributes=lambda event: {**asdict(event), "parked_at": in_utc(event.parked_at)},
    )


def _parked_row(event: ParkedEvent) -> tuple[object, ...]:
    return (
        event.seq,
        event.type,
        event.key,
        event.attempts,
        "marked" if event.retry else None,
        event.error and _beginning(event.error),
    )


@app.command()
def retry(
    context: typer.Context,
    name: Name,
    *,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only events that are parked under this key.")
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**63 - 1,
            metavar="SEQ",
            help="Only events that are parked under the key of this event.",
        ),
    ] = None,
) -> None:
    """Mark parked events, so that the subscription's reader tries them again."""
    from ..ledger.subscriptions import retry as retry_parked  # noqa: PLC0415

    if key is not None and seq is not None:
        raise InvalidInputError("give --key or --seq, not both")
    with ledger(context) as storage:
        marked = retry_parked(storage, name, key=key, seq=seq)
        has_reader = _has_reader(storage, name)
    if not marked:
        print(escape_unprintable(f"{_not_parked(key, seq)} for {name}"))
        return
    who = "its reader tries" if has_reader else "no reader is running; the next one tries"
    what = counted(marked, "parked event", "parked events")
    print(escape_unprintable(f"{what} of {name} marked; {who} them first"))


@app.command()
def reset(
    context: typer.Context,
    name: Name,
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="beginning|now|SEQ", help="Where it continues.")
    ],
) -> None:
    """Continue a subscription from another place in the log, and drop its parked events."""
    from ..ledger.subscriptions import reset as reset_to  # noqa: PLC0415
    from ..ledger.subscriptions.options import Start  # noqa: PLC0415

    with ledger(context) as storage:
        done = reset_to(storage, name, cast("Start", int(to) if to.isdecimal() else to))
        has_reader = _has_reader(storage, name)
    description = [f"{name} continues with event {done.next_seq}"]
    if done.forgotten:
        description.append(f"{counted(done.forgotten, 'parked event', 'parked events')} dropped")
    if not has_reader:
        description.append("no reader is running")
    print(escape_unprintable("; ".join(description)))


@app.command()
def remove(context: typer.Context, name: Name) -> None:
    """Remove a subscription that has no reader, with its checkpoint and parked events."""
    from ..ledger.subscriptions import remove as remove_subscription  # noqa: PLC0415

    with ledger(context) as storage:
        remove_subscription(storage, name)
    print("the subscription was removed")


def _has_reader(storage: PostgresStorage, name: str) -> bool:
    from ..ledger.subscriptions import subscriptions as statuses  # noqa: PLC0415

    return any(status.active for status in statuses(storage) if status.name == name)


def _not_parked(key: str | None, seq: int | None) -> str:
    if seq is not None:
        return f"event {seq} is not parked"
    return "nothing is parked" if key is None else f"nothing is parked under {key}"


def _beginning(error: str) -> str:
    """Return as much of an error as a table has room for, on one line."""
    line = escape_unprintable(" ".join(error.split()))
    return line if len(line) <= ERROR_WIDTH else f"{line[: ERROR_WIDTH - 3]}..."
