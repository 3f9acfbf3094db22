"""Pool statistics at increasing seqs.

There are two ways to reach a later seq: fold the events in between, or query the
state there. Folding is cheap where seqs lie close together, as in a burst of
misses; the query where they lie far apart.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any
from uuid import UUID

from pharox.log import Extract
from projections import POOL_STATS, PoolCounts

from ..events import Event
from .sealed_log import SealedLog

_TYPES = POOL_STATS.types()


class PastCounts:
    """The statistics of pools, queried in the order of the log.

    Parameters
    ----------
    log:
        Where the events are.
    pool_id:
        The only pool to query, if there is just one.
    page:
        How many seqs to read ahead at once.
    leap:
        From what distance in seqs to query the state instead of folding.
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
        self._counts: dict[Any, PoolCounts] | None = None
        self._read = 0
        self._ahead: deque[Event] = deque()

    def of(self, pool_id: UUID, seq: int) -> PoolCounts | None:
        """Return a pool's statistics after the event of this seq; None if there was no such pool.

        ``seq`` must not decrease, and must have been sealed before the first query.
        """
        if self._counts is None or seq - self._read > self._leap:
            self._counts = self._log.state_at(seq)["pool_stats"]
            self._read = seq
            self._ahead.clear()
        self._fold(self._counts, seq)
        while self._read < seq:
            after, self._read = self._read, self._read + self._page
            page = Extract(after, self._read, types=_TYPES, pool_id=self._pool_id)
            self._ahead.extend(self._log.history(page))
            self._fold(self._counts, seq)
        row = self._counts.get((pool_id,))
        return row and replace(row)

    def _fold(self, counts: dict[Any, PoolCounts], seq: int) -> None:
        while self._ahead and self._ahead[0].seq <= seq:
            POOL_STATS.apply(counts, self._ahead.popleft())
