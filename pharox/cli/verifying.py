"""``pharox verify`` and ``pharox rebuild``: compare read models with the log; rebuild them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.text import escape_unprintable
from .failing import FAILURE
from .session import ledger
from .showing import AsJson, print_json, progress_bar, say

if TYPE_CHECKING:
    from projections import Finding

    from ..storage.postgres import PostgresStorage


LOG_CHECKS = frozenset({"events", "readable", "seals", "sealed", "ticks"})


def verify(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many differences to print at most.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Check the whole ledger: seals, read models, counters, leases. Fail if anything is wrong."""
    with ledger(context) as storage:
        findings = storage.verify(limit=limit + 1)
        last = storage.seal()
    _print(findings[:limit], as_json=as_json)
    if not findings:
        say(f"nothing is wrong: checked the log up to seq {last:,} and all that is folded from it")
        return
    more = "more than " if len(findings) > limit else ""
    say(f"{more}{len(findings[:limit])} differences; {_advice({f.check for f in findings})}")
    raise typer.Exit(FAILURE)


def _advice(checks: set[str]) -> str:
    """Return what to do about findings of these checks."""
    if checks & LOG_CHECKS:
        return "the log itself was changed, so do not rebuild: the read models may still be right"
    from projections import registered  # noqa: PLC0415 - takes a while to import

    names = [projection.name for projection in registered() if projection.name in checks]
    if names:
        return f"`pharox rebuild {' '.join(names)}` makes them match the log"
    if "credentials" in checks:
        return (
            "check first whether PHAROX_SECRET_KEY is right; `pharox proxies set` stores a proxy's "
            "credentials again"
        )
    return "the documentation of verify explains each"


def rebuild(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROJECTION...]", help="The read models to rebuild; all if not given."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Rebuild even if the log was changed since it was sealed."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild read models from the log while leasing continues, then swap them in."""
    with ledger(context) as storage:
        rebuild_in(storage, names or (), force=force, as_json=as_json)


def rebuild_in(
    storage: PostgresStorage, names: Sequence[str], *, force: bool = False, as_json: bool = False
) -> None:
    """Rebuild read models of a ledger, and print the differences found and the time taken."""
    from ..ledger.rebuild import rebuild as rebuild_read_models  # noqa: PLC0415 - takes a while

    with _bar() as progress:
        done = rebuild_read_models(storage, names, progress=progress, force=force)
    _print(done.findings, as_json=as_json)
    if done.findings:
        say("the old tables differed from the log; the new ones match it")
    tables = ", ".join(done.projections)
    say(
        f"rebuilt {tables} from the log up to seq {done.last_seq:,} in {done.seconds:.1f} s; "
        f"writers were held up for {done.locked_ms:.0f} ms"
    )


def _print(findings: Sequence[Finding], *, as_json: bool) -> None:
    for finding in findings:
        if as_json:
            print_json(finding._asdict())
        else:
            print(escape_unprintable(str(finding)))


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; yield its update function (seq reached, last seq)."""
    with progress_bar("rebuild", "events") as update:
        yield lambda reached, last: update(completed=reached, total=last)
