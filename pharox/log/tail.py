"""Read on from where one was, losing no event that commits late.

Positions are handed out before commit, so an event can become visible after
one with a later position. A tail therefore remembers the snapshot it last
read with, and asks for what that snapshot could not see. To keep this cheap it
also keeps a floor: once every transaction that ran at an earlier look has
ended, nothing at or below the last position of that look can still appear.
"""

from __future__ import annotations

from typing import NamedTuple

MARGIN = 100_000
"""How far below the newest event a tail that starts from now looks for late ones."""


class Look(NamedTuple):
    """What one look at the log saw: the snapshot with its bounds, and the last position."""

    snapshot: str
    xmin: int
    xmax: int
    top: int


class Tail:
    """Where a reader of the growing log stands.

    Parameters
    ----------
    after:
        Begin with the first event after this position; None for from now on.
    """

    def __init__(self, after: int | None) -> None:
        self.floor = after
        self.seen: str | None = None
        self._anchor: Look | None = None

    def note(self, look: Look) -> None:
        """Take note of a look, after which its events count as read."""
        if self.floor is None:
            self.floor = max(0, look.top - MARGIN)
        if self._anchor is None:
            self._anchor = look
        elif look.xmin >= self._anchor.xmax:
            self.floor = max(self.floor, self._anchor.top)
            self._anchor = look
        self.seen = look.snapshot
