"""What happened lately in each pool, in slots of some seconds.

:class:`Activity` reads each event once: it goes on where it stopped, and fills what came before in
pieces, the latest first: at least one at each call, and more for as long as a reader may take. So
the first page after a start may show less than a quarter of an hour, and none waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Protocol
from uuid import UUID

SLOT_S = 15
"""The length of a slot in seconds."""

KEPT_S = 900
"""How far back slots are kept, in seconds."""

_PIECE = 10_000
_BUDGET_S = 0.1


class Counted(NamedTuple):
    """Events of one pool and slot that are alike.

    ``slot`` is the number of the slot since 1970. ``detail`` is the reason of misses, and the
    outcome of reports. ``waited`` says whether they waited in the pool's queue. ``number`` counts
    events, and the requests of reports. ``available`` and ``leases`` are what they changed the
    pool's counts by.
    """

    pool_id: UUID
    slot: int
    type: str
    detail: str | None
    waited: bool
    number: int
    available: int
    leases: int


@dataclass(slots=True)
class Slot:
    """What happened in a pool in one slot."""

    available: int = 0
    leases: int = 0
    granted: int = 0
    waited: int = 0
    waited_in_vain: int = 0
    troubled: int = 0
    misses: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, counted: Counted) -> None:
        """Add events."""
        self.available += counted.available
        self.leases += counted.leases
        self.waited += counted.number if counted.waited else 0
        match counted.type:
            case "LeaseAcquired":
                self.granted += counted.number
            case "AcquireMissed":
                self.misses[counted.detail or ""] += counted.number
                self.waited_in_vain += counted.number if counted.waited else 0
            case "OutcomeReported":
                self.outcomes[counted.detail or ""] += counted.number
            case "TargetTroubled":
                self.troubled += counted.number


class Log(Protocol):
    """The part of a ledger that activity is read from."""

    def last_seq(self) -> int:
        """Return the last seq."""

    def seq_near(self, moment: datetime, last_seq: int) -> int:
        """Return a seq up to which events were recorded at or before a moment."""

    def number(self, after: int, upto: int, pool_id: UUID | None) -> int:
        """Return how many events a stretch has, of one pool or of all."""

    def count(
        self, after: int, upto: int, *, slot_s: float = SLOT_S, pool_id: UUID | None = None
    ) -> Iterable[Counted]:
        """Count the events of a stretch, of one pool or of all, by pool, slot and kind."""


class Activity:
    """The last quarter of an hour of each pool. It may be used by several threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._slots: dict[UUID, dict[int, Slot]] = defaultdict(dict)
        self._begin: int | None = None
        self._end = 0
        self._is_filled = False
        self._read_at: datetime | None = None
        self.is_whole = False
        """Whether the quarter of an hour was read up to its end. Until then counts are too low."""

    def advance(self, now: datetime) -> None:
        """Read what is new, and some more of what came before. Others do not wait meanwhile."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._read(now)
        finally:
            self._lock.release()

    def of(self, pool_id: UUID) -> Mapping[int, Slot]:
        """Return what happened in a pool by slot. Slots in which nothing did are left out."""
        return self._slots.get(pool_id, {})

    def _read(self, now: datetime) -> None:
        last = self._log.last_seq()
        is_stale = self._read_at is None or now - self._read_at > timedelta(seconds=KEPT_S)
        if self._begin is None or is_stale:
            # What happened while nobody looked may be any number of events: it fills from here.
            self._slots.clear()
            self._begin = self._end = last
            self._is_filled = self.is_whole = False
        self._follow(last)
        self._read_at = now
        if not self._is_filled:
            first = self._log.seq_near(now - timedelta(seconds=KEPT_S), last)
            self._begin = self._fill(self._begin, first)
            self._is_filled = self._begin <= first
        self.is_whole = self._is_filled and self._end >= last
        self._forget(slot_of(now) - KEPT_S // SLOT_S)

    def _follow(self, last: int) -> None:
        """Read what is new."""
        until = time.monotonic() + _BUDGET_S
        while self._end < last:
            piece = min(last, self._end + _PIECE)
            self._take(self._end, piece)
            self._end = piece
            if time.monotonic() >= until:
                break

    def _fill(self, begin: int, first: int) -> int:
        """Read what came before a seq, back to another. Return from where on it is read."""
        # Finding the first seq may take longer than the budget, which is of reading alone.
        until = time.monotonic() + _BUDGET_S
        while begin > first:
            piece = max(first, begin - _PIECE)
            self._take(piece, begin)
            begin = piece
            if time.monotonic() >= until:
                break
        return begin

    def _take(self, after: int, upto: int) -> None:
        for counted in self._log.count(after, upto) if upto > after else ():
            slots = self._slots[counted.pool_id]
            slots.setdefault(counted.slot, Slot()).add(counted)

    def _forget(self, before: int) -> None:
        for pool_id, slots in list(self._slots.items()):
            kept = {number: slot for number, slot in list(slots.items()) if number >= before}
            self._slots[pool_id] = kept


def slot_of(moment: datetime, slot_s: float = SLOT_S) -> int:
    """Return the number of a moment's slot."""
    return int(moment.timestamp() // slot_s)


def began(slot: int) -> datetime:
    """Return when a slot began."""
    return datetime.fromtimestamp(slot * SLOT_S, UTC)
