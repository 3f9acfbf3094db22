"""``pharox audit``: what happened to a lease, a proxy, a consumer or a pool.

A story is printed day by day, each event with its time, its seq and a sentence, and
ends with totals. The request and the actor are printed only where they differ from
the previous ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import MAXYEAR, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models import utc_now
from ..models.text import escape_unprintable
from .checking import end_of, start_of
from .describing import Described, clock, counted, day_of, describe, lasting
from .once import Commands
from .session import Archive, past
from .showing import AsJson, in_utc, print_json, say

if TYPE_CHECKING:
    from ..history.audit import Entry, Story, Totals

app = Commands(help="Show what happened to a lease, a proxy, a consumer or a pool.")

LISTED = 5
"""How many targets are named that refused proxies."""

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
    name: Annotated[str, typer.Argument(metavar="ID", help="The lease's id.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show who held which proxy for how long, and its health checks meanwhile."""
    from ..history.audit import of_lease  # noqa: PLC0415 - SQLAlchemy takes a while to import

    _audit(context, of_lease, name, begin, end, archive, as_json)


@app.command()
def proxy(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="ID|ADDRESS", help="The proxy's id, host:port, or its URL.")
    ],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show how a proxy was registered and changed, who held it, and its health checks."""
    from ..history.audit import of_proxy  # noqa: PLC0415

    _audit(context, of_proxy, name, begin, end, archive, as_json)


@app.command()
def consumer(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The consumer's name, or its id.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show what a consumer leased and gave back, and each miss with its reason."""
    from ..history.audit import of_consumer  # noqa: PLC0415

    _audit(context, of_consumer, name, begin, end, archive, as_json)


@app.command()
def pool(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The pool's name, or its id.")],
    begin: From = None,
    end: To = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened in a pool, even if it was removed since."""
    from ..history.audit import of_pool  # noqa: PLC0415

    _audit(context, of_pool, name, begin, end, archive, as_json)


def _audit(
    context: typer.Context,
    audit: Callable[..., Story],
    name: str,
    begin: str | None,
    end: str | None,
    archive: list[Path] | None,
    as_json: bool,
) -> None:
    now = utc_now()
    since = None if begin is None else start_of(begin, now)
    until = None if end is None else _behind(end_of(end, now))
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
                print_json(_attributes(entry))
        else:
            for line in _lines(story):
                print(escape_unprintable(line))


def _behind(end: int | datetime) -> int | datetime:
    """Return an end as :mod:`pharox.history.audit` takes it: a time is exclusive there."""
    if isinstance(end, int) or end.year == MAXYEAR:
        return end
    return end + timedelta(microseconds=1)


def _attributes(entry: Entry) -> dict[str, object]:
    return {
        **entry.event.model_dump(mode="json"),
        "pool": entry.pool,
        "address": entry.address,
        "held_s": entry.held_s,
        "pool_had": entry.pool_had and entry.pool_had.figures(),
    }


def _lines(story: Story) -> Iterator[str]:
    from ..history.audit import Totals  # noqa: PLC0415

    called = "" if str(story.id) == story.name else f" ({story.id})"
    yield f"{story.kind} {story.name}{called}"
    totals, day, asked, by = Totals(), None, "", ""
    for entry in story.entries:
        totals.add(entry)
        if (today := day_of(entry.event.recorded_at)) != day:
            day = today
            yield from ("", today)
        description = describe(
            entry.event, pool=entry.pool, address=entry.address, pool_had=entry.pool_had
        )
        margin = f"  {clock(entry.event.recorded_at)}  {entry.event.seq:>7}  "
        yield margin + description.sentence
        for line in _below(description, asked, by):
            yield " " * len(margin) + line
        asked, by = description.asked or asked, description.by
    yield from ("", _adds_up(story, totals) if day else "nothing happened in this time")


def _below(description: Described, asked: str, by: str) -> Iterator[str]:
    """Yield the lines below a sentence, without an unchanged request or actor."""
    if description.asked and description.asked != asked:
        yield description.asked
    yield from description.details
    if description.by and description.by != by:
        yield description.by


def _adds_up(story: Story, totals: Totals) -> str:
    if story.kind == "lease":
        ended = totals.released or totals.expired or totals.revoked
        end = f"held for {lasting(totals.held_s)}" if ended else "no end of it is recorded"
        return "; ".join((end, *_refusals(totals)))
    parts = [
        f"{counted(totals.acquired, 'lease', 'leases')} acquired",
        *([f"{totals.renewed} renewals"] if totals.renewed else []),
        *([f"{totals.redated} re-dated"] if totals.redated else []),
        f"{totals.released} given back",
        f"{totals.expired} ran out",
        *([f"{totals.revoked} revoked"] if totals.revoked else []),
    ]
    if totals.released or totals.expired or totals.revoked:
        parts.append(f"held for {lasting(totals.held_s)} altogether")
    misses = ", ".join(f"{number} {reason}" for reason, number in totals.missed.most_common())
    if misses:
        parts.append(f"{counted(totals.missed.total(), 'miss', 'misses')} ({misses})")
    return "; ".join((*parts, *_refusals(totals)))


def _refusals(totals: Totals) -> Iterator[str]:
    """Yield how often targets refused proxies, and since when: those that did most often."""
    most = sorted(totals.refused.items(), key=lambda each: -each[1].count)
    for target, refused in most[:LISTED]:
        times = counted(refused.count, "time", "times")
        yield f"refused {times} by {target} since {in_utc(refused.since)}"
    if len(most) > LISTED:
        yield f"refused by {counted(len(most) - LISTED, 'target', 'targets')} more"
