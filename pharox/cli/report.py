"""``pharox report``: write the page and the timeline of an incident to a folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models import utc_now
from ..models.moments import moment_before
from ..models.text import escape_unprintable
from .session import Archive, past
from .showing import AsJson, print_json, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..incident import Report

Start = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="TIME",
        help="The start of the window: a time with its zone, a span before now such as 30m, or "
        "now.",
    ),
]
End = Annotated[
    str,
    typer.Option(
        "--to", metavar="TIME", help="The end of the window, in the same forms as --from."
    ),
]
Pools = Annotated[
    list[str] | None,
    typer.Option("--pool", metavar="NAME", help="Only events of this pool; may be repeated."),
]


def report(
    context: typer.Context,
    *,
    start: Start,
    end: End = "now",
    pool: Pools = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="The folder to write to, new or empty; named after the start if not given.",
        ),
    ] = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Write what happened in a window of time: a page to look at and send, and a timeline.

    The page opens without a network. Its path is printed.
    """
    now = utc_now()
    window = moment_before(start, now), moment_before(end, now)
    folder = Path(f"incident-{window[0]:%Y-%m-%dT%H%M%SZ}") if out is None else out
    written = write(context, window, folder, pool or (), archive)
    if as_json:
        print_json(_summary(written))
    else:
        tell(written)


def write(
    context: typer.Context,
    window: tuple[datetime, datetime],
    folder: Path,
    pools: Sequence[str],
    archive: list[Path] | None,
) -> Report:
    """Write the report of a window into a folder."""
    from ..incident import write_report  # noqa: PLC0415 - SQLAlchemy takes a while to import

    with past(context, archive) as log:
        return write_report(log, *window, folder, pools=pools)


def tell(written: Report) -> None:
    """Print the path of the page; what there was goes to standard error."""
    say(str(written))
    print(escape_unprintable(str(written.page)))


def _summary(written: Report) -> dict[str, object]:
    return {
        "page": str(written.page),
        "timeline": str(written.timeline),
        "start": written.start.isoformat(),
        "end": written.end.isoformat(),
        "events": written.events,
        "leases": written.leases,
        "misses": written.misses,
    }
