"""Name the cause of a shortage in sentences: who held most during it, who banned what, and why.

The shortage is the time in which no proxy was available. If there was none, but acquisitions
missed, it is the slots of time in which they did: what they asked for may have been short while
other proxies were free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from typing import NamedTuple

from ...models import MissReason, ProxyStatus
from ..gather.shapes import Lane, Mark, Point, PoolPicture
from ..gather.window import Window
from ..wording import count

LISTED = 5
"""How many consumers, bans and addresses are named."""

_BY_HOLDERS = frozenset({MissReason.AT_CAPACITY, MissReason.TOO_FEW})
_BY_STATUS = _BY_HOLDERS | {MissReason.NONE_HEALTHY}
"""The reasons of misses that leases, or proxies that are not active, can be the cause of."""


class Span(NamedTuple):
    """A time in which something was short."""

    start: datetime
    end: datetime


def causes(pool: PoolPicture, window: Window, miss_slot_s: float) -> Iterator[str]:
    """Yield who held most while proxies were short, and how many were not active."""
    reasons = set(pool.miss_reasons)
    dry = [Span(a.at, b.at) for a, b in _steps(pool, window) if a.total and not a.available]
    short = dry or _slots(pool, window, miss_slot_s)
    length = sum((span.end - span.start for span in short), timedelta()).total_seconds()
    if not length:
        return
    when = "none was available" if dry else "acquisitions missed"
    if reasons & _BY_HOLDERS:
        yield from _holders(pool, window, short, length, when)
    if reasons & _BY_STATUS:
        yield from _not_active(pool, window, short, length, when)


def bans(pool: PoolPicture, window: Window) -> Iterator[str]:
    """Yield who banned how many proxies for which reason, and since when."""
    found: dict[tuple[str, str | None], list[tuple[Mark, Lane]]] = {}
    for lane in pool.lanes.values():
        for mark in filter(_is_ban, lane.marks):
            found.setdefault((mark.by or "somebody", mark.reason), []).append((mark, lane))
    most = sorted(found.items(), key=lambda each: -len(each[1]))
    for (by, reason), banned in most[:LISTED]:
        addresses = list(dict.fromkeys(lane.address for _, lane in banned))
        since = window.format_moment(min(mark.at for mark, _ in banned), roughly=True)
        proxies = count(len(addresses), "proxy", "proxies")
        why = f": {reason}" if reason else ", without a reason"
        named = ", ".join(addresses[:LISTED])
        more = f" and {len(addresses) - LISTED:,} more" if len(addresses) > LISTED else ""
        yield f"{by} banned {proxies}, first at {since}{why} ({named}{more})."
    if len(most) > LISTED:
        others = sum(len(banned) for _, banned in most[LISTED:])
        yield f"{count(others, 'ban')} for other reasons."


def missed_by(pool: PoolPicture) -> Iterator[str]:
    """Yield how often each consumer missed, if there are several."""
    missed = pool.miss_consumers
    if len(missed) > 1:
        yield f"Misses by consumer: {_most(missed.most_common())}."


def _is_ban(mark: Mark) -> bool:
    return (
        mark.was is not None
        and mark.becomes is not None
        and mark.becomes.status is ProxyStatus.BANNED
        and mark.was.status is not ProxyStatus.BANNED
    )


def _steps(pool: PoolPicture, window: Window) -> Iterator[tuple[Point, Point]]:
    if pool.points:
        yield from pairwise((*pool.points, pool.points[-1]._replace(at=window.end)))


def _slots(pool: PoolPicture, window: Window, slot_s: float) -> list[Span]:
    begins = [slot.begins for _, slot in sorted(pool.misses.items())]
    return [Span(at, min(window.end, at + timedelta(seconds=slot_s))) for at in begins]


def _holders(
    pool: PoolPicture, window: Window, short: Sequence[Span], length: float, when: str
) -> Iterator[str]:
    within = _Within(short)
    held: Counter[str] = Counter()
    for bar in pool.bars:
        end = window.end if bar.ended is None else bar.ended
        held[bar.consumer] += within.seconds(max(bar.began, window.start), end)  # type: ignore[assignment]
    shares = [(name, seconds) for name, seconds in held.most_common() if seconds]
    if not shares:
        return
    (first, most), *others = shares
    total = sum(seconds for _, seconds in shares)
    sentence = (
        f"While {when}, {first} held most: {_mean(most / length, 'lease')} on average, "
        f"{most / total:.0%} of all"
    )
    if others:
        named = ", ".join(
            f"{name} ({_short(seconds / length)})" for name, seconds in others[:LISTED]
        )
        more = f" and {len(others) - LISTED:,} more" if len(others) > LISTED else ""
        sentence += f"; then {named}{more}"
    yield f"{sentence}."


def _not_active(
    pool: PoolPicture, window: Window, short: Sequence[Span], length: float, when: str
) -> Iterator[str]:
    within = _Within(short)
    missing = total = 0.0
    for a, b in _steps(pool, window):
        seconds = within.seconds(a.at, b.at)
        missing += (a.total - a.active) * seconds
        total += a.total * seconds
    if missing:
        yield (
            f"{_short(missing / length)} of {_mean(total / length, 'proxy', 'proxies')} were not "
            f"active on average while {when}."
        )


def _mean(number: float, noun: str, plural: str | None = None) -> str:
    shown = _short(number)
    return f"{shown} {noun if shown == '1' else plural or noun + 's'}"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _most(numbers: Sequence[tuple[str, int]]) -> str:
    named = ", ".join(f"{name} ({number:,})" for name, number in numbers[:LISTED])
    more = len(numbers) - LISTED
    return f"{named} and {more:,} more" if more > 0 else named


class _Within:
    """How much of any time lies within some spans, which are in order and do not overlap."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._starts = [span.start for span in spans]
        self._lengths = [(span.end - span.start).total_seconds() for span in spans]
        self._before = [0.0, *accumulate(self._lengths)]

    def seconds(self, start: datetime, end: datetime) -> float:
        """Return the seconds from one moment to another that are within a span."""
        return max(0.0, self._upto(end) - self._upto(start))

    def _upto(self, moment: datetime) -> float:
        place = bisect_right(self._starts, moment) - 1
        if place < 0:
            return 0.0
        passed = (moment - self._starts[place]).total_seconds()
        return self._before[place] + min(passed, self._lengths[place])
