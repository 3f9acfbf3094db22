"""Gather what a report draws, event by event: leases, misses, counts and status changes.

The picture is kept small: a proxy has a lane only if something happened to it, a miss
is counted in its time slot, and a health check that changed nothing is only in the
timeline.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from projections import PoolCounts

from ... import events
from ...models import OutcomeKind
from ...storage.sources import REFRESH_JOB
from ..wording import asked_for, fell_back
from .folding import Calm
from .opening import Opening
from .running_state import RunningState
from .shapes import Lane, LeaseBar, Mark, MissSlot, Point, PoolPicture, Refusals, SourceNews
from .window import Choice, Window

_StateChange = (
    events.ProxyRegistered | events.ProxyChanged | events.ProxyRemoved | events.HealthChecked
)
MISS_SLOTS = 120
"""The maximum number of time slots in which a window's misses are counted."""

REFUSING_TARGETS = 100
"""How many targets that refused proxies are told apart in a pool."""

REFUSED_PROXIES = 100
"""How many proxies that a target refused are told apart."""

_NICE_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400)


class Picture:
    """The pools of a window.

    Parameters
    ----------
    window:
        The window of the picture.
    choice:
        The pools in it.
    begins:
        The pools before the window.
    running_state:
        The fold of the events, one step ahead of :meth:`take`.
    """

    def __init__(
        self,
        window: Window,
        choice: Choice,
        begins: Opening,
        running_state: RunningState,
    ) -> None:
        self.window = window
        self.miss_slot_s = _slot_length(window.seconds)
        self._last_slot = max(0, math.ceil(window.seconds / self.miss_slot_s) - 1)
        self._running_state = running_state
        self._pools: dict[UUID | str, PoolPicture] = {}
        self._open: dict[UUID, LeaseBar] = {}
        self._statuses: dict[Any, str] = {}
        self._calm = Calm(window)
        self._begin(begins, choice)

    @property
    def folded_window(self) -> Window:
        """The window with the time in which nothing happened as folds."""
        return replace(self.window, folds=self._calm.folds())

    def take(self, event: events.Event) -> None:
        """Add the next event, already folded into the running state."""
        self._calm.take(event)
        if event.pool_id in self._running_state.names:
            self._pool(event).happened = True
        match event:
            case events.AcquireMissed():
                self._miss(event)
            case events.LeaseAcquired():
                bar = LeaseBar(
                    event.lease_id,
                    event.consumer,
                    event.recorded_at,
                    event.expires_at,
                    event.position,
                    asked_for(
                        event.selector,
                        event.filters,
                        predicate=event.predicate,
                        target=event.target,
                    ),
                    event.correlation_id,
                    waited_ms=event.waited_ms,
                    fell_back=fell_back(event.fallback_from),
                )
                self._lane(event.pool_id, event.proxy_id).bars.append(bar)
                self._open[event.lease_id] = bar
            case events.LeaseRenewed():
                renewed = self._open[event.lease_id]
                renewed.expires_at = event.expires_at
                renewed.renewals += not event.is_redated
            case events.LeaseReleased() | events.LeaseExpired() | events.LeaseRevoked():
                self._end(event)
            case (
                events.ProxyRegistered()
                | events.ProxyChanged()
                | events.ProxyRemoved()
                | events.HealthChecked()
            ):
                self._mark_change(event)
            case events.OutcomeReported(outcome=OutcomeKind.BLOCKED):
                self._refuse(event)
            case events.SourceRefreshed() | events.SourceFailed():
                self._note_source(event)
            case events.PoolRemoved():
                self._pool(event).points.append(Point(event.recorded_at, 0, 0, 0, 0))
        self._count(event)

    def pools(self) -> list[PoolPicture]:
        """Return the pools in which something happened, by name."""
        for pool_id, pool in self._pools.items():
            if isinstance(pool_id, UUID):
                pool.name = self._running_state.names[pool_id]
        return sorted(
            (pool for pool in self._pools.values() if pool.happened), key=lambda pool: pool.name
        )

    def _begin(self, begins: Opening, choice: Choice) -> None:
        for counts in begins.counts.values():
            if choice.has(counts.pool_id):
                name = self._running_state.names[counts.pool_id]
                points = [_point(self.window.start, counts)]
                self._pools[counts.pool_id] = PoolPicture(
                    name, known_proxies=counts.total_proxies, points=points
                )
        self._statuses.update(begins.statuses)
        for lease in sorted(begins.leases, key=lambda row: row.fencing_token):
            if choice.has(lease.pool_id):
                self._open[lease.id] = bar = LeaseBar(
                    lease.id,
                    lease.consumer_name,
                    lease.acquired_at,
                    lease.expires_at,
                    lease.fencing_token,
                )
                self._pools[lease.pool_id].happened = True
                self._lane(lease.pool_id, lease.proxy_id).bars.append(bar)

    def _miss(self, event: events.AcquireMissed) -> None:
        pool = self._pool(event)
        pool.happened = True
        seconds = (event.recorded_at - self.window.start).total_seconds()
        number = min(self._last_slot, max(0, int(seconds // self.miss_slot_s)))
        begins = self.window.start + timedelta(seconds=number * self.miss_slot_s)
        slot = pool.misses.setdefault(number, MissSlot(begins))
        slot.reasons[event.reason] += 1
        slot.consumers[event.consumer] += 1
        asked = asked_for(None, event.filters, predicate=event.predicate, target=event.target)
        slot.asked[asked] += 1
        pool.first_miss = pool.first_miss or event.recorded_at
        pool.last_miss = event.recorded_at

    def _refuse(self, event: events.OutcomeReported) -> None:
        pool, target = self._pool(event), event.target or "a target"
        if target not in pool.refusals and len(pool.refusals) >= REFUSING_TARGETS:
            pool.refused_elsewhere += event.count
            return
        refusals = pool.refusals.setdefault(target, Refusals(event.recorded_at))
        address = self._running_state.proxy_of(event.proxy_id)
        refusals.add(address, event.count, event.recorded_at, REFUSED_PROXIES)

    def _note_source(self, event: events.SourceRefreshed | events.SourceFailed) -> None:
        news = self._pool(event).sources.setdefault(event.source, SourceNews())
        if isinstance(event, events.SourceFailed):
            news.failed += 1
            news.failed_at = news.failed_at or event.recorded_at
            news.reason = event.reason
            return
        counts = event.counts
        went = counts.removed + counts.draining
        if went > news.went:
            news.went, news.took_at = went, event.recorded_at
            news.had = went + counts.changed + counts.unchanged + counts.kept

    def _end(self, event: events.LeaseEnd) -> None:
        bar = self._open.pop(event.lease_id)
        bar.ended = event.recorded_at
        bar.ending = events.ENDED_STATUS[event.type]
        if not isinstance(event, events.LeaseExpired):
            bar.reason = event.reason

    def _mark_change(self, event: _StateChange) -> None:
        pool = self._pool(event)
        if isinstance(event, events.ProxyRegistered) and event.proxy_id not in pool.lanes:
            pool.known_proxies += 1
        if event.before != event.after:
            origin = _by_whom(event)
            mark = Mark(event.recorded_at, event.before, event.after, _why(event), *origin)
            self._lane(event.pool_id, event.proxy_id).marks.append(mark)

    def _count(self, event: events.Event) -> None:
        counts = self._running_state.counts_of(event.pool_id)
        if counts is None or event.pool_id not in self._pools:
            return
        points = self._pools[event.pool_id].points
        at = max(event.recorded_at, points[-1].at if points else self.window.start)
        point = _point(at, counts)
        if not points or points[-1][1:] != point[1:]:
            points.append(point)

    def _pool(self, event: events.Event) -> PoolPicture:
        name = self._running_state.pool_of(event) or ""
        exists = event.pool_id in self._running_state.names
        key: UUID | str = event.pool_id if exists else name
        if key not in self._pools:
            nothing = Point(self.window.start, 0, 0, 0, 0)
            self._pools[key] = PoolPicture(name, exists, points=[nothing] if exists else [])
        return self._pools[key]

    def _lane(self, pool_id: UUID, proxy_id: UUID) -> Lane:
        lanes = self._pools[pool_id].lanes
        if proxy_id not in lanes:
            status = self._statuses.get((proxy_id, pool_id))
            lanes[proxy_id] = Lane(proxy_id, self._running_state.proxy_of(proxy_id), status)
        return lanes[proxy_id]


def _point(at: datetime, counts: PoolCounts) -> Point:
    return Point(
        at,
        counts.total_proxies,
        counts.active_proxies,
        counts.available_proxies,
        counts.total_leases,
    )


def _slot_length(seconds: float) -> float:
    """Return the shortest round length that divides the window into at most ``MISS_SLOTS``."""
    at_least = seconds / MISS_SLOTS
    if at_least <= 0.001:
        return 0.001
    if at_least > _NICE_S[-1]:
        return _NICE_S[-1] * -(-at_least // _NICE_S[-1])
    parts = [n * unit for unit in (0.001, 0.01, 0.1) for n in (1, 2, 5)]
    return next(length for length in (*parts, *_NICE_S) if length >= at_least)


def _by_whom(event: _StateChange) -> tuple[str | None, str | None]:
    """Return who changed a proxy, and why."""
    if isinstance(event, events.HealthChecked):
        status = None if event.status_code is None else f"status {event.status_code}"
        return "Health checks", event.error or status or event.failure
    return event.actor, event.reason if isinstance(event, events.ProxyChanged) else None


def _why_changed(event: events.ProxyChanged) -> str:
    if event.reason == events.BAN_OVER:
        return event.reason
    if event.reason and (event.correlation_id or "").startswith(REFRESH_JOB):
        return event.reason
    what = "changed" if event.until is None else f"banned until {event.until:%Y-%m-%d %H:%M:%S} UTC"
    by = f"{what} by {event.actor}" if event.actor else f"{what} by hand"
    return f"{by}: {event.reason}" if event.reason else by


def _why(event: _StateChange) -> str:
    if not isinstance(event, events.HealthChecked):
        if isinstance(event, events.ProxyChanged):
            return _why_changed(event)
        words = {"ProxyRegistered": "registered", "ProxyRemoved": "removed"}
        return words[event.type]
    details = ["health check"]
    if event.status_code is not None:
        details.append(f"status {event.status_code}")
    if event.latency_ms is not None and event.reachable:
        details.append(f"{event.latency_ms} ms")
    if event.error:
        details.append(event.error)
    elif not event.reachable:
        details.append("not reachable")
    return ", ".join(details)
