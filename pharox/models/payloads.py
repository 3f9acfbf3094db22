"""The payloads that callbacks receive."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field

from .fallback import PoolMissed
from .filters import ProxyFilters
from .health import HealthCheckResult
from .lease import Lease, MissReason
from .model import Model
from .outcome import Outcome
from .proxy import ProxyStatus
from .selection import SelectorStrategy
from .validation import UtcDatetime, utc_now


class PoolStatsSnapshot(Model):
    """The counts of a pool at one moment.

    ``available_proxies`` are ACTIVE and below their capacity, also those that rest.
    ``leased_proxies`` have at least one active lease. ``total_leases`` counts the active leases.
    """

    pool_name: str
    total_proxies: int = Field(ge=0, default=0)
    active_proxies: int = Field(ge=0, default=0)
    available_proxies: int = Field(ge=0, default=0)
    leased_proxies: int = Field(ge=0, default=0)
    total_leases: int = Field(ge=0, default=0)
    collected_at: UtcDatetime = Field(default_factory=utc_now)

    def figures(self) -> dict[str, int]:
        """Return the counts by name."""
        figures = vars(self).copy()
        del figures["pool_name"], figures["collected_at"]
        return figures


class QueueStats(Model):
    """Who waits for a proxy of a pool at one moment.

    ``waiting`` counts the requests, ``consumers`` those of each consumer by name. A request for a
    set is one. ``longest_wait_seconds`` is how long the oldest of them has waited.
    """

    pool_name: str
    waiting: int = Field(ge=0, default=0)
    longest_wait_seconds: float = Field(ge=0, default=0)
    consumers: dict[str, int] = Field(default_factory=dict)


class AcquireEventPayload(Model):
    """The payload of an acquire callback, for one attempt.

    On a miss ``lease`` is None and ``miss_reason`` says why. The
    duration covers expiry, search and commit, in milliseconds by this
    machine's clock. ``fallback_from`` are the pools that had nothing before this one granted.
    ``waited_ms`` is how long it waited in the pool's queue, in
    milliseconds; None if it did not.
    """

    lease: Lease | None
    pool_name: str
    consumer_name: str
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    started_at: UtcDatetime
    completed_at: UtcDatetime
    duration_ms: int = Field(ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    miss_reason: MissReason | None = None
    waited_ms: int | None = Field(default=None, ge=0)
    fallback_from: tuple[PoolMissed, ...] = ()


class ReleaseEventPayload(Model):
    """The payload of a release callback, for one release as the ledger recorded it.

    ``started_at`` and ``completed_at`` are when the release was requested and completed,
    by this machine's clock. They are not in the log.
    """

    lease: Lease
    pool_name: str | None = None
    released_at: UtcDatetime = Field(default_factory=utc_now)
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    reason: str | None = None
    started_at: UtcDatetime | None = None
    completed_at: UtcDatetime | None = None


class ExpireEventPayload(Model):
    """The payload of an expire callback, for one expired lease."""

    lease: Lease
    pool_name: str | None = None
    expired_at: UtcDatetime
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None


class RevokeEventPayload(Model):
    """The payload of a revoke callback, for one revoked lease. ``reason`` says why."""

    lease: Lease
    pool_name: str | None = None
    revoked_at: UtcDatetime
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    reason: str


class HealthEventPayload(Model):
    """The payload of a health callback, for one check as the ledger recorded it.

    ``applied`` is False if the proxy already has a result at least as new. ``leases`` is the
    number of leases held on the proxy. If this check made the proxy unleasable, ``lease_ids``
    has their ids, so that the holders can be informed. ``source`` is the proxy's source.
    """

    result: HealthCheckResult
    pool_name: str | None = None
    status_before: ProxyStatus
    status_after: ProxyStatus
    applied: bool = True
    leases: int = Field(ge=0, default=0)
    lease_ids: tuple[UUID, ...] = ()
    source: str | None = None
    pool_stats: PoolStatsSnapshot | None = None


class LostEventPayload(Model):
    """The payload of a lost callback, for one lease that was kept alive and could not be kept.

    ``reason`` says why: it was taken back, or could not be renewed in time. ``lost_at`` is by
    this machine's clock.
    """

    lease: Lease
    pool_name: str | None = None
    lost_at: UtcDatetime = Field(default_factory=utc_now)
    reason: str


class OutcomeEventPayload(Model):
    """The payload of an outcome callback, for one outcome as it was recorded.

    ``outcome`` has the ``count`` and the ``bytes`` of all requests that were counted together.
    ``cools_until`` is until when proxy and target rest, None if they do not.
    """

    lease: Lease
    pool_name: str | None = None
    outcome: Outcome
    target: str | None = None
    cools_until: UtcDatetime | None = None


class CallbackFailurePayload(Model):
    """The payload of a failure callback, for a callback that raised.

    ``told`` is the kind of the callback that raised. Of the exception only the class is
    included, as its text may contain secrets. The exception itself is raised to the caller.
    """

    told: Literal["acquire", "release", "expire", "revoke", "health", "lost", "outcome"]
    callback: str
    error_type: str
    pool_name: str | None = None
    lease_id: UUID | None = None
