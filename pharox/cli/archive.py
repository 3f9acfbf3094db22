"""``pharox archive``: move old parts of the log into Parquet files, and check such files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models import utc_now
from ..models.moments import moment_before
from ..models.text import escape_unprintable
from .exits import Exit
from .once import Commands
from .session import ledger
from .showing import AsJson, print_json

if TYPE_CHECKING:
    from ..ledger.archive import Archived, Checked, Kept

app = Commands(help="Move old parts of the log into Parquet files, or check such files.")


@app.callback(invoke_without_command=True)
def archive(
    context: typer.Context,
    *,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Archive events recorded before a time (2026-01-31T12:00Z), or so long ago (90d).",
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The folder for the files.", file_okay=False),
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop the archived parts of the log from the database.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Archive each full part of the log that has only events from before a moment."""
    if context.invoked_subcommand is not None:
        return
    if before is None or to is None:
        print(context.get_help())
        raise typer.Exit(Exit.USAGE)
    from ..ledger.archive import archiving  # noqa: PLC0415 - it needs an extra

    moment = moment_before(before, utc_now())
    with ledger(context) as storage:
        outcome = archiving.archive(storage, moment, to, drop=drop)
    for part in outcome.archived:
        if as_json:
            print_json(
                {
                    "first_position": part.first_position,
                    "end_position": part.end_position,
                    "first_seq": part.first_seq,
                    "last_seq": part.last_seq,
                    "file": str(part.file),
                }
            )
        else:
            print(escape_unprintable(_describe(part)))
    if not as_json:
        print(escape_unprintable(_what_stays(outcome.kept)))


@app.command()
def check(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER...", help="A folder of the archive; may be several."),
    ],
    as_json: AsJson = False,
) -> None:
    """Check files without a database: every digest and every root is computed again.

    The last root covers everything before it: compare it with a root that you noted elsewhere.
    """
    from ..ledger.archive import check as checking  # noqa: PLC0415 - it needs an extra

    checked = checking(*folders)
    if as_json:
        print_json(
            {
                "events": checked.events,
                "ticks": checked.ticks,
                "last_seq": checked.last_seq,
                "root": checked.root.hex(),
                "gaps": checked.gaps,
                "differences": checked.differences,
            }
        )
    else:
        for line in _findings(checked):
            print(escape_unprintable(line))
    if checked.differences:
        raise typer.Exit(Exit.FAILURE)


def _describe(part: Archived) -> str:
    what = "no events" if part.last_seq is None else f"events {part.first_seq} to {part.last_seq}"
    return f"{what} -> {part.file}"


def _what_stays(kept: Kept | None) -> str:
    if kept is None:
        return "the log has no further part"
    return f"the part from position {kept.first_position} on stays in the log: {kept.reason}"


def _findings(checked: Checked) -> list[str]:
    if checked.differences:
        return checked.differences
    gaps = [f"events {first} to {last} are missing" for first, last in checked.gaps]
    return [
        *gaps,
        f"{checked.events} events in {checked.ticks} ticks match their seals",
        f"root of event {checked.last_seq}: {checked.root.hex()}",
    ]
