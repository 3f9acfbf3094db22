"""The elements of a picture, with only the data that is shown."""

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
"""The ending of a lease that is still held."""


@dataclass(slots=True)
class LeaseBar:
    """One lease within the window."""

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
    renewals: int = 0
    waited_ms: int | None = None
    fell_back: str | None = None


class Mark(NamedTuple):
    """A change of a proxy's state; None where it was not in the pool.

    ``by`` is who made it, and ``reason`` what they said, or what a health check found.
    """

    at: datetime
    was: ProxyState | None
    becomes: ProxyState | None
    why: str
    by: str | None = None
    reason: str | None = None


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
    """A pool's statistics from a moment on."""

    at: datetime
    total: int
    active: int
    available: int
    leases: int


@dataclass(slots=True)
class MissSlot:
    """The misses in one time slot."""

    begins: datetime
    reasons: Counter[MissReason] = field(default_factory=Counter)
    consumers: Counter[str] = field(default_factory=Counter)
    asked: Counter[str | None] = field(default_factory=Counter)


@dataclass(slots=True)
class Refusals:
    """How often a target refused the proxies of a pool, whom and since when.

    ``proxies`` has the address, the number and the first refusal of some of them; ``more`` counts
    refusals of others.
    """

    since: datetime
    total: int = 0
    proxies: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    more: int = 0

    def add(self, address: str, number: int, at: datetime, most: int) -> None:
        """Count refusals of a proxy; so many proxies are told apart at most."""
        self.total += number
        before, first = self.proxies.get(address, (0, at))
        if before or len(self.proxies) < most:
            self.proxies[address] = (before + number, first)
        else:
            self.more += number


@dataclass(slots=True)
class SourceNews:
    """What a source did to a pool: the refresh that took most proxies away, and its failures.

    ``went`` of ``had`` proxies went at ``took_at``. ``failed`` events of failures were recorded
    since ``failed_at``, the last one for ``reason``.
    """

    went: int = 0
    had: int = 0
    took_at: datetime | None = None
    failed: int = 0
    failed_at: datetime | None = None
    reason: str = ""


@dataclass(slots=True)
class PoolPicture:
    """One pool, or a requested name that no pool had.

    ``happened`` says whether anything happened in it. ``refusals`` are by target; those at targets
    that are not told apart are ``refused_elsewhere``.
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
    refusals: dict[str, Refusals] = field(default_factory=dict)
    refused_elsewhere: int = 0
    sources: dict[str, SourceNews] = field(default_factory=dict)

    @property
    def bars(self) -> Iterator[LeaseBar]:
        """All leases of the pool."""
        return (bar for lane in self.lanes.values() for bar in lane.bars)

    @property
    def marks(self) -> Iterator[Mark]:
        """All state changes of the pool's proxies."""
        return (mark for lane in self.lanes.values() for mark in lane.marks)

    @property
    def miss_reasons(self) -> Counter[MissReason]:
        """The number of misses by reason."""
        return sum((slot.reasons for slot in self.misses.values()), Counter())

    @property
    def miss_consumers(self) -> Counter[str]:
        """The number of misses by consumer."""
        return sum((slot.consumers for slot in self.misses.values()), Counter())
