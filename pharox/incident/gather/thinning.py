"""Keep a page small however much happened, and say what was put together.

What is too short to be told apart from its neighbour shares a bar with it. How
short that is depends on how much there is to draw: nothing is put together as
long as all of it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from .shapes import LeaseBar, Point
from .window import Window

T = TypeVar("T")

MOST_LINES = 8
"""How many leases of one proxy are drawn above each other."""

_RESOLUTIONS = (4096, 2048, 1024, 512, 256, 128)


class Scale:
    """Where in a window things are, from 0 to 1; what lies outside is at its edge."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def __call__(self, moment: datetime) -> float:
        """Return where a moment is."""
        seconds = (moment - self._window.start).total_seconds()
        return min(1.0, max(0.0, seconds / self._window.seconds))

    def ends(self, bar: LeaseBar) -> tuple[float, float]:
        """Return where a lease begins and ends."""
        return self(bar.began), self(self._window.end if bar.ended is None else bar.ended)


def stacked(bars: Iterable[LeaseBar]) -> list[list[LeaseBar]]:
    """Put leases on as few lines as there were leases at once; the last line takes the rest."""
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
    """Yield items in order, those together that are short and begin in the same slot.

    Parameters
    ----------
    items:
        What is on one line, by its beginning.
    ends:
        Where an item begins and ends, from 0 to 1.
    resolution:
        How many slots there are; None to keep each item apart.
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
    """Return the finest resolution at which ``count`` gives at most ``most``, or the coarsest."""
    for resolution in (None, *_RESOLUTIONS):
        if count(resolution) <= most:
            return resolution
    return _RESOLUTIONS[-1]


def lowest(points: Sequence[Point], window: Window, slots: int) -> list[Point]:
    """Return points as they are if they are few, else the lowest counts of each slot of time."""
    if len(points) <= slots:
        return list(points)
    scale = Scale(window)
    length = (window.end - window.start) / slots
    found: list[Point] = []
    carried, place = points[0], 0
    for slot in range(slots):
        inside = [carried]
        while place < len(points) and min(slots - 1, int(scale(points[place].at) * slots)) <= slot:
            carried = points[place]
            inside.append(carried)
            place += 1
        counts = [min(values) for values in zip(*(point[1:] for point in inside), strict=True)]
        found.append(Point(window.start + slot * length, *counts))
    return found
