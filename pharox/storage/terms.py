"""What a storage and its callers pass each other: requests, outcomes, and how they are checked."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError

from ..errors import ConflictError, InvalidInputError, LeaseEndedError, PoolNotFoundError
from ..events import EventBase, HealthChecked
from ..ids import health_record_id
from ..models import (
    MAX_DURATION_S,
    HealthCheckResult,
    Lease,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    check_filters,
    check_text,
)
from ..programs import is_async

M = TypeVar("M", bound=BaseModel)
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
class Ending:
    """A lease that this call ended, as recorded, and the pool's statistics if asked for."""

    lease: Lease
    stats: PoolStatsSnapshot | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Return:
    """What giving a lease back came to.

    ``ending`` is None if the lease had ended before. ``expired`` are leases
    found to have run out on the way, such as the one that came back too late.
    """

    ending: Ending | None
    expired: Sequence[Ending] = field(default=())


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
    expired: Sequence[Ending] = field(default=())
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


def checked_model(model: M) -> M:
    """Return a model whose fields are valid also if they were assigned after it was made.

    Raises
    ------
    InvalidInputError
        If one is not; what would be stored could not be read back.
    """
    try:
        return type(model).model_validate(model.model_dump(warnings=False))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise InvalidInputError(f"{type(model).__name__} is not valid: {faults}") from None


def check_storage(storage: object, *, awaited: bool) -> None:
    """Raise :class:`InvalidInputError` unless this is a storage, of the kind that is meant."""
    save_pool = getattr(storage, "save_pool", None)
    if save_pool is None:
        # Its text may be a URL, with a password in it.
        raise InvalidInputError(f"a storage is needed here, not a {type(storage).__name__}")
    if is_async(save_pool) is awaited:
        return
    kind = type(storage).__name__
    if awaited:
        raise InvalidInputError(
            f"{kind} blocks; use pharox.connect_async(), or ProxyManager and helpers such as "
            "with_lease_async"
        )
    raise InvalidInputError(
        f"{kind} is to be awaited; use AsyncProxyManager and functions whose names end in _async"
    )


def check_reason(reason: str | None) -> None:
    """Raise :class:`InvalidInputError` if a release's reason cannot be stored."""
    if reason is not None:
        check_text(reason)


def pool_named(pool_name: str | None, pools: Sequence[ProxyPool]) -> Sequence[ProxyPool]:
    """Return the pool of this name, or all if None; raises :class:`PoolNotFoundError`."""
    found = [pool for pool in pools if pool_name in (None, pool.name)]
    if pool_name is not None and not found:
        raise PoolNotFoundError(f"Pool {pool_name!r} not found.", pool_name=pool_name)
    return found


def check_age(age: timedelta | float | None) -> timedelta | None:
    """Return an age in seconds as a timedelta, else raise :class:`InvalidInputError`."""
    if age is None:
        return None
    try:
        length = age if isinstance(age, timedelta) else timedelta(seconds=age)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError("stale_after must be a number of seconds", value=age) from error
    if not timedelta(0) <= length <= timedelta(seconds=MAX_DURATION_S):
        raise InvalidInputError("stale_after must be from 0 to a hundred years", value=age)
    return length


def check_statuses(statuses: Collection[ProxyStatus] | None) -> frozenset[ProxyStatus]:
    """Return the statuses of proxies to check, all but BANNED if None."""
    if statuses is None:
        return frozenset(ProxyStatus) - {ProxyStatus.BANNED}
    if isinstance(statuses, str):
        raise InvalidInputError("statuses must be several, such as ['active']", value=statuses)
    return frozenset(check_status(status) for status in statuses)


def check_status(status: ProxyStatus | str) -> ProxyStatus:
    """Return a status if it is one, else raise :class:`InvalidInputError`."""
    try:
        return ProxyStatus(status)
    except ValueError as error:
        raise InvalidInputError(f"{status!r} is no status of a proxy", value=status) from error


def check_one_pool_each(proxies: Sequence[Proxy]) -> Sequence[Proxy]:
    """Return proxies of which each is given for one pool only, else raise ConflictError."""
    pools: dict[UUID, UUID] = {}
    for proxy in proxies:
        if pools.setdefault(proxy.id, proxy.pool_id) != proxy.pool_id:
            raise ConflictError(f"proxy {proxy.id} is given for two pools", proxy_id=proxy.id)
    return proxies


def check_granted(lease: Lease, request: AcquireRequest, expired: Sequence[Ending] = ()) -> None:
    """Check that a lease which has the request's id was granted to this very caller.

    The error carries what was taken back on the way, for the manager to tell of.

    Raises
    ------
    ConflictError
        If it is somebody else's, or of another pool.
    """
    if (lease.pool_name, lease.consumer_name) != (request.pool_name, request.consumer_name):
        raise ConflictError(
            f"lease {lease.id} is of {lease.consumer_name!r} in pool {lease.pool_name!r}",
            lease_id=lease.id,
            expired=tuple(expired),
        )


def granted_and_ended(lease_id: UUID, how: str, expired: Sequence[Ending] = ()) -> LeaseEndedError:
    """Return the error for a lease that was granted before and has ended since.

    It carries what was taken back on the way, for the manager to tell of.
    """
    return LeaseEndedError(
        f"lease {lease_id} was granted before and has ended ({how}); acquire under another id",
        lease_id=lease_id,
        expired=tuple(expired),
    )


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


def id_from_text(text: str | UUID) -> UUID | None:
    """Return the UUID that a text spells, or None: nothing has such an id then."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError):
        return None
