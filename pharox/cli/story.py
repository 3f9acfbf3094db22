"""Tell the story of an audit: lines for a file or a pipe, and for a terminal.

A story is told day by day, each event with its time, its seq and a sentence, and ends with
totals. The request and the actor are printed only where they differ from the previous ones.
Misses that follow each other are one.

On a terminal, lines are wrapped at its width below the sentence that they belong to, what went
wrong has a colour, and a long story goes to a pager. In a pipe each line stays whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from .. import events
from ..events import LeaseAcquired
from ..history.describing import Described, clock, counted, day_of, describe, describe_run, lasting
from ..models import OutcomeKind, ProxyStatus
from ..models.text import escape_unprintable
from .showing import in_utc

if TYPE_CHECKING:
    from ..history.audit import Entry, Story, Totals
    from ..history.miss_runs import MissRun

LISTED = 5
"""How many targets are named that refused proxies."""


class Tone(StrEnum):
    """What a line is, as a style of rich."""

    PLAIN = ""
    HEADING = "bold"
    GOOD = "green"
    BAD = "red"
    DETAIL = "dim"


class Line(NamedTuple):
    """A line of a story: what stands in the margin, and the text beside it."""

    text: str
    margin: str = ""
    tone: Tone = Tone.PLAIN

    def __str__(self) -> str:
        return escape_unprintable(self.margin + self.text)


_BAD = (
    events.AcquireMissed,
    events.LeaseExpired,
    events.LeaseRevoked,
    events.ProxyRemoved,
    events.TargetTroubled,
)
_MARGIN = len("  00:00:00.000  ")
_SEQ = 7


def lines_of(story: Story) -> Iterator[Line]:
    """Yield the lines of a story as its entries come."""
    from ..history.audit import Totals  # noqa: PLC0415 - SQLAlchemy takes a while to import
    from ..history.miss_runs import MissRun, with_runs  # noqa: PLC0415

    called = "" if str(story.id) == story.name else f" ({story.id})"
    yield Line(f"{story.kind} {story.name}{called}", tone=Tone.HEADING)
    totals, day, asked, by = Totals(), None, "", ""
    for part in with_runs(_counting(story.entries, totals)):
        entry = part.first if isinstance(part, MissRun) else part
        if (today := day_of(entry.event.recorded_at)) != day:
            day = today
            yield Line("")
            yield Line(today, tone=Tone.HEADING)
        words = described(part)
        margin = f"  {clock(entry.event.recorded_at)}  {entry.event.seq:>{_SEQ}}  "
        yield Line(words.sentence, margin, tone_of(entry))
        for text in _below(words, asked, by):
            yield Line(text, " " * len(margin), Tone.DETAIL)
        asked, by = words.asked or asked, words.by
    yield Line("")
    yield Line(adds_up(story.kind, totals) if day else "nothing happened in this time")


def _counting(entries: Iterable[Entry], totals: Totals) -> Iterator[Entry]:
    for entry in entries:
        totals.add(entry)
        yield entry


def described(part: Entry | MissRun) -> Described:
    """Return what is told of an entry, or of misses that follow each other."""
    from ..history.miss_runs import MissRun  # noqa: PLC0415 - as above

    if isinstance(part, MissRun):
        return describe_run(part)
    return describe(
        part.event,
        pool=part.pool,
        address=part.address,
        pool_had=part.pool_had,
        fallback_had=part.fallback_had,
        holders=part.holders,
        known=part.known,
    )


def tone_of(entry: Entry) -> Tone:
    """Return whether an entry is good or bad news."""
    event = entry.event
    if isinstance(event, LeaseAcquired):
        return Tone.GOOD
    if isinstance(event, events.OutcomeReported):
        return Tone.PLAIN if event.outcome is OutcomeKind.OK else Tone.BAD
    if isinstance(event, events.HealthChecked | events.ProxyChanged):
        is_worse = event.after.status not in (event.before.status, ProxyStatus.ACTIVE)
        return Tone.BAD if is_worse else Tone.PLAIN
    return Tone.BAD if isinstance(event, _BAD) else Tone.PLAIN


def _below(described: Described, asked: str, by: str) -> Iterator[str]:
    """Yield the lines below a sentence, without an unchanged request or actor."""
    if described.asked and described.asked != asked:
        yield described.asked
    yield from described.details
    if described.by and described.by != by:
        yield described.by


def adds_up(kind: str, totals: Totals) -> str:
    """Return the totals of a story of this kind in words."""
    if kind == "source":
        failed = counted(totals.failed, "failure", "failures")
        return f"{counted(totals.came, 'proxy', 'proxies')} came, {totals.went} went; {failed}"
    if kind == "lease":
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
