"""``pharox verify`` and ``pharox rebuild``: compare read models with the log; rebuild them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..errors import DatabaseError, InvalidInputError
from ..models.text import escape_unprintable
from .exits import Exit
from .key_files import read_file, read_text
from .output import Format, Output, print_rows
from .session import Archive, ledger, past
from .showing import progress_bar, say

if TYPE_CHECKING:
    from pharox.log.tree import TreeHead
    from projections import Finding

    from ..ledger.archive.reading import WithArchive
    from ..storage.postgres import PostgresStorage


LOG_CHECKS = frozenset(
    {"checkpoint", "digests", "events", "readable", "seals", "sealed", "ticks", "tree"}
)
FUNCTIONS, TRIGGERS = "functions", "triggers"


def verify(
    context: typer.Context,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many differences to print at most.")
    ] = 20,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Compare the log with each checkpoint in this file, event by event; with --key.",
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="The verifier key of who signed them, from `pharox checkpoint keygen`.",
        ),
    ] = None,
    archive: Archive = None,
    output: Output = Format.TABLE,
) -> None:
    """Check the whole ledger: seals, read models, counters, leases. Fail if anything is wrong."""
    heads, findings = _signed(checkpoint, key)
    if archive and checkpoint is None:
        raise InvalidInputError(
            "--archive goes with --checkpoint; `pharox archive check` checks an archive by itself"
        )
    with past(context, archive) as log:
        storage = cast("PostgresStorage | WithArchive", log)
        last = 0
        with suppress(DatabaseError):  # the ticks were changed: verification finds it
            last = storage.seal()  # before: verification reads at least so far
        findings += storage.verify(limit=limit + 1, heads=heads)
        notes = storage.verify_notes()
    for note in notes:
        say(f"note: {note}")
    _print(findings[:limit], output)
    if not findings:
        say(f"nothing is wrong: checked the log up to seq {last:,} and all that is folded from it")
        if heads:
            say(f"it is what {len(heads)} checkpoints say, the last of {heads[-1].size:,} events")
        return
    more = "more than " if len(findings) > limit else ""
    say(f"{more}{len(findings[:limit])} differences; {_advice({f.check for f in findings})}")
    raise typer.Exit(Exit.FAILURE)


def _signed(checkpoint: Path | None, key: Path | None) -> tuple[list[TreeHead], list[Finding]]:
    """Return the heads in a file of checkpoints, and what is wrong with the file."""
    if (checkpoint is None) != (key is None):
        raise InvalidInputError("--checkpoint and --key go together")
    if checkpoint is None or key is None:
        return [], []
    from ..proof import VerifierKey, signed_heads  # noqa: PLC0415 - takes a while to import

    return signed_heads(read_file(checkpoint), VerifierKey.parse(read_text(key)))


def _advice(checks: set[str]) -> str:
    """Return what to do about findings of these checks."""
    if checks & {FUNCTIONS, TRIGGERS}:
        return "the schema is not as pharox made it: ask who owns the database what was changed"
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
    output: Output = Format.TABLE,
) -> None:
    """Rebuild read models from the log while leasing continues, then swap them in."""
    with ledger(context) as storage:
        rebuild_in(storage, names or (), force=force, output=output)


def rebuild_in(
    storage: PostgresStorage,
    names: Sequence[str],
    *,
    force: bool = False,
    output: Format = Format.TABLE,
) -> None:
    """Rebuild read models of a ledger, and print the differences found and the time taken."""
    from ..ledger.rebuild import rebuild as rebuild_read_models  # noqa: PLC0415 - takes a while

    with _bar() as progress:
        done = rebuild_read_models(storage, names, progress=progress, force=force)
    _print(done.findings, output)
    if done.findings:
        say("the old tables differed from the log; the new ones match it")
    tables = ", ".join(done.projections)
    say(
        f"rebuilt {tables} from the log up to seq {done.last_seq:,} in {done.seconds:.1f} s; "
        f"writers were held up for {done.locked_ms:.0f} ms"
    )


def _print(findings: Sequence[Finding], output: Format) -> None:
    """Print findings, each as a sentence instead of a row of a table."""
    from projections import Finding  # noqa: PLC0415

    if output is Format.TABLE:
        for finding in findings:
            print(escape_unprintable(str(finding)))
    else:
        sides = Finding._fields
        print_rows(output, findings, sides, list, fields=sides, attributes=Finding._asdict)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal; yield its update function (seq reached, last seq)."""
    with progress_bar("rebuild", "events") as update:
        yield lambda reached, last: update(completed=reached, total=last)
