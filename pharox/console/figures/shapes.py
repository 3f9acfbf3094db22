"""The shapes of the console's figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from projections.rotations import RotationRow

from ...history.past.shapes import Past
from ...models import PoolMove, Proxy, SourceStatus
from ..shares import Share
from .activity import Log


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """A pool now: its proxies by share, its active leases, and who waits.

    ``active`` proxies pass their checks, ``available`` ones among them have room.
    ``longest_wait_s`` is for how long the oldest request has waited, ``oldest_lease_s`` for how
    long the oldest active lease has been held, both in seconds. ``overdue`` leases have run out
    and were not taken back yet.
    """

    id: UUID
    name: str
    shares: dict[Share, int]
    leases: int
    active: int = 0
    available: int = 0
    waiting: int = 0
    longest_wait_s: float = 0.0
    oldest_lease_s: float = 0.0
    overdue: int = 0

    @property
    def total(self) -> int:
        """How many proxies the pool has."""
        return sum(self.shares.values())


@dataclass(frozen=True, slots=True)
class SubscriptionFigures:
    """How far behind a subscription is, and how many events it could not take."""

    name: str
    lag_s: float
    parked: int


class Figures(Protocol):
    """What the pages ask for."""

    @property
    def log(self) -> Log:
        """The log, of which events are counted."""

    @property
    def past(self) -> Past:
        """The past of pools."""

    def now(self) -> datetime:
        """Return the time by the ledger's clock."""

    def proxies(self, pool_id: UUID, after: UUID, limit: int) -> Sequence[Proxy]:
        """Return the next proxies of a pool by id, without credentials."""

    def rotation(self, proxy: Proxy) -> RotationRow | None:
        """Return the record of a proxy's rotations; None if it has none."""

    def subscriptions(self) -> Sequence[SubscriptionFigures]:
        """Return the subscriptions, by name."""

    def sources(self) -> Sequence[SourceStatus]:
        """Return the sources, by name."""

    def moves(self) -> Sequence[PoolMove]:
        """Return the moves of pools that have not ended, the last one first."""

    def pools(self) -> Sequence[PoolFigures]:
        """Return all pools as they are now, by name."""
