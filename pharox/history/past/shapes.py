"""The shapes of a pool's past: its state, and the difference that a stretch of the log makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from projections import HealthRow, PoolCounts, TargetOutcomesRow


class ProxyThen(NamedTuple):
    """A proxy's state: what leasing looks at. ``most`` is its capacity, None if unlimited."""

    status: str
    leases: int
    most: int | None

    @property
    def is_available(self) -> bool:
        """Whether it was healthy and had room for a lease."""
        return self.status == "active" and (self.most is None or self.leases < self.most)


class LeaseThen(NamedTuple):
    """A lease that was active."""

    proxy_id: UUID
    consumer: str
    acquired_at: datetime


@dataclass(slots=True)
class PoolThen:
    """A pool after the event ``seq``: its proxies and active leases, by id."""

    seq: int
    proxies: dict[UUID, ProxyThen] = field(default_factory=dict)
    leases: dict[UUID, LeaseThen] = field(default_factory=dict)

    @property
    def available(self) -> int:
        """How many proxies were healthy and had room for a lease."""
        return sum(proxy.is_available for proxy in self.proxies.values())

    def counts(self, pool_id: UUID) -> PoolCounts:
        """Return the statistics of the pool, whose id it does not know, at that moment."""
        proxies = self.proxies.values()
        return PoolCounts(
            pool_id,
            len(proxies),
            sum(proxy.status == "active" for proxy in proxies),
            self.available,
            sum(proxy.leases > 0 for proxy in proxies),
            sum(proxy.leases for proxy in proxies),
        )

    def after(self, step: Step, seq: int) -> PoolThen:
        """Return the state that a stretch of the log makes of this one."""
        proxies = {**self.proxies, **step.proxies}
        leases = {**self.leases, **step.leases}
        return PoolThen(
            seq,
            {key: value for key, value in proxies.items() if value is not None},
            {key: value for key, value in leases.items() if value is not None},
        )


@dataclass(slots=True)
class Step:
    """The difference that a stretch of the log makes. None is for what is not there after it."""

    proxies: dict[UUID, ProxyThen | None] = field(default_factory=dict)
    leases: dict[UUID, LeaseThen | None] = field(default_factory=dict)


class LeaseDetails(NamedTuple):
    """What was recorded of a lease up to a moment: it is looked up for those that are shown.

    ``token`` is its fencing token.
    """

    expires_at: datetime
    renewals: int
    target: str | None
    token: int


class SessionThen(NamedTuple):
    """A binding of a key to a proxy. It is over before its end if somebody forgot it."""

    key: str
    proxy_id: UUID
    target: str | None
    expires_at: datetime


class Records(NamedTuple):
    """What was recorded last, up to a moment, of a pool and of some of its proxies.

    ``rests`` are the ends of all rests in the pool that were not over. ``checks`` are the last
    check of each proxy, ``pairs`` what it had come to at targets. ``sessions`` are the first living
    bindings by key. Of rests, pairs and sessions, what was recorded before the event
    ``looked_from`` may be missing, and of checks what is archived; None if nothing is.
    """

    rests: Mapping[UUID, datetime]
    checks: Mapping[UUID, HealthRow]
    pairs: Mapping[UUID, Sequence[TargetOutcomesRow]]
    sessions: Sequence[SessionThen]
    looked_from: int | None = None


class Past(Protocol):
    """Reads a pool's past in a ledger."""

    def now(self, pool_id: UUID, seq: int) -> PoolThen:
        """Return the state at ``seq``, by going back from the present."""

    def stored(self, pool_id: UUID, seq: int) -> PoolThen | None:
        """Return the last stored state at or before ``seq``, or None."""

    def last_stored(self, seq: int) -> int | None:
        """Return the seq of that stored state, or None."""

    def step(self, pool_id: UUID, begin: int, end: int) -> Step:
        """Return the difference from one seq to another, which may be before it."""

    def details(
        self, pool_id: UUID, lease_ids: list[UUID], seq: int
    ) -> Mapping[UUID, LeaseDetails]:
        """Return what was recorded of leases up to ``seq``."""

    def addresses(self, pool_id: UUID, proxy_ids: list[UUID], seq: int) -> Mapping[UUID, str]:
        """Return the URLs of proxies, without credentials, as they were at ``seq``."""

    def records(
        self, pool_id: UUID, proxy_ids: Sequence[UUID], seq: int, at: datetime, *, sessions: int
    ) -> Records:
        """Return what was recorded last up to ``seq``, with so many sessions.

        All events up to ``seq`` were recorded at ``at`` or before; what rests and lives is as of
        ``at``.
        """
