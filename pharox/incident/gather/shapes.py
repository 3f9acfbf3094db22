"""What a picture consists of, with as little of each event as is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from ...events import ProxyState
from ...models import LeaseStatus, MissReason

HELD = LeaseStatus.ACTIVE
"""How a lease ended that did not."""


@dataclass(slots=True)
class LeaseBar:
    """One lease, as far as the window shows it."""

    lease_id: UUID
    consumer: str
    began: datetime
    expires_at: datetime
    token: int
    asked: str | None = None
    job: str | None = None
    ended: datetime | None = None
    ending: LeaseStatus = HELD
    reason: str | None = None


class Mark(NamedTuple):
    """A change of how a proxy stands; None where it was not in the pool."""

    at: datetime
    was: ProxyState | None
    becomes: ProxyState | None
    why: str


@dataclass(slots=True)
class Lane:
    """One proxy in one pool."""

    proxy_id: UUID
    address: str
    status: str | None
    bars: list[LeaseBar] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.bars) + len(self.marks)


class Point(NamedTuple):
    """A pool in numbers from a moment on."""

    at: datetime
    total: int
    active: int
    available: int
    leases: int


@dataclass(slots=True)
class MissSlot:
    """The misses in one slot of time."""

    begins: datetime
    reasons: Counter[MissReason] = field(default_factory=Counter)
    consumers: Counter[str] = field(default_factory=Counter)
    asked: Counter[str | None] = field(default_factory=Counter)


@dataclass(slots=True)
class PoolPicture:
    """One pool, or a name that somebody asked for and no pool had.

    ``happened`` tells whether anything did.
    """

    name: str
    exists: bool = True
    happened: bool = False
    known_proxies: int = 0
    points: list[Point] = field(default_factory=list)
    lanes: dict[UUID, Lane] = field(default_factory=dict)
    misses: dict[int, MissSlot] = field(default_factory=dict)
    first_miss: datetime | None = None
    last_miss: datetime | None = None

    @property
    def bars(self) -> Iterator[LeaseBar]:
        """All its leases."""
        return (bar for lane in self.lanes.values() for bar in lane.bars)

    @property
    def marks(self) -> Iterator[Mark]:
        """All changes of its proxies."""
        return (mark for lane in self.lanes.values() for mark in lane.marks)

    @property
    def miss_reasons(self) -> Counter[MissReason]:
        """How many misses there were for each reason."""
        return sum((slot.reasons for slot in self.misses.values()), Counter())

    @property
    def miss_consumers(self) -> Counter[str]:
        """How many misses each consumer had."""
        return sum((slot.consumers for slot in self.misses.values()), Counter())
