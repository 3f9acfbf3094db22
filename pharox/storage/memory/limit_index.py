"""The in-memory index of limited leases: those that are held, and the starts that paces count."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sortedcontainers import SortedList

from ...events import ENDED_STATUS, EventBase, LeaseAcquired, LeasesPruned, PoolRemoved

_Key = tuple[UUID, UUID | str]


class LimitIndex:
    """Limited leases by consumer and by target, and starts by pool, consumer and proxy.

    Parameters
    ----------
    starts:
        The read model of starts, from which an event may have deleted rows.
    """

    def __init__(self, starts: dict[Any, Any]) -> None:
        self._rows = starts
        self._held: dict[_Key, set[UUID]] = {}
        self._keys: dict[UUID, tuple[_Key, ...]] = {}
        self._starts: dict[_Key, Any] = {}

    def place(self, event: EventBase) -> None:
        """Follow an event."""
        if isinstance(event, LeaseAcquired):
            if event.limited:
                self._hold(event)
            if event.paced_seconds is not None:
                row = self._rows[event.pool_id, event.recorded_at, event.lease_id]
                self._start(row)
        elif event.lease_id in self._keys and event.type in ENDED_STATUS:  # type: ignore[attr-defined]
            for key in self._keys.pop(event.lease_id):
                self._held[key].discard(event.lease_id)
        elif isinstance(event, LeasesPruned | PoolRemoved) and self._starts:
            self._starts = {}
            for row in self._rows.values():
                self._start(row)

    def carry(self, row: Any) -> None:
        """Add a start that a pool brought along from another ledger."""
        self._start(row)

    def held(self, pool_id: UUID, key: UUID | str) -> frozenset[UUID]:
        """Return the limited leases that are held by a consumer, or for a target."""
        return frozenset(self._held.get((pool_id, key), ()))

    def starts(
        self, pool_id: UUID, key: UUID, at: datetime, seconds: float, target: str | None = None
    ) -> list[datetime]:
        """Return the starts near a moment of a consumer or a proxy, oldest first.

        Parameters
        ----------
        seconds:
            How far they may be from the moment, before it or after it.
        target:
            Only those for this target, if given.
        """
        span = timedelta(seconds=seconds)
        near = self._near(pool_id, key, at - span, at + span)
        return [row.started_at for row in near if target is None or row.target == target]

    def proxies(self, pool_id: UUID, at: datetime, seconds: float) -> set[UUID]:
        """Return the proxies of a pool with starts so near to a moment."""
        span = timedelta(seconds=seconds)
        return {row.proxy_id for row in self._near(pool_id, pool_id, at - span, at + span)}

    def first(self, pool_id: UUID, after: datetime) -> datetime | None:
        """Return the first start in a pool after a moment."""
        near = self._near(pool_id, pool_id, after, None)
        return next((row.started_at for row in near), None)

    def _hold(self, event: LeaseAcquired) -> None:
        keys: tuple[_Key, ...] = ((event.pool_id, event.consumer_id),)
        if event.target is not None:
            keys = (*keys, (event.pool_id, event.target))
        self._keys[event.lease_id] = keys
        for key in keys:
            self._held.setdefault(key, set()).add(event.lease_id)

    def _start(self, row: Any) -> None:
        for key in (row.pool_id, row.consumer_id, row.proxy_id):
            order = self._starts.setdefault((row.pool_id, key), SortedList())
            order.add((row.started_at, row.lease_id.int, row.lease_id))

    def _near(
        self, pool_id: UUID, key: UUID, after: datetime, before: datetime | None
    ) -> Iterator[Any]:
        order = self._starts.get((pool_id, key))
        if order is None:
            return
        highest = None if before is None else (before, -1)
        for started_at, _, lease_id in order.irange((after, 1 << 128), highest):
            yield self._rows[pool_id, started_at, lease_id]
