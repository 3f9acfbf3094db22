"""Pool statistics, and who held what, at increasing seqs.

There are two ways to reach a later seq: fold the events in between, or ask for the
pool's past there (:mod:`.past`). Folding is cheap where seqs lie close together, as in a
burst of misses; the past where they lie far apart. Only pools that were asked about are kept.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from typing import Any, NamedTuple
from uuid import UUID

from pharox.log import Extract
from projections import POOL_STATS, PoolCounts

from ..events import Event, LeaseAcquired, LeaseEnd
from .past import past_of
from .past.keyframes import Keyframes
from .past.shapes import PoolThen
from .pool_names import pools_then
from .sealed_log import Beginning, SealedLog, beginning, last_seq

_TYPES = POOL_STATS.types()
"""All that begins or ends a lease is among them."""


class Holding(NamedTuple):
    """How many leases of a pool a consumer held at once."""

    consumer: str
    leases: int


class PastCounts:
    """The statistics and the holders of pools, queried in the order of the log.

    Parameters
    ----------
    log:
        Where the events are.
    pool_id:
        The only pool to query, if there is just one.
    page:
        How many seqs to read ahead at once.
    leap:
        From what distance in seqs to ask for the past instead of folding.
    """

    def __init__(
        self,
        log: SealedLog,
        pool_id: UUID | None = None,
        *,
        page: int = 10_000,
        leap: int = 100_000,
    ) -> None:
        self._log, self._pool_id = log, pool_id
        self._page, self._leap = page, leap
        self._keyframes, self._end = Keyframes(past_of(log)), 0
        self._begins: Beginning | None = None
        self._counts: dict[Any, PoolCounts] = {}
        self._asked: set[UUID] = set()
        self._read: int | None = None
        self._ahead: deque[Event] = deque()
        self._holders = _Holders()

    def of(self, pool_id: UUID, seq: int) -> PoolCounts | None:
        """Return a pool's statistics after the event of this seq; None if there was no such pool.

        ``seq`` must not decrease, and must have been sealed before the first query.
        """
        if self._read is None or seq - self._read > self._leap:
            self._counts, self._holders, self._asked = {}, _Holders(), set()
            self._read = seq
            self._ahead.clear()
        read = self._fold_to(seq, self._read)
        if pool_id not in self._asked:
            self._begin(pool_id, seq)
            self._asked.add(pool_id)
        self._read = read
        row = self._counts.get((pool_id,))
        return row and replace(row)

    def _begin(self, pool_id: UUID, seq: int) -> None:
        """Begin with a pool as it was after the event ``seq``."""
        if seq > self._end:
            self._end = last_seq(self._log)
        if self._begins is None:
            self._begins = beginning(self._log)
        if pool_id in pools_then(self._log, self._begins, seq, pool_id):
            then = self._keyframes.at(pool_id, seq, self._end)
            self._counts[(pool_id,)] = then.counts(pool_id)
            self._holders.add_pool(pool_id, then)

    def _fold_to(self, seq: int, read: int) -> int:
        """Fold up to a seq, and return up to which one was read ahead."""
        self._fold(seq)
        while read < seq:
            after, read = read, read + self._page
            page = Extract(after, read, types=_TYPES, pool_id=self._pool_id)
            self._ahead.extend(self._log.history(page))
            self._fold(seq)
        return read

    def holders_of(self, pool_id: UUID) -> tuple[Holding, ...]:
        """Return who held leases of a pool at the seq of the last query, those of most first."""
        return self._holders.of(pool_id)

    def _fold(self, seq: int) -> None:
        while self._ahead and self._ahead[0].seq <= seq:
            event = self._ahead.popleft()
            if event.pool_id in self._asked:
                POOL_STATS.apply(self._counts, event)
                self._holders.take(event)


class _Holders:
    """Who holds leases of each pool, event by event."""

    def __init__(self) -> None:
        self._leases: dict[UUID, tuple[UUID, str]] = {}
        self._counts: dict[UUID, Counter[str]] = {}
        # Misses of a shortage follow each other while nothing changes hands.
        self._answers: dict[UUID, tuple[Holding, ...]] = {}

    def add_pool(self, pool_id: UUID, then: PoolThen) -> None:
        """Begin with the leases that were held of a pool."""
        for lease_id, lease in then.leases.items():
            self._leases[lease_id] = pool_id, lease.consumer
            self._add(pool_id, lease.consumer, 1)

    def take(self, event: Event) -> None:
        """Fold the next event."""
        if isinstance(event, LeaseAcquired):
            self._leases[event.lease_id] = event.pool_id, event.consumer
            self._add(event.pool_id, event.consumer, 1)
        elif isinstance(event, LeaseEnd) and event.lease_id in self._leases:
            self._add(*self._leases.pop(event.lease_id), -1)

    def of(self, pool_id: UUID) -> tuple[Holding, ...]:
        """Return a pool's holders, those of most leases first."""
        if pool_id not in self._answers:
            counts = self._counts.get(pool_id, Counter())
            most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
            self._answers[pool_id] = tuple(Holding(*each) for each in most)
        return self._answers[pool_id]

    def _add(self, pool_id: UUID, consumer: str, number: int) -> None:
        counts = self._counts.setdefault(pool_id, Counter())
        counts[consumer] += number
        if not counts[consumer]:
            del counts[consumer]
        self._answers.pop(pool_id, None)
