"""Requests to a storage, and their outcomes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar, cast
from uuid import UUID

from ..errors import (
    ConflictError,
    InvalidInputError,
    LeaseBusyError,
    LeaseEndedError,
    PharoxError,
    QueueFullError,
)
from ..events import EventBase, HealthChecked
from ..models import (
    DEFAULT_DURATION_S,
    HealthCheckResult,
    HeldLease,
    Lease,
    LeaseStatus,
    LimitReached,
    MissReason,
    PoolMissed,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
    check_duration,
    check_fallback,
    check_filters,
    check_name,
    check_pause,
    check_remark,
    check_selector,
    check_whole,
    target_of,
)
from ..models.ids import health_record_id

logger = logging.getLogger("pharox")

MAX_SET = 1000
"""The maximum number of leases in one set."""


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """A validated request for one lease.

    ``duration_seconds`` is the lease's length; in place of a :class:`pharox.DefaultSeconds` the
    pool's ``lease_seconds`` is used, if it has one. The pool's ``selector`` is used if it is
    None, else FIRST_AVAILABLE. For a ``lease_id`` that the caller chose, at most one lease is
    ever granted. ``wait_seconds`` is how long to wait in turn if nothing is free. ``target`` is
    the host, or a URL of it, that the proxy is for: one that rests for it is passed over.
    ``sticky`` asks for the same proxy each time. ``fallback`` are the pools to try, in order, if
    the first has nothing.

    Raises
    ------
    InvalidLeaseError
        If the duration is invalid.
    InvalidInputError
        If anything else is invalid.
    """

    pool_name: str
    consumer_name: str
    duration_seconds: float = DEFAULT_DURATION_S
    filters: ProxyFilters | None = None
    selector: SelectorStrategy | None = None
    with_stats: bool = False
    lease_id: UUID | None = None
    wait_seconds: float | None = None
    target: str | None = None
    sticky: Sticky | None = None
    fallback: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_sticky(self)
        if self.lease_id is not None and not isinstance(self.lease_id, UUID):
            object.__setattr__(self, "lease_id", lease_id_of(self.lease_id))
        _check_asked(self)

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the pools to try, in order."""
        return (self.pool_name, *self.fallback)


@dataclass(frozen=True, slots=True)
class AcquireSetRequest:
    """A validated request for several leases at once.

    The set is granted if ``at_least`` proxies can be leased (``count`` if None); else
    nothing is. With ``distinct`` no proxy is leased twice. The caller may choose
    ``lease_ids``, one for each lease. A set with these ids is granted only once.
    ``wait_seconds`` is how long to wait in turn if too few are free; a set that waits keeps what
    becomes free from those behind it. ``target`` and ``fallback`` are as for
    :class:`AcquireRequest`; all leases of a set are of one pool.

    Raises
    ------
    InvalidLeaseError
        If the duration is invalid.
    InvalidInputError
        If anything else is invalid.
    """

    pool_name: str
    consumer_name: str
    count: int
    duration_seconds: float = DEFAULT_DURATION_S
    filters: ProxyFilters | None = None
    selector: SelectorStrategy | None = None
    with_stats: bool = False
    at_least: int | None = None
    distinct: bool = True
    lease_ids: tuple[UUID, ...] | None = None
    wait_seconds: float | None = None
    target: str | None = None
    fallback: Sequence[str] = ()

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
        """The minimum number of leases in the set."""
        return self.count if self.at_least is None else self.at_least

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the pools to try, in order."""
        return (self.pool_name, *self.fallback)


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A request to release a lease, with a reason. Only the lease's id is used."""

    lease: Lease
    reason: str | None = None
    with_stats: bool = False

    def __post_init__(self) -> None:
        check_lease(self.lease)
        if self.reason is not None:
            check_remark(self.reason, "reason")


@dataclass(frozen=True, slots=True)
class RenewRequest:
    """A request to extend a lease, which is found by its id.

    Its fencing token must be that of the lease, unless it is None. ``duration_seconds``
    counts from the renewal; if None, it is as long as the lease was last granted for.

    Raises
    ------
    InvalidLeaseError
        If the duration is invalid.
    """

    lease: Lease
    duration_seconds: float | None = None

    def __post_init__(self) -> None:
        check_lease(self.lease)
        if self.duration_seconds is not None:
            check_duration(self.duration_seconds)

    def outcome(self, recorded: Lease | None, *, is_renewed: bool) -> Lease | PharoxError:
        """Return the caller's lease, updated from the recorded one, or the reason it failed."""
        lease = self.lease
        if recorded is None:
            return no_lease(lease.id)
        if lease.fencing_token not in (None, recorded.fencing_token):
            return ConflictError(
                f"Lease {lease.id} has the fencing token {recorded.fencing_token}, "
                f"not {lease.fencing_token}.",
                lease_id=lease.id,
            )
        lease.expires_at, lease.renewed_at = recorded.expires_at, recorded.renewed_at
        copy_ending(recorded, lease)
        return lease if is_renewed else LeaseEndedError(ending_of(recorded), lease_id=lease.id)


@dataclass(frozen=True, slots=True)
class RevokeRequest:
    """A request to end leases of others, each found by its id, for a reason.

    Raises
    ------
    InvalidInputError
        If an id is neither a UUID nor its text, or the reason is empty or cannot be stored.
    """

    lease_ids: tuple[UUID, ...]
    reason: str
    with_stats: bool = False

    def __post_init__(self) -> None:
        ids = tuple(lease_id_of(each) for each in self.lease_ids)
        object.__setattr__(self, "lease_ids", ids)
        if not check_remark(self.reason, "reason").strip():
            raise InvalidInputError("a lease is revoked for a reason", value=self.reason)

    def outcomes(
        self, ended: Mapping[UUID, EndedLease], recorded: Mapping[UUID, Lease]
    ) -> list[EndedLease | PharoxError]:
        """Return what this request ended, or for each other id why it did not, in order.

        Parameters
        ----------
        ended:
            The leases that this request revoked.
        recorded:
            The others, as far as there are any.
        """
        outcomes: list[EndedLease | PharoxError] = []
        left = dict(ended)
        for lease_id in self.lease_ids:
            done = left.pop(lease_id, None)
            outcomes.append(done or self._refusal(lease_id, ended, recorded))
        return outcomes

    def _refusal(
        self, lease_id: UUID, ended: Mapping[UUID, EndedLease], recorded: Mapping[UUID, Lease]
    ) -> LeaseEndedError:
        lease = ended[lease_id].lease if lease_id in ended else recorded.get(lease_id)
        if lease is None:
            return no_lease(lease_id)
        return LeaseEndedError(ending_of(lease), lease_id=lease_id)


def check_lease(lease: Lease) -> None:
    """Raise InvalidInputError unless it is a lease."""
    if not isinstance(lease, Lease):
        raise InvalidInputError(
            f"a lease is needed, as it was acquired or read, not a {type(lease).__name__}",
            value=lease,
        )


def lease_id_of(text: UUID | str) -> UUID:
    """Return the id of a lease, which may be given as text."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInputError(
            f"the id of a lease must be a UUID, not {text!r}", value=text
        ) from None


Command = AcquireRequest | AcquireSetRequest | ReleaseRequest
"""A request that can be part of a batch."""


def _check_asked(request: AcquireRequest | AcquireSetRequest) -> None:
    """Validate the fields that both kinds of acquisition have."""
    check_duration(request.duration_seconds)
    check_name(request.pool_name, "pool")
    check_name(request.consumer_name, "consumer")
    check_filters(request.filters)
    if request.fallback != ():
        fallback = check_fallback(request.pool_name, request.fallback)
        object.__setattr__(request, "fallback", fallback)
    if request.wait_seconds is not None:
        check_pause(request.wait_seconds, "wait_seconds")
    if request.target is not None:
        object.__setattr__(request, "target", target_of(request.target))
    if request.selector is not None and type(request.selector) is not SelectorStrategy:
        object.__setattr__(request, "selector", check_selector(request.selector))


def _check_sticky(request: AcquireRequest) -> None:
    if request.sticky is None:
        return
    if not isinstance(request.sticky, Sticky):
        raise InvalidInputError(
            'a sticky session is asked for as Sticky("account-42")', value=request.sticky
        )
    if isinstance(request.filters, ProxyFilters) and request.filters.requires_python():
        raise InvalidInputError("a sticky session cannot be asked for with a predicate")


def _checked_ids(lease_ids: Iterable[UUID], count: int) -> tuple[UUID, ...]:
    if isinstance(lease_ids, str) or not isinstance(lease_ids, Iterable):
        raise InvalidInputError("lease_ids must be a sequence of UUIDs", value=lease_ids)
    ids = tuple(lease_id_of(each) for each in lease_ids)
    if len(ids) != count or len(set(ids)) != count:
        raise InvalidInputError(f"lease_ids must be {count} different UUIDs, one per lease")
    return ids


@dataclass(frozen=True, slots=True)
class EndedLease:
    """A lease that this call ended, as recorded, and the pool's statistics if requested."""

    lease: Lease
    stats: PoolStatsSnapshot | None = None
    reason: str | None = None


def held_lease(lease: Lease, address: str, now: datetime, session: str | None = None) -> HeldLease:
    """Return an active lease with its proxy's address and the time left."""
    left = (lease.expires_at - now).total_seconds()
    facts = lease.model_dump()
    return HeldLease(**facts, address=address, remaining_seconds=left, session=session)


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """The outcome of a release.

    ``ending`` is None if the lease had ended before. ``expired`` are leases that this
    call expired, such as the one that was released too late.
    """

    ending: EndedLease | None
    expired: Sequence[EndedLease] = field(default=())


@dataclass(frozen=True, slots=True)
class Acquisition:
    """The outcome of an acquisition.

    ``lease`` is None for a miss. ``expired`` are the due leases that this call
    expired. ``is_new`` is False if an earlier call was granted the lease with the same
    id: then this call must not end it. ``counts_from`` is a moment of the monotonic clock not
    after the lease was granted; None if it was granted within the call without waiting.
    ``waited_ms`` is how long the call waited in turn, in milliseconds; None if it did not.
    ``selector`` is the one that was used, None if the storage does not say it. ``limit`` is the one
    that a miss is due to, if it is, which time frees in ``retry_after_seconds``. ``missed_in`` are
    the pools in which a request with a fallback got nothing, in the order of trying; of a miss
    ``retry_after_seconds`` is then the soonest of theirs.
    """

    lease: Lease | None
    miss_reason: MissReason | None = None
    stats: PoolStatsSnapshot | None = None
    expired: Sequence[EndedLease] = field(default=())
    is_new: bool = True
    counts_from: float | None = None
    waited_ms: int | None = None
    selector: SelectorStrategy | None = None
    limit: LimitReached | None = None
    retry_after_seconds: float | None = None
    missed_in: tuple[PoolMissed, ...] = ()

    def having_missed(self, missed_in: Sequence[PoolMissed]) -> Acquisition:
        """Return the outcome of a request with a fallback that got nothing in these pools."""
        return _having_missed(self, missed_in, missed=self.lease is None)


@dataclass(frozen=True, slots=True)
class SetAcquisition:
    """The outcome of a request for several leases at once.

    ``acquisitions`` has the granted leases in order, each with the statistics after
    it. It is empty for a miss; then ``free`` is how many could have been leased, and ``stats``
    are the statistics after the miss. ``expired`` are the due leases that this call expired.
    ``waited_ms``, ``selector``, ``limit``, ``retry_after_seconds`` and ``missed_in`` are as for
    :class:`Acquisition`.
    """

    acquisitions: tuple[Acquisition, ...] = ()
    miss_reason: MissReason | None = None
    free: int = 0
    stats: PoolStatsSnapshot | None = None
    expired: Sequence[EndedLease] = field(default=())
    waited_ms: int | None = None
    selector: SelectorStrategy | None = None
    limit: LimitReached | None = None
    retry_after_seconds: float | None = None
    missed_in: tuple[PoolMissed, ...] = ()

    def having_missed(self, missed_in: Sequence[PoolMissed]) -> SetAcquisition:
        """Return the outcome of a request with a fallback that got nothing in these pools."""
        return _having_missed(self, missed_in, missed=not self.acquisitions)

    @property
    def leases(self) -> list[Lease]:
        """The granted leases, in order."""
        return [each.lease for each in self.acquisitions if each.lease is not None]


_Found = TypeVar("_Found", Acquisition, SetAcquisition)


def _having_missed(found: _Found, missed_in: Sequence[PoolMissed], *, missed: bool) -> _Found:
    """Return an outcome with the pools that had nothing; of a miss with the soonest time of all."""
    if not missed:  # The limits of those pools are in the event.
        bare = {"limit": None, "retry_after_seconds": None}
        return replace(found, missed_in=tuple(each.model_copy(update=bare) for each in missed_in))
    known = (found.retry_after_seconds, *(each.retry_after_seconds for each in missed_in))
    soonest = min((seconds for seconds in known if seconds is not None), default=None)
    return replace(found, missed_in=tuple(missed_in), retry_after_seconds=soonest)


CommandOutcome = Acquisition | SetAcquisition | ReleaseResult
"""The outcome of a command."""

CommandOutcomes = list[CommandOutcome | Exception]
"""The outcomes of a batch of commands. The outcome of a failed command is its error."""


LEASED_OUT = frozenset(
    {
        MissReason.AT_CAPACITY,
        MissReason.TOO_FEW,
        MissReason.RESTING,
        MissReason.ROTATING,
        MissReason.LIMIT_REACHED,
    }
)
"""Why an acquisition missed that the end of somebody's lease would have helped."""

MAX_WAITING = 10_000
"""The maximum length of a pool's queue."""


def queue_full(pool_name: str) -> QueueFullError:
    """Return the outcome of a request that found a queue of that length."""
    return QueueFullError(
        f"{MAX_WAITING} requests wait for a proxy of pool {pool_name!r} already.",
        pool_name=pool_name,
    )


def batch_order(commands: Sequence[Command]) -> list[int]:
    """Return the indexes of commands in the order in which a batch carries them out.

    Releases come first, so that released proxies can be leased in the same batch.
    """
    places = range(len(commands))
    return sorted(places, key=lambda place: not isinstance(commands[place], ReleaseRequest))


def pool_name_of(command: Command) -> str | None:
    """Return the name of a command's pool, as its caller gave it."""
    named = command.lease if isinstance(command, ReleaseRequest) else command
    return named.pool_name


def new_leases(outcome: object) -> list[Lease]:
    """Return the newly granted leases in an outcome or in a list of outcomes."""
    if isinstance(outcome, Acquisition):
        return [outcome.lease] if outcome.lease is not None and outcome.is_new else []
    parts = outcome.acquisitions if isinstance(outcome, SetAcquisition) else outcome
    if not isinstance(parts, list | tuple):
        return []
    return [lease for each in parts for lease in new_leases(each)]


def assign_expired_by_pool(
    outcomes: CommandOutcomes, commands: Sequence[Command], expired: Sequence[EndedLease]
) -> None:
    """Add each expired lease to one outcome of a batch: of its pool, or of any if there is none."""
    order = batch_order(commands)
    for name in dict.fromkeys(ended.lease.pool_name for ended in expired):
        of_pool = [ended for ended in expired if ended.lease.pool_name == name]
        places = [place for place in order if pool_name_of(commands[place]) == name]
        assign_expired(outcomes, places or order, of_pool)


def assign_expired(
    outcomes: CommandOutcomes, places: Sequence[int], expired: Sequence[EndedLease]
) -> None:
    """Add expired leases to the first outcome at one of these places that is not an error.

    Parameters
    ----------
    outcomes:
        The outcomes of a batch; one of them is replaced.
    places:
        At least one index into ``outcomes``, in the order of execution.
    expired:
        The leases to report.
    """
    place = next((i for i in places if not isinstance(outcomes[i], Exception)), places[0])
    outcome = outcomes[place]
    if not isinstance(outcome, Exception):
        outcomes[place] = replace(outcome, expired=(*outcome.expired, *expired))
    elif isinstance(outcome, PharoxError):
        outcome.data["expired"] = tuple(expired)


@dataclass(frozen=True, slots=True)
class HealthOutcome:
    """The outcome of recording a health check.

    ``known`` is False if there is no such proxy; then nothing was recorded.
    A ``result`` from the future gets the time of the storage's clock.
    If the check made the proxy unleasable, ``lease_ids`` are the leases held on it.
    ``source`` says who provided the proxy.
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
    """Copy the recorded status and ``released_at`` to a caller's lease, if there are any."""
    if recorded is not None:
        lease.status = recorded.status
        lease.released_at = recorded.released_at
        lease.revoke_reason = recorded.revoke_reason


def ending_of(lease: Lease) -> str:
    """Return a sentence that says how and when a lease ended. One still active has run out."""
    return f"Lease {lease.id} {_how_it_ended(lease)}."


def _how_it_ended(lease: Lease) -> str:
    ran_out = f"ran out at {lease.expires_at.isoformat()}"
    if lease.released_at is None:
        return ran_out
    ended_at = lease.released_at.isoformat()
    if lease.status is LeaseStatus.REVOKED:
        return f"was revoked at {ended_at}: {lease.revoke_reason}"
    if lease.status is LeaseStatus.EXPIRED:
        return f"{ran_out} and was taken back at {ended_at}"
    return f"was released at {ended_at}"


def no_lease(lease_id: UUID) -> LeaseEndedError:
    """Return the error for an id that no lease has."""
    return LeaseEndedError(
        f"There is no lease {lease_id}; it may have ended and been pruned.", lease_id=lease_id
    )


def renewal_rounds(requests: Sequence[RenewRequest]) -> list[list[int]]:
    """Return the indexes of requests in the order in which they are carried out.

    Each round names a lease once, in the order of ids, in which they are locked.
    """
    rounds: list[dict[UUID, int]] = []
    for place, request in enumerate(requests):
        own = next((each for each in rounds if request.lease.id not in each), None)
        if own is None:
            rounds.append(own := {})
        own[request.lease.id] = place
    return [[each[lease_id] for lease_id in sorted(each)] for each in rounds]


def lease_busy(lease: Lease) -> LeaseBusyError:
    """Return the outcome of a renewal that did not wait for a lock."""
    return LeaseBusyError(
        f"Lease {lease.id} is being ended or renewed by another session.", lease_id=lease.id
    )


def log_late_release(lease: Lease, recorded: Lease | None) -> None:
    """Warn that a release came after the end of its lease."""
    if recorded is None:
        why = "is unknown"
    elif recorded.status is LeaseStatus.REVOKED:
        why = _how_it_ended(recorded)
    else:
        why = f"has ended already ({recorded.status.value})"
    logger.warning(
        "pharox.release.ignored: lease %s %s",
        lease.id,
        why,
        extra={"lease_id": str(lease.id), "status": recorded and recorded.status.value},
    )


@contextmanager
def given_up(lease: Lease) -> Iterator[None]:
    """Log if the lease of a cancelled task could not be released. It will expire."""
    try:
        yield
    except Exception:
        logger.exception("pharox.release.failed: lease %s of a cancelled task", lease.id)


def result_of_record(record: ProxyHealthRecord) -> HealthCheckResult:
    """Convert a health record to a health check result."""
    return _result(record, record.status_after)


def result_of_check(check: HealthChecked) -> HealthCheckResult:
    """Convert a ``HealthChecked`` event to a health check result."""
    return _result(check, check.status)


def _result(check: ProxyHealthRecord | HealthChecked, status: ProxyStatus) -> HealthCheckResult:
    return HealthCheckResult(
        proxy_id=check.proxy_id,
        status=status,
        latency_ms=check.latency_ms or 0,
        protocol=check.protocol,
        checked_at=check.checked_at,
        error_message=check.error,
        failure=check.failure,
        status_code=check.status_code,
        attempts=check.attempts,
    )


def record_of_check(event: EventBase) -> ProxyHealthRecord:
    """Convert a ``HealthChecked`` event to a health record."""
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
    """Return a result with its recorded time, which differs if the checker's clock was ahead."""
    if result.checked_at == checked_at:
        return result
    return result.model_copy(update={"checked_at": checked_at})
