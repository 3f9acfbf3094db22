"""Find the time in which nothing happened, which a page folds: incidents are short, windows long.

A window is divided into slots. Those in which something was drawn are marked; where many others
follow each other, the time between is folded, but for a slot at each side.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import groupby

from ... import events
from .window import Fold, Window

_SLOTS = 500
_LONG = _SLOTS // 8
"""From how many empty slots on they are folded."""

_SHORTEST_S = 60.0
"""A window that is shorter is never folded."""

_QUIET = (events.ProxiesChecked, events.LeaseRenewed, events.CursorMoved)
"""Events that the picture does not show."""


class Calm:
    """Notes when something happened in a window, in slots of it."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._is_busy = bytearray(_SLOTS)

    def take(self, event: events.Event) -> None:
        """Note an event, unless nothing of it is drawn."""
        if isinstance(event, _QUIET):
            return
        if not (isinstance(event, events.HealthChecked) and event.before == event.after):
            self._is_busy[self._slot(event.recorded_at)] = True

    def folds(self) -> tuple[Fold, ...]:
        """Return the long parts of the window in which nothing happened."""
        return tuple(self._long()) if self._window.seconds >= _SHORTEST_S else ()

    def _long(self) -> Iterator[Fold]:
        length = (self._window.end - self._window.start) / _SLOTS
        for is_busy, run in groupby(range(_SLOTS), self._is_busy.__getitem__):
            slots = list(run)
            if not is_busy and len(slots) >= _LONG:
                first, last = slots[1], slots[-2]
                start = self._window.start
                yield Fold(start + first * length, start + (last + 1) * length)

    def _slot(self, moment: datetime) -> int:
        share = (moment - self._window.start).total_seconds() / self._window.seconds
        return min(_SLOTS - 1, max(0, int(share * _SLOTS)))
