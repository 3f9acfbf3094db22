"""The time axis: the positions of ticks for each zoom level."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ..gather.window import Window

ZOOMS = (1, 2, 4, 8, 16, 32, 64)
"""The zoom levels: how many times wider than the window the picture is shown."""

_TICKS = 8
_STEPS_S = (
    *(n * unit for unit in (0.001, 0.01, 0.1) for n in (1, 2, 5)),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800),
    *(3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000),
)


class Tick(NamedTuple):
    """A vertical line across the picture with its label."""

    at: datetime
    label: str


def ticks(window: Window, zoom: int) -> list[Tick]:
    """Return round times within a window, about eight of them visible at once."""
    at_least = window.drawn_seconds / zoom / _TICKS
    step = next((step for step in _STEPS_S if step >= at_least), None)
    if step is None:
        step = _STEPS_S[-1] * math.ceil(at_least / _STEPS_S[-1])
    return list(_every(timedelta(seconds=step), window))


def _every(step: timedelta, window: Window) -> Iterator[Tick]:
    midnight = window.start.replace(hour=0, minute=0, second=0, microsecond=0)

    def round_from(moment: datetime) -> datetime:
        return midnight + step * math.ceil((moment - midnight) / step)

    at = round_from(window.start)
    while at <= window.end:
        # What is folded may be hours of a window of which seconds are drawn.
        folded = next((fold for fold in window.folds if fold.start < at < fold.end), None)
        if folded is not None:
            at = round_from(folded.end)
            continue
        yield Tick(at, _label(at, step))
        at += step


def _label(at: datetime, step: timedelta) -> str:
    at = at.astimezone(UTC)
    if step >= timedelta(days=1):
        return f"{at:%Y-%m-%d}"
    if at == at.replace(hour=0, minute=0, second=0, microsecond=0):
        return f"{at:%b} {at.day}"
    if step >= timedelta(minutes=1):
        return f"{at:%H:%M}"
    if step >= timedelta(seconds=1):
        return f"{at:%H:%M:%S}"
    return f"{at:%H:%M:%S.%f}"[:-3]
