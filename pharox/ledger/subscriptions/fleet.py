"""Call callbacks for the whole fleet: what every manager did, read from the log.

A payload equals the one of the manager that appended the event: the lease as it was
then, and the pool's statistics exactly at that event. For this, the read models
behind payloads are folded along the log, ahead of the deliveries. Payloads are kept
for an event that is delivered again. For a much older event, such as a parked one,
the state is folded again.

Checks that are stored together in one event are delivered one by one. If a callback
raises for one of them, all of them are delivered again.

The log does not know when an attempt began: ``started_at`` is ``completed_at``,
and ``duration_ms`` is 0.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from typing import Any, cast
from uuid import UUID, uuid4

from pharox import events
from pharox.errors import InvalidInputError
from pharox.log import Extract
from pharox.models import (
    AcquireEventPayload,
    ExpireEventPayload,
    HealthEventPayload,
    Lease,
    PoolStatsSnapshot,
    ProxyFilters,
    ReleaseEventPayload,
    RevokeEventPayload,
    SelectorStrategy,
)
from pharox.storage.interface import IStorage
from pharox.storage.requests import result_of_check
from projections import LEASES, POOL_STATS, POOLS, LeaseRow, PoolRow, State

from ...history.sealed_log import SealedLog
from .delivery import Delivery
from .options import Start
from .subscription import BoundSubscription, Subscription, for_threads, in_postgres

__all__ = ["Payloads", "fleet_subscription", "for_threads", "payload_of"]

Payload = (
    AcquireEventPayload
    | ReleaseEventPayload
    | ExpireEventPayload
    | RevokeEventPayload
    | HealthEventPayload
)
Callback = Callable[[Any], Any]

UNNAMED = "callbacks-"
"""The prefix of the names of temporary subscriptions."""

AHEAD = 2_000
"""How many seqs of the log to fold ahead at once."""
KEPT = 20_000
"""How many payloads to keep; more than are folded at once."""

_PROJECTIONS = (POOLS, LEASES, POOL_STATS)
_FOLDED = frozenset[str]().union(*(projection.types() for projection in _PROJECTIONS))


_EVENTS_OF = {
    "on_acquire": ("LeaseAcquired", "AcquireMissed"),
    "on_release": ("LeaseReleased",),
    "on_expire": ("LeaseExpired",),
    "on_revoke": ("LeaseRevoked",),
    "on_health": ("HealthChecked", "ProxiesChecked"),
}


def fleet_subscription(
    storage: IStorage,
    name: str | None,
    callbacks: Mapping[str, Callback | None],
    *,
    start: Start,
    pool: str | UUID | None,
) -> BoundSubscription:
    """Return the subscription that calls callbacks, given as ``on_acquire`` and so on.

    Raises
    ------
    InvalidInputError
        If there is no callback, or the storage is not in PostgreSQL.
    """
    by_type = {
        type_: callback
        for on, callback in callbacks.items()
        if callback is not None
        for type_ in _EVENTS_OF[on]
    }
    if not by_type:
        raise InvalidInputError(f"give at least one callback: {', '.join(_EVENTS_OF)}")
    payloads = Payloads(in_postgres(storage), by_type)
    subscription = Subscription(
        name or f"{UNNAMED}{uuid4()}",
        _notifier(payloads, by_type),
        start=start,
        types=tuple(by_type),
        pool=pool,
        temporary=name is None,
    )
    return BoundSubscription(subscription, storage)


class Payloads:
    """The payloads of events, requested roughly in the order of the log."""

    def __init__(self, log: SealedLog, types: Collection[str]) -> None:
        self._log = log
        self._types = frozenset(types)
        self._states: dict[str, State] | None = None
        self._seq = 0
        self._known: dict[int, Payload] = {}
        self._order: deque[int] = deque()

    def of(self, event: events.Event) -> Iterator[Payload]:
        """Yield an event's payload, or one for each check that the event combines."""
        if self._states is None:
            self._begin(event.seq - 1)
        if event.seq > self._seq:
            self._fold_to(event.seq + AHEAD)
        known = self._known.get(event.seq)
        first = self._anew(event) if known is None else known
        yield first
        # Only the first is kept: the other checks have the same pool statistics.
        for check in event.parts()[1:]:
            yield _checked(cast("events.HealthChecked", check), first.pool_stats)

    def _anew(self, event: events.Event) -> Payload:
        alone = Payloads(self._log, self._types)
        alone._begin(event.seq - 1)
        alone._fold_to(event.seq)
        return alone._known[event.seq]

    def _begin(self, seq: int) -> None:
        self._states = self._log.state_at(seq)
        self._seq = seq

    def _fold_to(self, upto: int) -> None:
        extract = Extract(self._seq, upto, types=_FOLDED | self._types)
        for event in self._log.history(extract):
            self._fold(event)
            self._seq = event.seq

    def _fold(self, event: events.Event) -> None:
        states = self._states or {}
        for projection in _PROJECTIONS:
            projection.apply(states[projection.name], event)
        if event.type in self._types:
            first = event.checks()[0] if isinstance(event, events.ProxiesChecked) else event
            self._known[event.seq] = payload_of(first, states)
            self._order.append(event.seq)
            if len(self._order) > KEPT:
                del self._known[self._order.popleft()]
        if isinstance(event, events.LeaseEnd):
            del states[LEASES.name][event.lease_id, event.pool_id]


def _notifier(payloads: Payloads, callbacks: Mapping[str, Callback]) -> Callback:
    def notify(delivery: Delivery) -> None:
        for payload in payloads.of(delivery.event):
            callbacks[delivery.event.type](payload)

    async def notify_async(delivery: Delivery) -> None:
        all_payloads = await asyncio.to_thread(lambda: list(payloads.of(delivery.event)))
        for payload in all_payloads:
            answer = callbacks[delivery.event.type](payload)
            if inspect.isawaitable(answer):
                await answer

    is_async = any(inspect.iscoroutinefunction(callback) for callback in callbacks.values())
    return notify_async if is_async else notify


def payload_of(event: events.Event, states: dict[str, State]) -> Payload:
    """Return the payload of the event that was folded into the states last."""
    stats = _stats(event, states)
    match event:
        case events.LeaseAcquired() | events.AcquireMissed():
            return AcquireEventPayload(
                lease=_lease(event, states) if isinstance(event, events.LeaseAcquired) else None,
                pool_name=event.pool_name,
                consumer_name=event.consumer,
                filters=None if event.filters is None else ProxyFilters(**event.filters),
                selector=event.selector or SelectorStrategy.FIRST_AVAILABLE,
                started_at=event.recorded_at,
                completed_at=event.recorded_at,
                duration_ms=0,
                pool_stats=stats,
                miss_reason=event.reason if isinstance(event, events.AcquireMissed) else None,
                waited_ms=event.waited_ms,
            )
        case events.LeaseReleased():
            lease = _lease(event, states)
            return ReleaseEventPayload(
                lease=lease,
                pool_name=event.pool_name,
                released_at=event.recorded_at,
                lease_duration_ms=lease.duration_ms,
                pool_stats=stats,
                reason=event.reason,
            )
        case events.LeaseExpired():
            lease = _lease(event, states)
            return ExpireEventPayload(
                lease=lease,
                pool_name=event.pool_name,
                expired_at=event.recorded_at,
                lease_duration_ms=lease.duration_ms,
                pool_stats=stats,
            )
        case events.LeaseRevoked():
            lease = _lease(event, states)
            return RevokeEventPayload(
                lease=lease,
                pool_name=event.pool_name,
                revoked_at=event.recorded_at,
                lease_duration_ms=lease.duration_ms,
                pool_stats=stats,
                reason=event.reason,
            )
        case events.HealthChecked():
            return _checked(event, stats)
    raise TypeError(f"no callback receives {event.type}")


def _checked(event: events.HealthChecked, stats: PoolStatsSnapshot | None) -> HealthEventPayload:
    return HealthEventPayload(
        result=result_of_check(event),
        pool_name=None if stats is None else stats.pool_name,
        status_before=event.before.status,
        status_after=event.after.status,
        applied=event.applied,
        leases=event.after.leases,
        lease_ids=event.lease_ids,
        source=event.source,
        pool_stats=stats,
    )


def _stats(event: events.Event, states: dict[str, State]) -> PoolStatsSnapshot | None:
    pool: PoolRow | None = states[POOLS.name].get((event.pool_id,))
    if pool is None:
        return None
    counts = states[POOL_STATS.name][(event.pool_id,)]
    return PoolStatsSnapshot(
        pool_name=pool.name,
        collected_at=event.recorded_at,
        **counts.figures(),
    )


def _lease(event: events.Event, states: dict[str, State]) -> Lease:
    row: LeaseRow = states[LEASES.name][event.lease_id, event.pool_id]
    return Lease.model_validate(asdict(row))
