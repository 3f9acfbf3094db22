"""What a storage and its callers pass each other: requests and what came of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast
from uuid import UUID

from ..errors import InvalidInputError
from ..events import EventBase, HealthChecked
from ..ids import health_record_id
from ..models import (
    HealthCheckResult,
    Lease,
    MissReason,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyStatus,
    SelectorStrategy,
    check_filters,
)

logger = logging.getLogger("pharox")


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """What a consumer asks for.

    ``duration_seconds`` is the lease's length. Under a ``lease_id`` of the
    caller's one lease at most is ever granted.
    """

    pool_name: str
    consumer_name: str
    duration_seconds: float = 300
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    with_stats: bool = False
    lease_id: UUID | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lease_id, UUID | None):
            raise InvalidInputError("a lease_id must be a UUID", value=self.lease_id)
        object.__setattr__(self, "selector", SelectorStrategy(self.selector))
        check_filters(self.filters)


@dataclass(frozen=True, slots=True)
class EndedLease:
    """A lease that this call ended, as recorded, and the pool's statistics if asked for."""

    lease: Lease
    stats: PoolStatsSnapshot | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What giving a lease back came to.

    ``ending`` is None if the lease had ended before. ``expired`` are leases
    found to have run out on the way, such as the one that came back too late.
    """

    ending: EndedLease | None
    expired: Sequence[EndedLease] = field(default=())


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What an acquisition came to.

    ``lease`` is None for a miss. ``expired`` are the leases that ran out and
    were taken back on the way. ``is_new`` is False for a lease that an earlier
    call was granted under the same id: whoever asks again has no right to end it.
    """

    lease: Lease | None
    miss_reason: MissReason | None = None
    stats: PoolStatsSnapshot | None = None
    expired: Sequence[EndedLease] = field(default=())
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class HealthOutcome:
    """What recording a health check came to.

    ``known`` is False if there is no such proxy; then nothing was recorded.
    ``result`` is dated by the storage's clock if it came from the future.
    ``lease_ids`` are the leases held on a proxy that it made unleasable, ``source`` is
    who provided it.
    """

    result: HealthCheckResult
    known: bool = True
    applied: bool = False
    status_before: ProxyStatus | None = None
    status_after: ProxyStatus | None = None
    pool_name: str | None = None
    leases: int = 0
    lease_ids: tuple[UUID, ...] = ()
    source: str | None = None


def copy_ending(recorded: Lease | None, lease: Lease) -> None:
    """Give a caller's lease the status and ``released_at`` that are recorded, if any are."""
    if recorded is not None:
        lease.status = recorded.status
        lease.released_at = recorded.released_at


def log_late_release(lease: Lease, recorded: Lease | None) -> None:
    """Warn that a release came too late to do anything."""
    why = "is unknown" if recorded is None else f"has ended already ({recorded.status.value})"
    logger.warning(
        "pharox.release.ignored: lease %s %s",
        lease.id,
        why,
        extra={"lease_id": str(lease.id), "status": recorded and recorded.status.value},
    )


@contextmanager
def given_up(lease: Lease) -> Iterator[None]:
    """Log that the lease of a cancelled task could not be given back; it runs out by itself."""
    try:
        yield
    except Exception:
        logger.exception("pharox.release.failed: lease %s of a cancelled task", lease.id)


def result_of_record(record: ProxyHealthRecord) -> HealthCheckResult:
    """Return an observation as the result it was made from."""
    return HealthCheckResult(
        proxy_id=record.proxy_id,
        status=record.status_after,
        latency_ms=record.latency_ms or 0,
        protocol=record.protocol,
        checked_at=record.checked_at,
        error_message=record.error,
        failure=record.failure,
        status_code=record.status_code,
        attempts=record.attempts,
    )


def record_of_check(event: EventBase) -> ProxyHealthRecord:
    """Return a ``HealthChecked`` as the observation that it records."""
    check = cast("HealthChecked", event)
    return ProxyHealthRecord(
        id=health_record_id(check.proxy_id, check.position),
        proxy_id=check.proxy_id,
        checked_at=check.checked_at,
        reachable=check.reachable,
        latency_ms=check.latency_ms,
        protocol=check.protocol,
        status_before=check.before.status,
        status_after=check.after.status,
        error=check.error,
        failure=check.failure,
        status_code=check.status_code,
        attempts=check.attempts,
    )


def redated(result: HealthCheckResult, checked_at: datetime) -> HealthCheckResult:
    """Return a result with the moment that was recorded: another one if its clock was ahead."""
    if result.checked_at == checked_at:
        return result
    return result.model_copy(update={"checked_at": checked_at})
