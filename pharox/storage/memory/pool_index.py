"""What a pool's selectors look through, in memory.

The counterpart of the indexes on ``available_proxies`` and ``leases``: for
each selector the leasable proxies in its order, for expiry the active leases
by when they run out. Every change costs the logarithm of the pool's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sortedcontainers import SortedList

from projections import Availability

from ...models import ProxyStatus, SelectorStrategy

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNKNOWN_LATENCY = 2**63

_Key = tuple[Any, ...]


def _rank(standing: Availability) -> int | None:
    """Return the ``lease_rank`` of :mod:`projections.available_proxies`."""
    capacity = standing.max_concurrency
    if capacity is not None and standing.current_leases >= capacity:
        return None
    return {"active": 0, "slow": 1}.get(standing.status)


def _keys(proxy_id: UUID, standing: Availability) -> tuple[_Key, ...] | None:
    """Return a proxy's place in each order, or None if it cannot be leased.

    The id stands in each key as a number, which compares quickly, and once
    more as itself, which is never compared.
    """
    rank = _rank(standing)
    if rank is None:
        return None
    number = proxy_id.int
    checked = (standing.checked_at - _EPOCH) // _MICROSECOND
    latency = _UNKNOWN_LATENCY if standing.latency_ms is None else standing.latency_ms
    return (
        (rank, -checked, number, proxy_id),
        (rank, standing.current_leases, checked, number, proxy_id),
        (rank, number, proxy_id),
        (rank, latency, number, proxy_id),
    )


_ORDER = {
    SelectorStrategy.FIRST_AVAILABLE: 0,
    SelectorStrategy.LEAST_USED: 1,
    SelectorStrategy.ROUND_ROBIN: 2,
    SelectorStrategy.LOWEST_LATENCY: 3,
}


class PoolIndex:
    """The orders of one pool, and who holds what in it."""

    def __init__(self, pool_id: UUID) -> None:
        self.pool_id = pool_id
        self.lease_slow = False
        self.members: dict[UUID, str] = {}
        self._statuses: Counter[str] = Counter()
        self._orders = tuple(SortedList() for _ in _ORDER)
        self._places: dict[UUID, tuple[_Key, ...]] = {}
        self._expiries: Any = SortedList()
        self._held: dict[UUID, set[UUID]] = {}

    def place(self, proxy_id: UUID, standing: Availability | None) -> None:
        """Put a proxy where it now belongs, or take it out if it is gone."""
        self._count(proxy_id, None if standing is None else standing.status)
        old = self._places.pop(proxy_id, None)
        new = None if standing is None else _keys(proxy_id, standing)
        if new is not None:
            self._places[proxy_id] = new
        for number, order in enumerate(self._orders):
            was, becomes = old and old[number], new and new[number]
            if was != becomes:
                if was:
                    order.remove(was)
                if becomes:
                    order.add(becomes)

    def offered(self, selector: SelectorStrategy) -> Iterator[UUID]:
        """Yield the leasable proxies in a selector's order; of round-robin, from its beginning."""
        order = self._orders[_ORDER[selector]]
        for rank in self.ranks():
            yield from (key[-1] for key in order.irange((rank,), (rank + 1,)))

    def from_turn(self, rank: int, turn: UUID | None) -> Iterator[UUID]:
        """Yield the leasable proxies of a rank by id, those after the last turn first."""
        order = self._orders[_ORDER[SelectorStrategy.ROUND_ROBIN]]
        after = (rank,) if turn is None else (rank, turn.int + 1)
        yield from (key[-1] for key in order.irange(after, (rank + 1,)))
        yield from (key[-1] for key in order.irange((rank,), after))

    def ranks(self) -> tuple[int, ...]:
        """Return the ranks that may be leased: 0 of ACTIVE proxies, 1 of SLOW ones."""
        return (0, 1) if self.lease_slow else (0,)

    def use_key(self, proxy_id: UUID) -> tuple[int, int, int, int]:
        """Return a leasable proxy's place by use: rank, active leases, last check, number."""
        rank, leases, checked, number, _ = self._places[proxy_id][
            _ORDER[SelectorStrategy.LEAST_USED]
        ]
        return rank, leases, checked, number

    def is_leasable(self, proxy_id: UUID) -> bool:
        """Tell whether a proxy may be leased now."""
        place = self._places.get(proxy_id)
        return place is not None and place[0][0] <= int(self.lease_slow)

    def is_healthy(self, proxy_id: UUID) -> bool:
        """Tell whether a proxy could be leased if it had room."""
        return self.members[proxy_id] in self._leased_statuses()

    def has_healthy(self) -> bool:
        """Tell whether any proxy could be leased if it had room."""
        return any(self._statuses[status] for status in self._leased_statuses())

    def hold(self, lease_id: UUID, proxy_id: UUID, expires_at: datetime) -> None:
        """Note an active lease."""
        self._expiries.add((expires_at, lease_id.int, lease_id))
        self._held.setdefault(proxy_id, set()).add(lease_id)

    def let_go(self, lease_id: UUID, proxy_id: UUID, expires_at: datetime) -> None:
        """Note that a lease has ended."""
        self._expiries.remove((expires_at, lease_id.int, lease_id))
        leases = self._held[proxy_id]
        leases.remove(lease_id)
        if not leases:
            del self._held[proxy_id]

    def held(self, proxy_id: UUID) -> frozenset[UUID]:
        """Return the active leases of a proxy."""
        return frozenset(self._held.get(proxy_id, ()))

    def due(self, now: datetime) -> list[UUID]:
        """Return the leases that have run out."""
        if not self._expiries or self._expiries[0][0] > now:
            return []
        return [key[-1] for key in self._expiries.irange(None, (now, 1 << 128))]

    def _count(self, proxy_id: UUID, status: str | None) -> None:
        old = self.members.get(proxy_id)
        if old == status:
            return
        if old is not None:
            self._statuses[old] -= 1
        if status is None:
            del self.members[proxy_id]
        else:
            self.members[proxy_id] = status
            self._statuses[status] += 1

    def _leased_statuses(self) -> tuple[str, ...]:
        slow = (ProxyStatus.SLOW.value,) if self.lease_slow else ()
        return (ProxyStatus.ACTIVE.value, *slow)
