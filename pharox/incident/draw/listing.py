"""The list of events beside the picture.

A long list keeps notable events (misses, expiries, changes) and drops routine ones
first. The page says how many are only in the timeline.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from ... import events
from ...models import OutcomeKind
from ..gather.running_state import RunningState
from ..gather.window import Window
from ..wording import REASONS, asked_for, fell_back, span, waited

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
    events.OutcomeReported
    | events.CoolDownSet
    | events.TargetTroubled
    | events.TargetRecovered
    | events.TargetRulesSet
)


_SourceEvent = (
    events.SourceSaved | events.SourceRemoved | events.SourceRefreshed | events.SourceFailed
)


_Housekeeping = (
    events.ActionTaken | events.LeasesPruned | events.ApiTokenIssued | events.ApiTokenWithdrawn
)


_OfLedgers = events.PoolPlaced | events.PoolMoveEvent


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
    if isinstance(event, events.LeaseAcquired) and event.fallback_from:
        return False
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
            others = fell_back(event.fallback_from)
            description = [until, waited(event.waited_ms), others, asked]
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
            others = fell_back(event.fallback)
            description = [REASONS[event.reason], waited(event.waited_ms), others, asked]
        case events.HealthChecked() | events.ProxiesChecked():
            description = _checked(event)
        case (
            events.OutcomeReported()
            | events.CoolDownSet()
            | events.TargetTroubled()
            | events.TargetRecovered()
            | events.TargetRulesSet()
        ):
            description = _at_target(event, window)
        case (
            events.SourceSaved()
            | events.SourceRemoved()
            | events.SourceRefreshed()
            | events.SourceFailed()
        ):
            description = _of_source(event)
        case events.PoolRegistered() | events.PoolChanged():
            description = [event.name, event.description]
        case _ if isinstance(event, _OfLedgers):
            description = _between_ledgers(event)
        case (
            events.ActionTaken()
            | events.LeasesPruned()
            | events.ApiTokenIssued()
            | events.ApiTokenWithdrawn()
        ):
            description = _housekeeping(event, window)
        case _:
            description = _change(getattr(event, "before", None), getattr(event, "after", None))
    description.append(event.correlation_id and f"job {event.correlation_id}")
    return [text for text in description if text]


def _between_ledgers(event: _OfLedgers) -> list[str | None]:
    """Return which ledger a pool is in, goes to or comes from, and where its history ends there."""
    if isinstance(event, events.PoolStateCarried):
        return [f"{len(event.rows)} rows of {event.read_model}", f"ledger {event.ledger}"]
    last_seq = getattr(event, "last_seq", None)
    return [f"ledger {event.ledger}", None if last_seq is None else f"up to seq {last_seq}"]


def _checked(event: events.HealthChecked | events.ProxiesChecked) -> list[str | None]:
    if isinstance(event, events.ProxiesChecked):
        return [f"{len(event.proxy_ids)} proxies, whose status stays"]
    took = f"{event.latency_ms} ms" if event.latency_ms is not None and event.reachable else None
    return [*_change(event.before, event.after), event.error, took]


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
        case events.TargetRulesSet():
            rules = "the default rules" if event.rules is None else json.dumps(event.rules)
            return [event.target, rules]


def _of_source(event: _SourceEvent) -> list[str | None]:
    """Return what happened to a source of proxies."""
    what = None
    if isinstance(event, events.SourceRefreshed):
        counts = event.counts
        went = counts.removed + counts.draining
        what = f"{counts.added} came, {went} of {went + counts.changed + counts.unchanged} went"
    elif isinstance(event, events.SourceFailed):
        what = event.reason
    return [f"source {event.source}", what]


def _housekeeping(event: _Housekeeping, window: Window) -> list[str | None]:
    match event:
        case events.LeasesPruned():
            return [f"ended before {window.format_moment(event.ended_before)}"]
        case events.ApiTokenIssued():
            return [f"token {event.token_id}", ", ".join(event.rights)]
        case events.ApiTokenWithdrawn():
            return [f"token {event.token_id}"]
        case events.ActionTaken():
            return [event.action.replace("_", " "), event.subject, event.reason]


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
