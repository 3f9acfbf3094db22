"""The events in words: what a page lists beside the picture.

A long list keeps what stands out (misses, expiries, changes) before what is
routine, and the page says how many it leaves to the timeline.
"""

from __future__ import annotations

from typing import NamedTuple

from ...events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    LeasesPruned,
    PoolChanged,
    PoolRegistered,
    ProxiesChecked,
    ProxyState,
    held,
)
from ..gather.running_state import Course
from ..gather.window import Window
from ..wording import REASONS, asked_for, span

MOST = 2000
"""How many events a page lists."""

_ROUTINE = ("LeaseAcquired", "LeaseReleased", "CursorMoved", "ConsumerRegistered")


class Entry(NamedTuple):
    """One event of the list."""

    seq: int
    time: str
    event: str
    pool: str
    consumer: str
    proxy: str
    details: str


class Listing:
    """The events worth listing, of any number of them."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.seen = 0
        self._notable: list[Entry] = []
        self._routine: list[Entry] = []

    def take(self, event: Event, course: Course) -> None:
        """Note an event, which the course has taken before, as long as there is room."""
        self.seen += 1
        kept = self._routine if _is_routine(event) else self._notable
        if len(kept) < MOST:
            kept.append(_entry(event, course, self._window))

    def entries(self) -> list[Entry]:
        """Return what is listed, in order."""
        room = MOST - len(self._notable)
        return sorted(self._notable + self._routine[: max(0, room)])


def _is_routine(event: Event) -> bool:
    return event.type in (*_ROUTINE, "ProxiesChecked") or (
        isinstance(event, HealthChecked) and event.before == event.after
    )


def _entry(event: Event, course: Course, window: Window) -> Entry:
    return Entry(
        event.seq,
        window.format_moment(event.recorded_at),
        event.type,
        course.pool_of(event) or "",
        event.consumer or "",
        "" if event.proxy_id is None else course.proxy_of(event.proxy_id),
        "; ".join(_facts(event, window)),
    )


def _facts(event: Event, window: Window) -> list[str]:
    match event:
        case LeaseAcquired():
            asked = asked_for(event.selector, event.filters, predicate=event.predicate)
            description = [f"until {window.format_moment(event.expires_at)}", asked]
        case LeaseReleased():
            description = [f"after {span(held(event))}", event.reason]
        case LeaseExpired():
            description = [
                f"ran out at {window.format_moment(event.expires_at)}",
                f"taken back after {span(held(event))}",
            ]
        case AcquireMissed():
            asked = asked_for(event.selector, event.filters, predicate=event.predicate)
            description = [REASONS[event.reason], asked]
        case HealthChecked():
            description = [*_change(event.before, event.after), event.error]
            if event.latency_ms is not None and event.reachable:
                description.append(f"{event.latency_ms} ms")
        case ProxiesChecked():
            description = [f"{len(event.proxy_ids)} proxies, whose status stays"]
        case PoolRegistered() | PoolChanged():
            description = [event.name, event.description]
        case LeasesPruned():
            description = [f"ended before {window.format_moment(event.ended_before)}"]
        case _:
            description = _change(getattr(event, "before", None), getattr(event, "after", None))
    description.append(event.correlation_id and f"job {event.correlation_id}")
    return [text for text in description if text]


def _change(before: ProxyState | None, after: ProxyState | None) -> list[str | None]:
    if before is not None and after is not None and before.status != after.status:
        return [f"{before.status.value} → {after.status.value}"]
    if before is None and after is not None:
        return [after.status.value]
    return []
