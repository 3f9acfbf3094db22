"""What a proxy with a link does about another exit, as the read model ``rotations`` has it.

The log would not do: it may be archived, and a pool that moved brings its state along without it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from projections.rotations import RotationRow

from ..incident.wording import full_moment, time_of_day
from ..models import Proxy
from .figures import figures_of


class RotationNow(NamedTuple):
    """Where a rotation is, in a sentence; ``tone`` is "good", "warn" or nothing.

    ``rotated_at`` is when the proxy last took another exit.
    """

    sentence: str
    tone: str
    rotated_at: datetime | None


def rotation_of(storage: Any, proxy: Proxy) -> RotationNow | None:
    """Return where the rotation of a proxy is; None if it has no link."""
    if not proxy.rotates:
        return None
    figures = figures_of(storage)
    row = figures.rotation(proxy)
    if row is None:
        return RotationNow("It has a link, which was not called yet.", "", None)
    return RotationNow(*_told(row, proxy, figures.now()), row.rotated_at)


def _told(row: RotationRow, proxy: Proxy, now: datetime) -> tuple[str, str]:
    is_over = row.ends_at is None or row.ends_at <= now
    calls_at = row.calls_at if row.calls_at and row.calls_at > now else None
    if row.claimed_until and row.claimed_until > now:
        return "Its link is being called.", ""
    if row.failure is not None:
        status = f" with {row.status}" if row.status else ""
        then = "It keeps the exit that it had."
        if not is_over and row.calls_at is not None:
            then = f"It is called again at {time_of_day(row.calls_at)}."
        return f"Its link failed: {row.failure}{status}. {then}", "warn"
    if row.ends_at is None and row.rotated_at is not None:
        return f"It took another exit at {full_moment(row.rotated_at)}.", "good"
    if is_over:
        return "Its last rotation ended at its bound: it keeps the exit that it had.", "warn"
    if proxy.current_leases:
        return "It is to take another exit when its leases have ended.", ""
    called = f"at {time_of_day(calls_at)}" if calls_at else "as soon as somebody does"
    return f"It rests for another exit: its link is called {called}.", ""
