"""``pharox verify`` and ``pharox rebuild``: hold read models against the log; make them anew."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..text import inert
from .failing import FAILURE
from .session import ledger
from .showing import AsJson, print_json, say

if TYPE_CHECKING:
    from projections import Finding

    from ..storage.postgres import PostgresStorage


def verify(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Print at most so many differences.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Check the whole ledger: seals, read models, counters, leases. Fail if anything is wrong."""
    with ledger(context) as storage:
        findings = storage.verify(limit=limit + 1)
        last = storage.seal()
    _print(findings[:limit], as_json=as_json)
    if len(findings) > limit:
        say(f"there are more than {limit} differences")
    if findings:
        raise typer.Exit(FAILURE)
    say(f"nothing is wrong: {last:,} events checked, and all that was folded from them")


def rebuild(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROJECTION...]", help="Which read models; all if not given."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild read models from the log, while leasing goes on, and put them in place."""
    with ledger(context) as storage:
        rebuild_in(storage, names or (), as_json=as_json)


def rebuild_in(storage: PostgresStorage, names: Sequence[str], *, as_json: bool = False) -> None:
    """Rebuild read models of a ledger, and print how the old ones differed and what it took."""
    from ..ledger.rebuild import rebuild as rebuild_read_models  # noqa: PLC0415 - takes a while

    with _bar() as progress:
        done = rebuild_read_models(storage, names, progress=progress)
    _print(done.findings, as_json=as_json)
    if done.findings:
        say("the old tables were not what the log says; the new ones are")
    tables = ", ".join(done.projections)
    say(
        f"rebuilt {tables} from {done.events:,} events in {done.seconds:.1f} s; "
        f"writers were held up for {done.locked_ms:.0f} ms"
    )


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    for finding in findings:
        if as_json:
            print_json(finding._asdict())
        else:
            print(inert(str(finding)))


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; yields what to call with the seq reached and the last."""
    from rich.console import Console  # noqa: PLC0415 - only where there is something to show
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    columns = (BarColumn(), MofNCompleteColumn(), "events", TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("rebuild", total=None)

        def progress(reached: int, last: int) -> None:
            bar.update(task, completed=reached, total=last)

        yield progress
