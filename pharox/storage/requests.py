"""What a storage and its callers pass each other: requests and what came of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import cast
from uuid import UUID

from ..errors import InvalidInputError, PharoxError
from ..events import EventBase, HealthChecked
from ..models import (
    HealthCheckResult,
    Lease,
    MissReason,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyStatus,
    SelectorStrategy,
    check_duration,
    check_filters,
    check_name,
    check_text,
    check_whole,
)
from ..models.ids import health_record_id

logger = logging.getLogger("pharox")

MAX_SET = 1000
"""How many leases one set has at most."""


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """What a consumer asks for, checked.

    ``duration_seconds`` is the lease's length. Under a ``lease_id`` of the
    caller's one lease at most is ever granted.

    Raises
    ------
    InvalidLeaseError
        If the duration makes no sense.
    InvalidInputError
        If anything else is not what a storage can answer.
    """

    pool_name: str
    consumer_name: str
    duration_seconds: float = 300
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    with_stats: bool = False
    lease_id: UUID | None = None

    def __post_init__(self) -> None:
        if self.lease_id is not None and not isinstance(self.lease_id, UUID):
            raise InvalidInputError("a lease_id must be a UUID", value=self.lease_id)
        _check_asked(self)


@dataclass(frozen=True, slots=True)
class AcquireSetRequest:
    """What a consumer asks for who needs several leases at once, checked.

    The set is granted if ``at_least`` so many can be leased, all ``count`` if None; else
    nothing is. ``distinct`` means that no proxy is leased twice. The ``lease_ids`` of the
    caller are one for each lease; the set that was granted under them is never granted again.

    Raises
    ------
    InvalidLeaseError
        If the duration makes no sense.
    InvalidInputError
        If anything else is not what a storage can answer.
    """

    pool_name: str
    consumer_name: str
    count: int
    duration_seconds: float = 300
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    with_stats: bool = False
    at_least: int | None = None
    distinct: bool = True
    lease_ids: tuple[UUID, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= check_whole(self.count, "count") <= MAX_SET:
            raise InvalidInputError(f"count must be from 1 to {MAX_SET}", value=self.count)
        if not 1 <= check_whole(self.needed, "at_least") <= self.count:
            raise InvalidInputError("at_least must be from 1 to count", value=self.at_least)
        if self.lease_ids is not None:
            object.__setattr__(self, "lease_ids", _checked_ids(self.lease_ids, self.count))
        _check_asked(self)

    @property
    def needed(self) -> int:
        """How many leases the set has at least."""
        return self.count if self.at_least is None else self.at_least


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A lease to give back, of which only the id counts, and why."""

    lease: Lease
    reason: str | None = None
    with_stats: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.lease, Lease):
            raise InvalidInputError(f"a lease is needed, not a {type(self.lease).__name__}")
        if self.reason is not None:
            check_text(self.reason)


Command = AcquireRequest | AcquireSetRequest | ReleaseRequest
"""What several callers, or one, can ask of a storage in one batch."""


def _check_asked(request: AcquireRequest | AcquireSetRequest) -> None:
    """Check what one lease and a set of them have in common."""
    check_duration(request.duration_seconds)
    check_name(request.pool_name, "pool")
    check_name(request.consumer_name, "consumer")
    check_filters(request.filters)
    if type(request.selector) is not SelectorStrategy:
        object.__setattr__(request, "selector", SelectorStrategy(request.selector))


def _checked_ids(lease_ids: Iterable[UUID], count: int) -> tuple[UUID, ...]:
    try:
        ids = tuple(lease_ids)
    except TypeError:
        raise InvalidInputError("lease_ids must be several UUIDs", value=lease_ids) from None
    if not all(isinstance(each, UUID) for each in ids):
        raise InvalidInputError("lease_ids must be UUIDs", value=ids)
    if len(ids) != count or len(set(ids)) != count:
        raise InvalidInputError(f"lease_ids must be {count} different UUIDs, one a lease")
    return ids


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
class SetAcquisition:
    """What asking for several leases at once came to.

    ``acquisitions`` are as many as were leased, in order, each with the statistics after
    it; none for a miss. Then ``free`` is how many could have been leased, and ``stats`` are
    those after the miss. ``expired`` are the leases that were taken back on the way.
    """

    acquisitions: tuple[Acquisition, ...] = ()
    miss_reason: MissReason | None = None
    free: int = 0
    stats: PoolStatsSnapshot | None = None
    expired: Sequence[EndedLease] = field(default=())


Outcome = Acquisition | SetAcquisition | ReleaseResult
"""What a command came to."""

Outcomes = list[Outcome | Exception]
"""What the commands of a batch came to: of one that failed, its error."""


def batch_order(commands: Sequence[Command]) -> list[int]:
    """Return the places of commands in the order in which a batch carries them out.

    Releases come first, so that what is given back can be leased again.
    """
    places = range(len(commands))
    return sorted(places, key=lambda place: not isinstance(commands[place], ReleaseRequest))


def pool_name_of(command: Command) -> str | None:
    """Return the name of the pool that a command is about, as far as its caller knows."""
    named = command.lease if isinstance(command, ReleaseRequest) else command
    return named.pool_name


def new_leases(outcome: object) -> list[Lease]:
    """Return the leases that were granted to the call whose outcome this is, or outcomes."""
    if isinstance(outcome, Acquisition):
        return [outcome.lease] if outcome.lease is not None and outcome.is_new else []
    parts = outcome.acquisitions if isinstance(outcome, SetAcquisition) else outcome
    if not isinstance(parts, list | tuple):
        return []
    return [lease for each in parts for lease in new_leases(each)]


def assign_expired_by_pool(
    outcomes: Outcomes, commands: Sequence[Command], expired: Sequence[EndedLease]
) -> None:
    """Add expired leases to answers of a batch: each to one of its pool, or of any if none is."""
    order = batch_order(commands)
    for name in dict.fromkeys(ended.lease.pool_name for ended in expired):
        of_pool = [ended for ended in expired if ended.lease.pool_name == name]
        places = [place for place in order if pool_name_of(commands[place]) == name]
        assign_expired(outcomes, places or order, of_pool)


def assign_expired(
    outcomes: Outcomes, places: Sequence[int], expired: Sequence[EndedLease]
) -> None:
    """Add expired leases to one answer among those at these places: the first that is no error.

    Parameters
    ----------
    outcomes:
        The answers of a batch; one of them is replaced.
    places:
        At least one place of them, in the order in which they were carried out.
    expired:
        The leases to tell of.
    """
    place = next((i for i in places if not isinstance(outcomes[i], Exception)), places[0])
    outcome = outcomes[place]
    if not isinstance(outcome, Exception):
        outcomes[place] = replace(outcome, expired=(*outcome.expired, *expired))
    elif isinstance(outcome, PharoxError):
        outcome.data["expired"] = tuple(expired)


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
