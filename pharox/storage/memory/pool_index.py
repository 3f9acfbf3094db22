"""The in-memory indexes of a pool.

They correspond to the indexes on ``available_proxies`` and ``leases``: the leasable
proxies in the order of each selector in use, and the active leases ordered by
expiry. Each update takes logarithmic time in the pool's size.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
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


def _rank(row: Availability) -> int | None:
    """Return the ``lease_rank`` of :mod:`projections.available_proxies`."""
    capacity = row.max_concurrency
    if capacity is not None and row.current_leases >= capacity:
        return None
    return _RANKS.get(row.status)


def _newest_first(row: Availability, rank: int) -> _Key:
    checked = (row.checked_at - _EPOCH) // _MICROSECOND
    return rank, -checked, row.proxy_id.int, row.proxy_id


def _least_used_first(row: Availability, rank: int) -> _Key:
    return rank, row.current_leases, row.checked_at, row.proxy_id.int, row.proxy_id


def _by_id(row: Availability, rank: int) -> _Key:
    return rank, row.proxy_id.int, row.proxy_id


def _quickest_first(row: Availability, rank: int) -> _Key:
    latency = _UNKNOWN_LATENCY if row.latency_ms is None else row.latency_ms
    return rank, latency, row.proxy_id.int, row.proxy_id


def _longest_unused_first(row: Availability, rank: int) -> _Key:
    leased = -1 if row.leased_at is None else (row.leased_at - _EPOCH) // _MICROSECOND
    return rank, leased, row.proxy_id.int, row.proxy_id


def _next_turn_first(row: Availability, rank: int) -> _Key:
    turn = -1 if row.next_turn is None else row.next_turn
    return rank, turn, row.proxy_id.int, row.proxy_id


_RANKS = {ProxyStatus.ACTIVE.value: 0, ProxyStatus.SLOW.value: 1}
_ORDERS: dict[SelectorStrategy, Callable[[Availability, int], _Key]] = {
    SelectorStrategy.FIRST_AVAILABLE: _newest_first,
    SelectorStrategy.LEAST_USED: _least_used_first,
    SelectorStrategy.ROUND_ROBIN: _by_id,
    SelectorStrategy.LOWEST_LATENCY: _quickest_first,
    SelectorStrategy.LEAST_RECENTLY_USED: _longest_unused_first,
    SelectorStrategy.MOST_SUCCESSFUL: _by_id,  # while a target is in trouble
    SelectorStrategy.WEIGHTED: _next_turn_first,
}
"""The sort key of a proxy for each selector, after its rank.

Each key has the id as an integer, which is fast to compare, and as a UUID, which is
never compared.
"""


class _Order:
    """Leasable proxies in one order."""

    def __init__(self, place_of: Callable[[Availability, int], _Key]) -> None:
        self._place_of = place_of
        self.sorted: Any = SortedList()
        self.places: dict[UUID, _Key] = {}

    def put(self, proxy_id: UUID, row: Availability | None, rank: int) -> None:
        """Move a proxy to its current place, or remove it."""
        old = self.places.pop(proxy_id, None)
        if old is not None:
            self.sorted.remove(old)
        if row is not None:
            new = self.places[proxy_id] = self._place_of(row, rank)
            self.sorted.add(new)


class PoolIndex:
    """The orders and active leases of one pool.

    An order is built when its selector is first used, and updated from then on.
    """

    def __init__(self, pool_id: UUID) -> None:
        self.pool_id = pool_id
        self.lease_slow = False
        self.members: dict[UUID, str] = {}
        self._statuses: Counter[str] = Counter()
        self._leasable: dict[UUID, Availability] = {}
        self._rests: dict[UUID, datetime] = {}
        self._bans: dict[UUID, datetime] = {}
        self._ban_ends: Any = SortedList()
        self._orders: dict[SelectorStrategy, _Order] = {}
        self._expiries: Any = SortedList()
        self._held: dict[UUID, set[UUID]] = {}
        self._turns: dict[UUID, tuple[str, int]] = {}
        self._turns_of: defaultdict[str, Any] = defaultdict(SortedList)

    def place(self, proxy_id: UUID, row: Availability | None) -> None:
        """Move a proxy to its current place in all orders, or remove it if ``row`` is None."""
        self._count(proxy_id, None if row is None else row.status)
        self._rests.pop(proxy_id, None)
        if row is not None and row.rests_until is not None:
            self._rests[proxy_id] = row.rests_until
        self._end_ban_at(proxy_id, None if row is None else row.banned_until)
        self._turn_at(proxy_id, row)
        rank = None if row is None else _rank(row)
        if row is None or rank is None:
            self._leasable.pop(proxy_id, None)
            for order in self._orders.values():
                order.put(proxy_id, None, 0)
            return
        self._leasable[proxy_id] = row
        for order in self._orders.values():
            order.put(proxy_id, row, rank)

    def offered(self, selector: SelectorStrategy) -> Iterator[UUID]:
        """Yield the leasable proxies in a selector's order. Round-robin starts at the lowest id."""
        order = self._order(selector).sorted
        for rank in self.ranks():
            yield from (key[-1] for key in order.irange((rank,), (rank + 1,)))

    def from_turn(self, rank: int, turn: UUID | None) -> Iterator[UUID]:
        """Yield the leasable proxies of a rank by id, starting after the last turn."""
        order = self._order(SelectorStrategy.ROUND_ROBIN).sorted
        after = (rank,) if turn is None else (rank, turn.int + 1)
        yield from (key[-1] for key in order.irange(after, (rank + 1,)))
        yield from (key[-1] for key in order.irange((rank,), after))

    def ranks(self) -> tuple[int, ...]:
        """Return the ranks that may be leased: 0 for ACTIVE proxies, 1 for SLOW ones."""
        return (0, 1) if self.lease_slow else (0,)

    def use_of(self, proxy_id: UUID) -> tuple[int, int, datetime, int]:
        """Return a leasable proxy's LEAST_USED key: rank, active leases, last check, number."""
        order = self._order(SelectorStrategy.LEAST_USED)
        rank, leases, checked, number, _ = order.places[proxy_id]
        return rank, leases, checked, number

    def turn_of(self, proxy_id: UUID) -> tuple[int, int, int]:
        """Return a leasable proxy's WEIGHTED key: rank, next turn, number."""
        rank, turn, number, _ = self._order(SelectorStrategy.WEIGHTED).places[proxy_id]
        return rank, turn, number

    def turns_reached(self) -> dict[str, int]:
        """Return the latest turn of the proxies of each status that have had one."""
        return {status: turns[-1] for status, turns in self._turns_of.items() if turns}

    def rank_of(self, proxy_id: UUID) -> int | None:
        """Return the rank of a leasable proxy."""
        return _rank(self._leasable[proxy_id])

    def is_leasable(self, proxy_id: UUID) -> bool:
        """Return whether a proxy may be leased, unless it rests."""
        row = self._leasable.get(proxy_id)
        return row is not None and _rank(row) in self.ranks()

    @property
    def may_rest(self) -> bool:
        """Whether any proxy rests, or has rested and was not leased since."""
        return bool(self._rests)

    def rests_until(self, proxy_id: UUID, now: datetime) -> datetime | None:
        """Return until when a proxy rests, or None if it does not."""
        until = self._rests.get(proxy_id)
        return until if until is not None and until > now else None

    def next_rest_over(self, now: datetime) -> datetime | None:
        """Return when the next rest is over."""
        return min((each for each in self._rests.values() if each > now), default=None)

    def next_ban_over(self) -> datetime | None:
        """Return when the next ban is over, or None if no ban has an end."""
        return self._ban_ends[0][0] if self._ban_ends else None

    def bans_over(self, now: datetime) -> list[UUID]:
        """Return the proxies whose bans are over, ordered by id."""
        return sorted(key[-1] for key in self._ban_ends.irange(None, (now, 1 << 128)))

    def has_resting(self, now: datetime) -> bool:
        """Return whether any proxy that could be leased rests."""
        return any(self.rests_until(each, now) and self.is_leasable(each) for each in self._rests)

    def is_healthy(self, proxy_id: UUID) -> bool:
        """Return whether a proxy could be leased if it had free capacity."""
        return self.members[proxy_id] in self._leased_statuses()

    def has_healthy(self) -> bool:
        """Return whether any proxy could be leased if it had free capacity."""
        return any(self._statuses[status] for status in self._leased_statuses())

    def hold(self, lease_id: UUID, proxy_id: UUID, expires_at: datetime) -> None:
        """Add an active lease."""
        self._expiries.add((expires_at, lease_id.int, lease_id))
        self._held.setdefault(proxy_id, set()).add(lease_id)

    def extend(self, lease_id: UUID, before: datetime, expires_at: datetime) -> None:
        """Move an active lease to its new expiry."""
        self._expiries.remove((before, lease_id.int, lease_id))
        self._expiries.add((expires_at, lease_id.int, lease_id))

    def let_go(self, lease_id: UUID, proxy_id: UUID, expires_at: datetime) -> None:
        """Remove a lease that has ended."""
        self._expiries.remove((expires_at, lease_id.int, lease_id))
        leases = self._held[proxy_id]
        leases.remove(lease_id)
        if not leases:
            del self._held[proxy_id]

    def held(self, proxy_id: UUID) -> frozenset[UUID]:
        """Return the active leases of a proxy."""
        return frozenset(self._held.get(proxy_id, ()))

    def held_proxies(self) -> frozenset[UUID]:
        """Return the proxies that have an active lease."""
        return frozenset(self._held)

    def active(self) -> list[UUID]:
        """Return the active leases, in the order in which they run out."""
        return [key[-1] for key in self._expiries]

    def next_expiry(self) -> datetime | None:
        """Return when the next active lease runs out, or None if there is none."""
        return self._expiries[0][0] if self._expiries else None

    def has_due(self, now: datetime) -> bool:
        """Return whether any lease is due to expire."""
        return bool(self._expiries) and self._expiries[0][0] <= now

    def due(self, now: datetime) -> list[UUID]:
        """Return the leases that are due to expire."""
        return [key[-1] for key in self._expiries.irange(None, (now, 1 << 128))]

    def _order(self, selector: SelectorStrategy) -> _Order:
        order = self._orders.get(selector)
        if order is None:
            order = self._orders[selector] = _Order(_ORDERS[selector])
            for proxy_id, row in self._leasable.items():
                order.put(proxy_id, row, _RANKS[row.status])
        return order

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

    def _end_ban_at(self, proxy_id: UUID, until: datetime | None) -> None:
        old = self._bans.get(proxy_id)
        if old == until:
            return
        if old is not None:
            self._ban_ends.remove((old, proxy_id.int, proxy_id))
            del self._bans[proxy_id]
        if until is not None:
            self._bans[proxy_id] = until
            self._ban_ends.add((until, proxy_id.int, proxy_id))

    def _turn_at(self, proxy_id: UUID, row: Availability | None) -> None:
        new = None if row is None or row.turn is None else (row.status, row.turn)
        old = self._turns.get(proxy_id)
        if old == new:
            return
        if old is not None:
            self._turns_of[old[0]].remove(old[1])
            del self._turns[proxy_id]
        if new is not None:
            self._turns[proxy_id] = new
            self._turns_of[new[0]].add(new[1])

    def _leased_statuses(self) -> tuple[str, ...]:
        slow = (ProxyStatus.SLOW.value,) if self.lease_slow else ()
        return (ProxyStatus.ACTIVE.value, *slow)
