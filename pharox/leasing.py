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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from .cancelling import CANCELLED, outcome_of
from .effects import Calls
from .errors import ConflictError, InvalidInputError, LeaseEndedError
from .models import (
    AcquireEventPayload,
    CallbackFailurePayload,
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
from .storage.requests import (
    AcquireRequest,
    Acquisition,
    EndedLease,
    HealthOutcome,
    ReleaseResult,
    given_up,
)

P = TypeVar("P")
S = TypeVar("S")
logger = logging.getLogger("pharox")

CALLBACK_FAILED = "callback failed"
"""The reason of a release that a failing callback caused."""


class Ask(NamedTuple):
    """What a caller asks a manager for, as it was given."""

    pool_name: str
    consumer_name: str | None
    duration_seconds: int
    filters: ProxyFilters | None
    selector: SelectorStrategy | None
    lease_id: UUID | None = None


def under(lease_id: UUID | None) -> dict[str, UUID]:
    """Return an id as an argument if it is given: overrides may know those of 0.11.0 only."""
    return {} if lease_id is None else {"lease_id": lease_id}


class Leasing(ABC, Generic[S]):
    """The callbacks of a manager, and its programs over whatever storage it has."""

    DEFAULT_CONSUMER_NAME = "default"

    def __init__(self, storage: S) -> None:
        self._storage: Any = storage
        self._acquire_callbacks: list[Callable[[AcquireEventPayload], Any]] = []
        self._release_callbacks: list[Callable[[ReleaseEventPayload], Any]] = []
        self._expire_callbacks: list[Callable[[ExpireEventPayload], Any]] = []
        self._health_callbacks: list[Callable[[HealthEventPayload], Any]] = []
        self._failure_callbacks: list[Callable[[CallbackFailurePayload], Any]] = []

    @property
    def storage(self) -> S:
        """Where the ledger is kept."""
        return self._storage  # type: ignore[no-any-return]

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

    def register_failure_callback(self, callback: Callable[[CallbackFailurePayload], Any]) -> None:
        """Have ``callback`` told of every other callback that raised.

        What it raises itself is only logged.
        """
        self._failure_callbacks.append(self._checked(callback))

    @abstractmethod
    def acquire_proxy(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = 300,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        *,
        lease_id: UUID | None = None,
    ) -> Any:
        """Lease a proxy of a pool."""

    @abstractmethod
    def release_proxy(self, lease: Lease) -> Any:
        """Give a lease back."""

    def _checked(self, callback: Callable[[P], Any]) -> Callable[[P], Any]:
        """Return a callback, if it is one for this manager."""
        if not callable(callback):
            raise InvalidInputError("a callback must be a function", value=callback)
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
            lease_id=ask.lease_id,
        )
        started_at = utc_now()
        try:
            acquisition: Acquisition = yield partial(self._storage.acquire_lease, request)
        except asyncio.CancelledError as cancelled:
            # Nobody will see a lease that was granted; what ran out on the way did run out.
            for late in outcome_of(cancelled, "acquire_lease"):
                _log((yield from self._tell_expired(late.expired)))
            raise
        except (ConflictError, LeaseEndedError) as refused:
            _log((yield from self._tell_expired(refused.data.get("expired", ()))))
            raise
        if not request.with_stats:
            return acquisition
        payload = _acquire_payload(request, acquisition, started_at=started_at)
        lease = acquisition.lease
        try:
            errors = yield from self._tell_expired(acquisition.expired)
            errors += yield from self._tell("acquire", self._acquire_callbacks, [payload])
        except GeneratorExit:
            raise
        except BaseException:  # such as KeyboardInterrupt: the caller will never see this lease
            if lease is not None and acquisition.is_new:
                yield partial(self._storage.return_lease, lease, reason=CALLBACK_FAILED)
            raise
        if errors and lease is not None and acquisition.is_new:
            reason = CANCELLED if _cancellation(errors) else CALLBACK_FAILED
            try:
                errors += yield from self._returning(lease, reason)
            except Exception as error:
                errors.append(error)
        _raise(errors)
        return acquisition

    def _acquiring_again(
        self, ask: Ask, config: RetryConfig, sleep: Callable[[float], Any]
    ) -> Calls[Lease | None]:
        """Lease a proxy, asking again after a pause while nothing is free."""
        acquire_proxy: Callable[..., Any] = self.acquire_proxy
        asked = ask[:-1]

        def attempt() -> Calls[Lease | None]:
            return (yield partial(acquire_proxy, *asked, **under(ask.lease_id)))  # type: ignore[no-any-return]

        return (
            yield from retrying(attempt, config, sleep, is_enough=lambda lease: lease is not None)
        )

    def _releasing(self, lease: Lease) -> Calls[None]:
        """Give a lease back and tell of it."""
        _raise((yield from self._returning(lease)))

    def _giving_up(self, lease: Lease) -> Calls[None]:
        """Give back a lease that a cancelled task will never see; if that fails, it runs out."""
        with given_up(lease):
            _log((yield from self._returning(lease, CANCELLED)))

    def _cleaning_up(self) -> Calls[int]:
        """Take back what has run out and tell of it; return how many leases that were."""
        wanted = bool(self._expire_callbacks)
        (count, expired), errors = yield from _to_the_end(
            "expire_leases", partial(self._storage.expire_leases, with_stats=wanted)
        )
        errors += yield from self._tell_expired(expired)
        _raise(errors)
        return count  # type: ignore[no-any-return]

    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Sequence[HealthOutcome]]:
        """Record health checks and tell of them."""
        outcomes, errors = yield from _to_the_end(
            "record_health_checks", partial(self._storage.record_health_checks, results, policy)
        )
        errors += yield from self._tell_health(outcomes)
        _raise(errors)
        return outcomes  # type: ignore[no-any-return]

    def _returning(self, lease: Lease, reason: str | None = None) -> Calls[list[BaseException]]:
        """Give a lease back, tell the callbacks, and return what they raised."""
        wanted = bool(self._release_callbacks or self._expire_callbacks)
        started_at = utc_now()
        returned: ReleaseResult
        returned, errors = yield from _to_the_end(
            "return_lease",
            partial(self._storage.return_lease, lease, reason=reason, with_stats=wanted),
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
            started_at=started_at,
            completed_at=utc_now(),
        )
        errors += yield from self._tell("release", self._release_callbacks, [payload])
        return errors

    def _tell_expired(self, expired: Sequence[EndedLease]) -> Calls[list[BaseException]]:
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
        return (yield from self._tell("expire", self._expire_callbacks, payloads))

    def _tell_health(self, outcomes: Sequence[HealthOutcome]) -> Calls[list[BaseException]]:
        if not self._health_callbacks:
            return []
        names = {outcome.pool_name for outcome in outcomes if outcome.pool_name is not None}
        stats: dict[str | None, PoolStatsSnapshot | None] = {}
        errors: list[BaseException] = []
        for name in sorted(names):
            try:
                stats[name] = yield partial(self._storage.get_pool_stats, name)
            except (Exception, asyncio.CancelledError) as error:
                errors.append(error)  # It is recorded, and told without them.
        payloads = (
            HealthEventPayload(
                result=outcome.result,
                pool_name=outcome.pool_name,
                status_before=outcome.status_before,
                status_after=outcome.status_after,
                applied=outcome.applied,
                leases=outcome.leases,
                lease_ids=outcome.lease_ids,
                source=outcome.source,
                pool_stats=stats.get(outcome.pool_name),
            )
            for outcome in outcomes
            if outcome.status_before is not None and outcome.status_after is not None
        )
        errors += yield from self._tell("health", self._health_callbacks, payloads)
        return errors

    def _tell(
        self, what: str, callbacks: Sequence[Callable[[P], Any]], payloads: Iterable[P]
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
                    errors += yield from self._tell_failure(what, callback, payload, error)
        return errors

    def _tell_failure(
        self, what: str, callback: Callable[..., Any], payload: Any, error: BaseException
    ) -> Calls[list[BaseException]]:
        """Tell of a callback that raised; return a cancellation that came meanwhile."""
        cancelled: list[BaseException] = []
        if not self._failure_callbacks or not isinstance(error, Exception):
            return cancelled
        lease = getattr(payload, "lease", None)
        failure = CallbackFailurePayload.model_validate(
            {
                "told": what,
                "callback": getattr(callback, "__qualname__", type(callback).__name__),
                "error_type": type(error).__name__,
                "pool_name": payload.pool_name,
                "lease_id": lease and lease.id,
            }
        )
        for listener in tuple(self._failure_callbacks):
            try:
                yield partial(listener, failure)
            except asyncio.CancelledError as cancellation:
                cancelled.append(cancellation)
            except Exception:
                logger.exception("pharox.callback.failed: while it was told of a failure")
        return cancelled


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


def retrying(
    attempt: Callable[[], Calls[P]],
    config: RetryConfig,
    sleep: Callable[[float], Any],
    *,
    is_enough: Callable[[P], bool],
) -> Calls[P]:
    """Make an attempt, and others after a pause while none has brought enough."""
    found = yield from attempt()
    for delay in config.delays():
        if is_enough(found):
            break
        # Also if it is no time at all: others may have something to do meanwhile.
        yield partial(sleep, delay)
        found = yield from attempt()
    return found


def releasing_after(
    error: BaseException, release: Callable[[Lease], Any], lease: Lease | None
) -> Calls[None]:
    """Release because the caller's block failed; the block's exception is what counts."""
    if lease is None:
        return
    try:
        yield partial(release, lease)
    except Exception as failure:
        logger.exception("pharox.release.failed: lease %s", lease.id)
        error.add_note(f"giving back lease {lease.id} raised as well: {failure!r}")


def _to_the_end(command: str, ask: Callable[[], Any]) -> Calls[tuple[Any, list[BaseException]]]:
    """Return what a command came to, and with it the cancellation that came too late to stop it."""
    try:
        return (yield ask), []
    except asyncio.CancelledError as cancelled:
        for outcome in outcome_of(cancelled, command):
            return outcome, [cancelled]
        raise


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
