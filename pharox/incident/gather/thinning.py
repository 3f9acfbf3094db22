"""Keep a page small however much happened, and say what was merged.

Items that are too short to be distinguished from their neighbours share a bar with
them. The limit depends on how much there is to draw: nothing is merged while
everything fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from .shapes import LeaseBar, Point
from .window import Window

T = TypeVar("T")

MOST_LINES = 8
"""How many leases of one proxy to draw above each other."""

_RESOLUTIONS = (4096, 2048, 1024, 512, 256, 128)


class Scale:
    """Maps moments to places in a window, from 0 to 1; moments outside are at the edges."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def __call__(self, moment: datetime) -> float:
        """Return the place of a moment."""
        seconds = (moment - self._window.start).total_seconds()
        return min(1.0, max(0.0, seconds / self._window.seconds))

    def ends(self, bar: LeaseBar) -> tuple[float, float]:
        """Return the places where a lease begins and ends."""
        return self(bar.began), self(self._window.end if bar.ended is None else bar.ended)


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
