"""How pools stood in numbers, at one seq after another.

Two ways lead to a later seq: fold the events in between, or ask for the state
there. The first is cheap where questions lie close together, as in a storm of
misses; the second where they lie far apart.
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
    """The statistics of pools, asked for in the order of the log.

    Parameters
    ----------
    log:
        Where the events are.
    pool_id:
        The only pool that is asked for, if there is but one.
    page:
        How many events' worth of seqs are read ahead at once.
    leap:
        From how many seqs ahead on a state is asked for rather than folded.
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

        ``seq`` is no smaller than the one before, and was sealed before the first was asked for.
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
