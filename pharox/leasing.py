"""What a manager does, said once for callers that block and for those that await.

Programs that ask for calls: of the storage, of a callback, of a pause. A manager
is a :class:`Leasing` that has them carried out in its own way.

The storage decides and records; the manager adds defaults, retries, context
managers and callbacks. A callback is told of what this manager appended, after
it is committed. One that raises keeps neither the ledger nor the other
callbacks from their work: all of them run, then the exception reaches the
caller (several as an ``ExceptionGroup``), and a lease that the failed call had
been granted has been given back by then. A cancellation counts as such an
exception, and for more than all others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from .cancelling import CANCELLED, CancelledLate
from .errors import InvalidInputError
from .models import (
    AcquireEventPayload,
    ExpireEventPayload,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    Lease,
    PoolStatsSnapshot,
    ProxyFilters,
    ReleaseEventPayload,
    RetryConfig,
    SelectorStrategy,
    check_duration,
    utc_now,
)
from .programs import Calls
from .storage.terms import AcquireRequest, Acquisition, Ending, HealthOutcome, Return

P = TypeVar("P")
logger = logging.getLogger("pharox")

CALLBACK_FAILED = "callback failed"
"""The reason of a release that a failing callback caused."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks a manager for, as it was given."""

    pool_name: str
    consumer_name: str | None
    duration_seconds: int
    filters: ProxyFilters | None
    selector: SelectorStrategy | None


class Leasing:
    """The callbacks of a manager, and its programs over whatever storage it has."""

    DEFAULT_CONSUMER_NAME = "default"

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._acquire_callbacks: list[Callable[[AcquireEventPayload], Any]] = []
        self._release_callbacks: list[Callable[[ReleaseEventPayload], Any]] = []
        self._expire_callbacks: list[Callable[[ExpireEventPayload], Any]] = []
        self._health_callbacks: list[Callable[[HealthEventPayload], Any]] = []

    def register_acquire_callback(self, callback: Callable[[AcquireEventPayload], Any]) -> None:
        """Have ``callback`` told of every attempt to lease, hit or miss."""
        self._acquire_callbacks.append(self._checked(callback))

    def register_release_callback(self, callback: Callable[[ReleaseEventPayload], Any]) -> None:
        """Have ``callback`` told of every lease that this manager releases."""
        self._release_callbacks.append(self._checked(callback))

    def register_expire_callback(self, callback: Callable[[ExpireEventPayload], Any]) -> None:
        """Have ``callback`` told of every lease that this manager finds to have run out."""
        self._expire_callbacks.append(self._checked(callback))

    def register_health_callback(self, callback: Callable[[HealthEventPayload], Any]) -> None:
        """Have ``callback`` told of every health check that this manager records.

        Its ``lease_ids`` are the leases whose proxy has just become unleasable.
        """
        self._health_callbacks.append(self._checked(callback))

    def _checked(self, callback: Callable[[P], Any]) -> Callable[[P], Any]:
        return callback

    # Programs

    def _acquiring(self, ask: Ask) -> Calls[Acquisition]:
        """Lease a proxy and tell of it."""
        check_duration(ask.duration_seconds)
        request = AcquireRequest(
            pool_name=ask.pool_name,
            consumer_name=ask.consumer_name or self.DEFAULT_CONSUMER_NAME,
            duration_seconds=ask.duration_seconds,
            filters=ask.filters,
            selector=SelectorStrategy(ask.selector or SelectorStrategy.FIRST_AVAILABLE),
            with_stats=bool(self._acquire_callbacks or self._expire_callbacks),
        )
        started_at = utc_now()
        try:
            acquisition: Acquisition = yield partial(self._storage.acquire_lease, request)
        except CancelledLate as late:  # Nobody will see that lease; what ran out on the way did.
            _log((yield from self._tell_expired(late.outcome.expired)))
            raise
        if not request.with_stats:
            return acquisition
        payload = _acquire_payload(request, acquisition, started_at=started_at)
        lease = acquisition.lease
        try:
            errors = yield from self._tell_expired(acquisition.expired)
            errors += yield from _tell(self._acquire_callbacks, [payload])
        except GeneratorExit:
            raise
        except BaseException:  # such as KeyboardInterrupt: the caller will never see this lease
            if lease is not None:
                yield partial(self._storage.return_lease, lease, reason=CALLBACK_FAILED)
            raise
        if errors and lease is not None:
            reason = CANCELLED if _cancellation(errors) else CALLBACK_FAILED
            errors += yield from self._returning(lease, reason)
        _raise(errors)
        return acquisition

    def _acquiring_with_retry(
        self, ask: Ask, config: RetryConfig, sleep: Callable[[float], Any]
    ) -> Calls[Acquisition]:
        """Lease a proxy, asking again after a pause while nothing is free."""
        acquisition = yield from self._acquiring(ask)
        for delay in config.delays():
            if acquisition.lease is not None:
                break
            if delay > 0:
                yield partial(sleep, delay)
            acquisition = yield from self._acquiring(ask)
        return acquisition

    def _releasing(self, lease: Lease | None, reason: str | None = None) -> Calls[None]:
        """Give a lease back, if there is one, and tell of it."""
        if lease is not None:
            _raise((yield from self._returning(lease, reason)))

    def _releasing_after(self, error: BaseException, lease: Lease | None) -> Calls[None]:
        """Release because the caller's block failed; the block's exception is what counts."""
        try:
            yield from self._releasing(lease)
        except Exception as failure:
            logger.exception("pharox.release.failed: lease %s", lease and lease.id)
            error.add_note(f"releasing lease {lease and lease.id} failed too: {failure!r}")

    def _giving_up(self, lease: Lease) -> Calls[None]:
        """Give back a lease that a cancelled task will never see; if that fails, it runs out."""
        try:
            _log((yield from self._returning(lease, CANCELLED)))
        except Exception:
            logger.exception("pharox.release.failed: lease %s of a cancelled task", lease.id)

    def _cleaning_up(self) -> Calls[int]:
        """Take back what has run out and tell of it; return how many leases that were."""
        wanted = bool(self._expire_callbacks)
        (count, expired), late = yield from _to_the_end(
            partial(self._storage.expire_leases, with_stats=wanted)
        )
        errors = yield from self._tell_expired(expired)
        _raise([*late, *errors])
        return count  # type: ignore[no-any-return]

    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Sequence[HealthOutcome]]:
        """Record health checks and tell of them."""
        outcomes, late = yield from _to_the_end(
            partial(self._storage.record_health_checks, results, policy)
        )
        errors = yield from self._tell_health(outcomes)
        _raise([*late, *errors])
        return outcomes  # type: ignore[no-any-return]

    def _returning(self, lease: Lease, reason: str | None = None) -> Calls[list[BaseException]]:
        """Give a lease back, tell the callbacks, and return what they raised."""
        wanted = bool(self._release_callbacks or self._expire_callbacks)
        returned: Return
        returned, errors = yield from _to_the_end(
            partial(self._storage.return_lease, lease, reason=reason, with_stats=wanted)
        )
        errors += yield from self._tell_expired(returned.expired)
        if returned.ending is None or not self._release_callbacks:
            return errors
        ended = returned.ending.lease
        payload = ReleaseEventPayload(
            lease=ended,
            pool_name=ended.pool_name,
            released_at=ended.released_at or utc_now(),
            lease_duration_ms=ended.duration_ms,
            pool_stats=returned.ending.stats,
            reason=reason,
        )
        errors += yield from _tell(self._release_callbacks, [payload])
        return errors

    def _tell_expired(self, expired: Sequence[Ending]) -> Calls[list[BaseException]]:
        payloads = (
            ExpireEventPayload(
                lease=ending.lease,
                pool_name=ending.lease.pool_name,
                expired_at=ending.lease.released_at or utc_now(),
                lease_duration_ms=ending.lease.duration_ms,
                pool_stats=ending.stats,
            )
            for ending in expired
        )
        return (yield from _tell(self._expire_callbacks, payloads))

    def _tell_health(self, outcomes: Sequence[HealthOutcome]) -> Calls[list[BaseException]]:
        if not self._health_callbacks:
            return []
        names = {outcome.pool_name for outcome in outcomes if outcome.pool_name is not None}
        stats: dict[str | None, PoolStatsSnapshot | None] = {}
        for name in sorted(names):
            stats[name] = yield partial(self._storage.get_pool_stats, name)
        payloads = (
            HealthEventPayload(
                result=outcome.result,
                pool_name=outcome.pool_name,
                status_before=outcome.status_before,
                status_after=outcome.status_after,
                applied=outcome.applied,
                leases=outcome.leases,
                lease_ids=outcome.lease_ids,
                pool_stats=stats.get(outcome.pool_name),
            )
            for outcome in outcomes
            if outcome.status_before is not None and outcome.status_after is not None
        )
        return (yield from _tell(self._health_callbacks, payloads))


def fleet_subscriptions() -> ModuleType:
    """Return the module that makes subscriptions of callbacks.

    Raises
    ------
    InvalidInputError
        If what it takes is not installed.
    """
    try:
        from .ledger.subscriptions import fleet  # noqa: PLC0415 - it needs the driver
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "subscriptions are kept in PostgreSQL: pip install 'pharox[postgres]'"
        ) from error
    return fleet


def _acquire_payload(
    request: AcquireRequest, acquisition: Acquisition, *, started_at: datetime
) -> AcquireEventPayload:
    completed_at = utc_now()
    return AcquireEventPayload(
        lease=acquisition.lease,
        pool_name=request.pool_name,
        consumer_name=request.consumer_name,
        filters=request.filters,
        selector=request.selector,
        started_at=started_at,
        completed_at=completed_at,
        duration_ms=max(0, int((completed_at - started_at).total_seconds() * 1000)),
        pool_stats=acquisition.stats,
        miss_reason=acquisition.miss_reason,
    )


def _to_the_end(command: Callable[[], Any]) -> Calls[tuple[Any, list[BaseException]]]:
    """Return what a command came to, and with it the cancellation that came too late to stop it."""
    try:
        return (yield command), []
    except CancelledLate as late:
        return late.outcome, [late]


def _tell(
    callbacks: Sequence[Callable[[P], Any]], payloads: Iterable[P]
) -> Calls[list[BaseException]]:
    """Call every callback with every payload, in order, and return what they raised."""
    errors: list[BaseException] = []
    if not callbacks:
        return errors
    for payload in payloads:
        for callback in tuple(callbacks):
            try:
                yield partial(callback, payload)
            except (Exception, asyncio.CancelledError) as error:
                errors.append(error)
    return errors


def _cancellation(errors: Sequence[BaseException]) -> BaseException | None:
    return next((e for e in errors if isinstance(e, asyncio.CancelledError)), None)


def _raise(errors: Sequence[BaseException]) -> None:
    if (cancellation := _cancellation(errors)) is not None:
        _log([error for error in errors if error is not cancellation])
        raise cancellation
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several callbacks failed", errors)


def _log(errors: Sequence[BaseException]) -> None:
    """Log what callbacks raised where a cancellation is what the caller gets."""
    for error in errors:
        if isinstance(error, Exception):
            logger.error("pharox.callback.failed: %s", error, exc_info=error)
