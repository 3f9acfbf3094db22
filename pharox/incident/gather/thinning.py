"""Keep a page small however much happened, and say what was merged.

Items that are too short to be distinguished from their neighbours share a bar with
them. The limit depends on how much there is to draw: nothing is merged while
everything fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import TypeVar

from .shapes import LeaseBar, Point
from .window import Window

T = TypeVar("T")

MOST_LINES = 8
"""How many leases of one proxy to draw above each other."""

FOLDED = 0.02
"""How wide a fold is drawn."""

_RESOLUTIONS = (4096, 2048, 1024, 512, 256, 128)


class Scale:
    """Maps moments to places in a window, from 0 to 1; moments outside are at the edges.

    Places are proportional to times, but for folds: each is as narrow as ``FOLDED``.
    """

    def __init__(self, window: Window) -> None:
        self._window = window

    def __call__(self, moment: datetime) -> float:
        """Return the place of a moment."""
        seconds = (moment - self._window.start).total_seconds()
        if self._window.folds:
            return _between(pins(self._window), seconds)
        return min(1.0, max(0.0, seconds / self._window.seconds))

    def moment(self, place: float) -> datetime:
        """Return the moment that is at a place."""
        turned = [(at, seconds) for seconds, at in pins(self._window)]
        return self._window.start + timedelta(seconds=_between(turned, place))

    def ends(self, bar: LeaseBar) -> tuple[float, float]:
        """Return the places where a lease begins and ends."""
        return self(bar.began), self(self._window.end if bar.ended is None else bar.ended)


@lru_cache(maxsize=8)
def pins(window: Window) -> Sequence[tuple[float, float]]:
    """Return the seconds and the places between which the scale of a window is even."""
    width = FOLDED * len(window.folds)
    found, place, at = [(0.0, 0.0)], 0.0, 0.0
    for fold in window.folds:
        start, end = ((moment - window.start).total_seconds() for moment in fold)
        place += (start - at) / window.drawn_seconds * (1 - width)
        found.append((start, place))
        place += FOLDED
        found.append((end, place))
        at = end
    return (*found, (window.seconds, 1.0))


def _between(pins: Sequence[tuple[float, float]], value: float) -> float:
    """Return what a value maps to, evenly between each two pins."""
    number = bisect_right(pins, value, 1, len(pins) - 1, key=itemgetter(0))
    (a, low), (b, high) = pins[number - 1], pins[number]
    return min(high, max(low, low + (value - a) / (b - a) * (high - low)))


def stacked(bars: Iterable[LeaseBar]) -> list[list[LeaseBar]]:
    """Put leases on as few lines as were held at once; the last line takes the rest."""
    lines: list[list[LeaseBar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.began, bar.token)):
        free = (line for line in lines if (end := line[-1].ended) is not None and end <= bar.began)
        line = next(free, None)
        if line is None and len(lines) < MOST_LINES:
            lines.append(line := [])
        (lines[-1] if line is None else line).append(bar)
    return lines


def grouped(
    items: Sequence[T], ends: Callable[[T], tuple[float, float]], resolution: int | None
) -> Iterator[list[T]]:
    """Yield items in order; short items that begin in the same slot are merged.

    Parameters
    ----------
    items:
        The items of one line, ordered by their beginning.
    ends:
        Returns where an item begins and ends, from 0 to 1.
    resolution:
        The number of slots; None to merge nothing.
    """
    group: list[T] = []
    group_slot = -1
    for item in items:
        first, last = ends(item)
        short = resolution is not None and (last - first) * resolution < 1
        slot = int(first * resolution) if resolution is not None and short else -1
        if group and (slot < 0 or slot != group_slot):
            yield group
            group = []
        group.append(item)
        group_slot = slot
    if group:
        yield group


def resolution_for(count: Callable[[int | None], int], most: int) -> int | None:
    """Return the finest resolution at which ``count`` is at most ``most``, or the coarsest."""
    for resolution in (None, *_RESOLUTIONS):
        if count(resolution) <= most:
            return resolution
    return _RESOLUTIONS[-1]


def lowest(points: Sequence[Point], window: Window, slots: int) -> list[Point]:
    """Return the points as they are if they are few, else the lowest of each time slot."""
    if len(points) <= slots:
        return list(points)
    scale = Scale(window)
    begins = [scale.moment(slot / slots) for slot in range(slots)]
    found: list[Point] = []
    carried, place = points[0], 0
    for slot in range(slots):
        inside = [carried]
        while place < len(points) and min(slots - 1, int(scale(points[place].at) * slots)) <= slot:
            carried = points[place]
            inside.append(carried)
            place += 1
        counts = [min(values) for values in zip(*(point[1:] for point in inside), strict=True)]
        found.append(Point(begins[slot], *counts))
    return found
