"""Keep the moments that were asked for, and reach another one from whatever is nearest to it."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from uuid import UUID

from pharox.log.extract import BIGGEST

from .shapes import Past, PoolThen

KEPT_ROWS = 400_000
"""How many proxies and leases are kept in all, of some hundred bytes each; a state is one more."""

PIECE = 400_000
"""How many events one statement reads at most: a long way is gone in steps."""

FROM_NOW, FROM_STORED = 20_000, 100_000
"""As long as reading so many events takes reading the present, or a stored state."""


class Keyframes:
    """The states of pools at moments that were asked for, the last used ones.

    It may be used by several threads. States are never changed once they are kept.
    """

    def __init__(self, past: Past) -> None:
        self.past = past
        self._kept: OrderedDict[tuple[UUID, int], PoolThen] = OrderedDict()
        self._places: dict[UUID, list[int]] = {}  # The seqs that are kept of each pool, sorted.
        self._rows = 0
        self._lock = threading.Lock()

    def at(self, pool_id: UUID, seq: int, last_seq: int) -> PoolThen:
        """Return the state of a pool after the event ``seq``.

        Parameters
        ----------
        last_seq:
            The last event that has a seq: how far away the present is.
        """
        near = self._nearest(pool_id, seq)
        distance = BIGGEST if near is None else abs(near.seq - seq)
        if near is not None and distance == 0:
            return near
        if last_seq - seq + FROM_NOW < distance:
            near, distance = None, last_seq - seq + FROM_NOW
        stored = self.past.last_stored(seq) if distance > FROM_STORED else None
        if stored is not None and seq - stored + FROM_STORED < distance:
            near = self.past.stored(pool_id, seq)
        if near is None:
            near = self.past.now(pool_id, max(seq, last_seq - PIECE))
            self._keep(pool_id, near)
        return self._walk(pool_id, near, seq)

    def _walk(self, pool_id: UUID, state: PoolThen, seq: int) -> PoolThen:
        """Go from a moment to another, and keep those on the way: whoever is cut off is nearer."""
        while state.seq != seq:
            begin = state.seq
            end = min(seq, begin + PIECE) if begin < seq else max(seq, begin - PIECE)
            state = state.after(self.past.step(pool_id, begin, end), end)
            self._keep(pool_id, state)
        return state

    def _nearest(self, pool_id: UUID, seq: int) -> PoolThen | None:
        with self._lock:
            places = self._places.get(pool_id)
            if not places:
                return None
            index = bisect_left(places, seq)
            around = places[max(0, index - 1) : index + 1]
            key = (pool_id, min(around, key=lambda place: abs(place - seq)))
            self._kept.move_to_end(key)
            return self._kept[key]

    def _keep(self, pool_id: UUID, state: PoolThen) -> None:
        with self._lock:
            key = (pool_id, state.seq)
            if key not in self._kept:
                self._kept[key] = state
                self._rows += _size(state)
                insort(self._places.setdefault(pool_id, []), state.seq)
            while self._rows > KEPT_ROWS and len(self._kept) > 1:
                self._forget_one()

    def _forget_one(self) -> None:
        """Forget the state that was not used for the longest time."""
        (pool_id, seq), state = self._kept.popitem(last=False)
        self._rows -= _size(state)
        places = self._places[pool_id]
        del places[bisect_left(places, seq)]
        if not places:
            del self._places[pool_id]


def _size(state: PoolThen) -> int:
    """Return how many rows a state counts as: an empty one takes room too."""
    return 1 + len(state.proxies) + len(state.leases)
