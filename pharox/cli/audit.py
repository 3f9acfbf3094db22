"""``pharox audit``: what happened to a lease, a proxy, a consumer, a pool or a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models import utc_now
from ..models.moments import behind, end_of, start_of
from .merged import check_of_all, print_story
from .once import Commands
from .paging import NoPager, print_lines
from .session import Archive, is_of_fleet, past
from .showing import AsJson, in_utc, print_json, say
from .story import lines_of

if TYPE_CHECKING:
    from ..history.audit import Entry, Story

app = Commands(help="Show what happened to a lease, a proxy, a consumer, a pool or a source.")

WHEN = "TIME|SEQ"

From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar=WHEN,
        help="Begin at a time (2026-01-31T12:00Z), so long ago (2h), now, or at a seq.",
    ),
]
To = Annotated[
    str | None, typer.Option("--to", metavar=WHEN, help="End at this moment, inclusive.")
]


@app.command()
def lease(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ID", help="The lease's id, or its beginning.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    no_pager: NoPager = False,
    as_json: AsJson = False,
) -> None:
    """Show who held which proxy for how long, and its health checks meanwhile."""
    _audit(context, _of_lease, name, begin, end, archive, as_json=as_json, paged=not no_pager)


@app.command()
def proxy(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="ID|ADDRESS", help="The proxy's id, host:port, or its URL.")
    ],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    no_pager: NoPager = False,
    as_json: AsJson = False,
) -> None:
    """Show how a proxy was registered and changed, who held it, and its health checks."""
    from ..history.audit import of_proxy  # noqa: PLC0415 - SQLAlchemy takes a while to import

    _audit(context, of_proxy, name, begin, end, archive, as_json=as_json, paged=not no_pager)


@app.command()
def consumer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The consumer's name, or its id.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    no_pager: NoPager = False,
    as_json: AsJson = False,
) -> None:
    """Show what a consumer leased and gave back, and each miss with its reason."""
    from ..history.audit import of_consumer  # noqa: PLC0415

    if is_of_fleet(context):
        check_of_all({"--archive": archive})
        print_story(context, name, begin, end, as_json=as_json, paged=not no_pager)
        return
    _audit(context, of_consumer, name, begin, end, archive, as_json=as_json, paged=not no_pager)


@app.command()
def pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pool's name, or its id.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    no_pager: NoPager = False,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened in a pool, even if it was removed since."""
    from ..history.audit import of_pool  # noqa: PLC0415

    _audit(context, of_pool, name, begin, end, archive, as_json=as_json, paged=not no_pager)


@app.command()
def source(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The source's name.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    as_json: AsJson = False,
    no_pager: NoPager = False,
) -> None:
    """Show how a source was set and refreshed, which proxies came and went, and its failures."""
    from ..history.audit import of_source  # noqa: PLC0415

    _audit(context, of_source, name, begin, end, archive, as_json=as_json, paged=not no_pager)


def _audit(
    context: typer.Context,
    audit: Callable[..., Story],
    name: str,
    begin: str | None,
    end: str | None,
    archive: list[Path] | None,
    *,
    as_json: bool,
    paged: bool,
) -> None:
    now = utc_now()
    since = None if begin is None else start_of(begin, now)
    until = None if end is None else behind(end_of(end, now))
    with past(context, archive) as log:
        story = audit(log, name, since=since, until=until)
        for namesake in story.namesakes:
            removed = namesake.removed
            gone = f", removed at {in_utc(removed.recorded_at)}" if removed else ""
            say(
                f"this is the last pool that was named {name!r}; "
                f"an earlier one is {namesake.id}{gone}"
            )
        if as_json:
            for entry in story.entries:
                print_json(attributes_of(entry))
        else:
            print_lines(lines_of(story), paged=paged)


def _of_lease(log: Any, name: str, **window: Any) -> Story:
    """Return the story of the lease whose id begins so."""
    from ..history.audit import of_lease  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..history.finding import find_lease  # noqa: PLC0415

    # What is no id at all never was a lease: the same answer as for other names.
    is_id = not set(name.strip().lower()) - set("0123456789abcdef-")
    return of_lease(log, find_lease(log, name) if is_id else name, **window)


def attributes_of(entry: Entry) -> dict[str, object]:
    """Return an entry as a command prints it in JSON."""
    return {
        **entry.event.model_dump(mode="json"),
        "pool": entry.pool,
        "address": entry.address,
        "held_s": entry.held_s,
        "held_by": [held._asdict() for held in entry.holders],
        "pool_had": entry.pool_had and entry.pool_had.figures(),
        "fallback_had": [had and had.figures() for had in entry.fallback_had],
    }
