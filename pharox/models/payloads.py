"""What callbacks are told."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from .filters import ProxyFilters
from .health import HealthCheckResult
from .lease import Lease, MissReason, SelectorStrategy
from .proxy import ProxyStatus
from .validation import UtcDatetime, utc_now


class PoolStatsSnapshot(BaseModel):
    """A pool in numbers at one moment.

    ``available_proxies`` are ACTIVE and below their capacity, ``leased_proxies``
    have at least one active lease, ``total_leases`` counts the active leases.
    """

    pool_name: str
    total_proxies: int = Field(ge=0, default=0)
    active_proxies: int = Field(ge=0, default=0)
    available_proxies: int = Field(ge=0, default=0)
    leased_proxies: int = Field(ge=0, default=0)
    total_leases: int = Field(ge=0, default=0)
    collected_at: UtcDatetime = Field(default_factory=utc_now)

    def figures(self) -> dict[str, int]:
        """Return the numbers by their names."""
        figures = vars(self).copy()
        del figures["pool_name"], figures["collected_at"]
        return figures


class AcquireEventPayload(BaseModel):
    """What an acquire callback is told of one attempt.

    ``lease`` is None for a miss, and ``miss_reason`` then says why. The
    duration covers expiry, search and commit, in milliseconds by this
    machine's clock.
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


class ReleaseEventPayload(BaseModel):
    """What a release callback is told of one release, as the ledger recorded it.

    ``started_at`` and ``completed_at`` are when it was asked for and done, by this
    machine's clock; a log does not know them.
    """

    lease: Lease
    pool_name: str | None = None
    released_at: UtcDatetime = Field(default_factory=utc_now)
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None
    reason: str | None = None
    started_at: UtcDatetime | None = None
    completed_at: UtcDatetime | None = None


class ExpireEventPayload(BaseModel):
    """What an expire callback is told of one lease that ran out."""

    lease: Lease
    pool_name: str | None = None
    expired_at: UtcDatetime
    lease_duration_ms: int | None = Field(default=None, ge=0)
    pool_stats: PoolStatsSnapshot | None = None


class HealthEventPayload(BaseModel):
    """What a health callback is told of one check, as the ledger recorded it.

    ``applied`` is False for a result that is not newer than the newest; ``leases``
    are held on the proxy at that moment. ``lease_ids`` names them if this check
    made the proxy unleasable: their holders may want to know. ``source`` is the proxy's.
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


class CallbackFailurePayload(BaseModel):
    """What a failure callback is told of a callback that raised.

    ``told`` is what that one was told of. Of the exception there is only its
    class, as its text may hold anything; the exception itself reaches the caller.
    """

    told: Literal["acquire", "release", "expire", "health"]
    callback: str
    error_type: str
    pool_name: str | None = None
    lease_id: UUID | None = None
