"""Fold the state of the pools event by event: names, addresses and counts.

The fold begins with the state before the window, so no earlier event is read. It keeps
the names of removed pools and proxies, as later events may refer to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

from projections import POOL_STATS, PoolCounts, State

from ... import events
from ...history.addresses import address_of
from .opening import Opening

_POOL_STATS_TYPES = POOL_STATS.types()


class RunningState:
    """The state after the events so far.

    Parameters
    ----------
    begins:
        The pools before the first event. They are not modified.
    """

    def __init__(self, begins: Opening) -> None:
        self.names = dict(begins.names)
        self._addresses = dict(begins.addresses)
        self._counts: State = {(key,): replace(row) for key, row in begins.counts.items()}

    def take(self, event: events.Event) -> None:
        """Fold the next event."""
        if isinstance(event, events.PoolRegistered | events.PoolChanged):
            self.names[event.pool_id] = event.name
        elif isinstance(event, events.ProxyRegistered | events.ProxyChanged):
            self._addresses[event.proxy_id] = address_of(event)
        if event.type in _POOL_STATS_TYPES:
            POOL_STATS.apply(self._counts, event)

    def pool_of(self, event: events.Event) -> str | None:
        """Return the name of an event's pool, or the requested name if the pool is unknown."""
        known = self.names.get(event.pool_id)
        return getattr(event, "pool_name", None) if known is None else known

    def proxy_of(self, proxy_id: UUID) -> str:
        """Return a proxy's protocol, host and port, or its id if it was never described."""
        return self._addresses.get(proxy_id, str(proxy_id))

    def counts_of(self, pool_id: UUID) -> PoolCounts | None:
        """Return a pool's current statistics, or None if it does not exist now."""
        counts: PoolCounts | None = self._counts.get((pool_id,))
        return counts

    def line_of(self, event: events.Event) -> dict[str, Any]:
        """Return the timeline entry of an event that was already folded.

        It has all fields of the event, and data derived from it and the state:
        ``pool`` and ``proxy`` by name, ``held_seconds`` of a lease that ended,
        ``granted_seconds`` of one that began or was renewed, and ``pool_stats`` after it.
        """
        details = event.model_dump(mode="json")
        head = {name: details.pop(name) for name in ("seq", "recorded_at", "type")}
        proxy = None if event.proxy_id is None else self.proxy_of(event.proxy_id)
        return {
            **head,
            "pool": self.pool_of(event),
            "proxy": proxy,
            **details,
            **self._derived(event),
        }

    def _derived(self, event: events.Event) -> dict[str, Any]:
        derived: dict[str, Any] = {}
        if isinstance(event, events.LeaseEnd):
            derived["held_seconds"] = events.held(event).total_seconds()
        if isinstance(event, events.LeaseAcquired | events.LeaseRenewed):
            derived["granted_seconds"] = (event.expires_at - event.recorded_at).total_seconds()
        counts = self.counts_of(event.pool_id)
        if counts is not None and (event.touches_proxy or isinstance(event, events.AcquireMissed)):
            derived["pool_stats"] = counts.figures()
        return derived
