"""The list of events beside the picture.

A long list keeps notable events (misses, expiries, changes) and drops routine ones
first. The page says how many are only in the timeline.
"""

from __future__ import annotations

from typing import NamedTuple

from ... import events
from ...models import OutcomeKind
from ..gather.running_state import RunningState
from ..gather.window import Window
from ..wording import REASONS, asked_for, span, waited

MOST = 2000
"""How many events a page lists at most."""

_ROUTINE = (
    "LeaseAcquired",
    "LeaseRenewed",
    "LeaseReleased",
    "CursorMoved",
    "ConsumerRegistered",
)


_AtTarget = (
    events.OutcomeReported | events.CoolDownSet | events.TargetTroubled | events.TargetRecovered
)


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
    """Collects the events worth listing, however many there are."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self.seen = 0
        self._notable: list[Entry] = []
        self._routine: list[Entry] = []

    def take(self, event: events.Event, running_state: RunningState) -> None:
        """Add an event, already folded into the running state, while there is room."""
        self.seen += 1
        kept = self._routine if _is_routine(event) else self._notable
        if len(kept) < MOST:
            kept.append(_entry(event, running_state, self._window))

    def entries(self) -> list[Entry]:
        """Return the listed events, in order."""
        room = MOST - len(self._notable)
        return sorted(self._notable + self._routine[: max(0, room)])


def _is_routine(event: events.Event) -> bool:
    if isinstance(event, events.LeaseRenewed) and event.is_redated:
        return False
    if isinstance(event, events.OutcomeReported):
        return event.outcome is OutcomeKind.OK
    return event.type in (*_ROUTINE, "ProxiesChecked") or (
        isinstance(event, events.HealthChecked) and event.before == event.after
    )


def _entry(event: events.Event, running_state: RunningState, window: Window) -> Entry:
    return Entry(
        event.seq,
        window.format_moment(event.recorded_at),
        event.type,
        running_state.pool_of(event) or "",
        event.consumer or "",
        "" if event.proxy_id is None else running_state.proxy_of(event.proxy_id),
        "; ".join(_details(event, window)),
    )


def _details(event: events.Event, window: Window) -> list[str]:
    match event:
        case events.LeaseAcquired():
            asked = _asked(event)
            until = f"until {window.format_moment(event.expires_at)}"
            description = [until, waited(event.waited_ms), asked]
        case events.LeaseRenewed():
            until = f"until {window.format_moment(event.expires_at)}"
            why = "re-dated: the clock went back" if event.is_redated else None
            description = [until, why]
        case events.LeaseReleased() | events.LeaseRevoked():
            description = [f"after {span(events.held(event))}", event.reason]
        case events.LeaseExpired():
            description = [
                f"ran out at {window.format_moment(event.expires_at)}",
                f"taken back after {span(events.held(event))}",
            ]
        case events.AcquireMissed():
            asked = _asked(event)
            description = [REASONS[event.reason], waited(event.waited_ms), asked]
        case events.HealthChecked():
            description = [*_change(event.before, event.after), event.error]
            if event.latency_ms is not None and event.reachable:
                description.append(f"{event.latency_ms} ms")
        case events.ProxiesChecked():
            description = [f"{len(event.proxy_ids)} proxies, whose status stays"]
        case (
            events.OutcomeReported()
            | events.CoolDownSet()
            | events.TargetTroubled()
            | events.TargetRecovered()
        ):
            description = _at_target(event, window)
        case events.PoolRegistered() | events.PoolChanged():
            description = [event.name, event.description]
        case events.LeasesPruned():
            description = [f"ended before {window.format_moment(event.ended_before)}"]
        case _:
            description = _change(getattr(event, "before", None), getattr(event, "after", None))
    description.append(event.correlation_id and f"job {event.correlation_id}")
    return [text for text in description if text]


def _asked(event: events.LeaseAcquired | events.AcquireMissed) -> str | None:
    return asked_for(event.selector, event.filters, predicate=event.predicate, target=event.target)


def _at_target(event: _AtTarget, window: Window) -> list[str | None]:
    """Return what happened at a target."""
    match event:
        case events.OutcomeReported():
            return [*_reported(event), _rest(event, window), event.note]
        case events.CoolDownSet():
            return [event.target, _rest(event, window) or "rests no longer", event.reason]
        case events.TargetTroubled():
            return [event.target, f"{event.failed} of {event.proxies} proxies failed there"]
        case events.TargetRecovered():
            return [event.target]


def _reported(event: events.OutcomeReported) -> list[str | None]:
    times = f"{event.count:,} times" if event.count > 1 else None
    status = None if event.status is None else str(event.status)
    return [event.target, event.outcome.value, status, times]


def _rest(event: events.OutcomeReported | events.CoolDownSet, window: Window) -> str | None:
    """Return until when the pair rests after an event, or None if it does not."""
    until = event.cools_until
    rests = until is not None and until > event.recorded_at
    return f"rests until {window.format_moment(until)}" if until and rests else None


def _change(before: events.ProxyState | None, after: events.ProxyState | None) -> list[str | None]:
    if before is not None and after is not None and before.status != after.status:
        return [f"{before.status.value} → {after.status.value}"]
    if before is None and after is not None:
        return [after.status.value]
    return []
