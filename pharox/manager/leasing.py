"""The logic of a manager, written once for blocking and asyncio callers.

It consists of generators that yield calls: to the storage, to a callback, to sleep. A
manager is a :class:`Leasing` that makes these calls in its own way.

The storage decides and records; the manager adds defaults, retries, context
managers and callbacks. A callback is notified of what this manager appended, after
the commit. If one raises, the ledger is unaffected and the other callbacks still run.
The exception then reaches the caller (several as an ``ExceptionGroup``), and the lease
that the failed call was granted has been released by then. A cancellation counts as
such an exception, and takes precedence over all others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID

from ..effects import Calls
from ..effects.cancelling import CANCELLED, outcome_of
from ..errors import (
    ConflictError,
    DatabaseError,
    InvalidInputError,
    LeaseEndedError,
    LeaseLostError,
    PharoxError,
    ProxyUnavailableError,
    raise_together,
)
from ..models import (
    AcquireEventPayload,
    CallbackFailurePayload,
    DefaultSeconds,
    ExpireEventPayload,
    HealthCheckResult,
    HealthEventPayload,
    HealthPolicy,
    Lease,
    LostEventPayload,
    MissReason,
    Outcome,
    OutcomeEventPayload,
    PoolStatsSnapshot,
    ProxyFilters,
    ReleaseEventPayload,
    Response,
    RetryConfig,
    RevokeEventPayload,
    RotationAnswer,
    RotationFailure,
    SelectorStrategy,
    Sticky,
    StickySession,
    utc_now,
)
from ..models.building import built
from ..models.ids import NIL
from ..storage.defaults import CANNOT_FALL_BACK, CANNOT_KEEP_SESSIONS
from ..storage.reports import Reported, ReportRequest
from ..storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    HealthOutcome,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
    check_lease,
    given_up,
    new_leases,
)
from ..storage.validation import id_from_text
from .keeper import Keeping, Owner, can_renew, is_kept, let_go, lose, lost_error, renewed_for_s
from .options import WAIT_S, LeaseOptions
from .reporting import REPORTED_FAILURES, Reporting, check_said
from .rotator import Fetch, Pause, Rotator, calling_due, rotating
from .ruling import OutcomeOf
from .tally import has_reports

P = TypeVar("P")
S = TypeVar("S")
logger = logging.getLogger("pharox")

CALLBACK_FAILED = "callback failed"
"""The reason recorded for a release caused by a failing callback."""


_OF_SESSIONS = (MissReason.SESSION_BUSY, MissReason.ALL_BOUND)
"""The reasons for a miss that are due to sticky sessions."""

_ENDS_BY_ITSELF = (
    MissReason.AT_CAPACITY,
    MissReason.TOO_FEW,
    MissReason.RESTING,
    MissReason.ROTATING,
    MissReason.COOLING_DOWN,
    MissReason.TARGET_TROUBLED,
    *_OF_SESSIONS,
)
"""The reasons for a miss that the end of a lease, of a rest or of a binding can remove."""

Request = AcquireRequest | AcquireSetRequest


class AcquireArguments(NamedTuple):
    """The arguments of ``acquire_proxy``, as given."""

    pool_name: str
    consumer_name: str | None
    duration_seconds: int
    filters: ProxyFilters | None
    selector: SelectorStrategy | None
    lease_id: UUID | None = None
    keep_alive: bool = False
    wait_seconds: float | None = None
    target: str | None = None
    sticky: Sticky | None = None
    fallback: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class AcquireSetArguments:
    """The arguments of ``acquire_proxies``, as given."""

    pool_name: str
    count: int
    consumer_name: str | None
    duration_seconds: int
    filters: ProxyFilters | None
    selector: SelectorStrategy | None
    at_least: int | None
    distinct: bool
    lease_ids: Sequence[UUID] | None
    keep_alive: bool = False
    wait_seconds: float | None = None
    target: str | None = None
    sticky: Sticky | None = None
    fallback: Sequence[str] = ()


def if_given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that are not None: overrides written for 0.11.0 lack new ones."""
    return {name: value for name, value in arguments.items() if value is not None}


class Leasing(Reporting, ABC, Generic[S]):
    """The callbacks of a manager, and its programs over any kind of storage."""

    DEFAULT_CONSUMER_NAME = "default"

    def __init__(
        self,
        storage: S,
        *,
        reported_failures: HealthPolicy | None = REPORTED_FAILURES,
        outcome_of: OutcomeOf | None = None,
    ) -> None:
        super().__init__(reported_failures, outcome_of)
        self._storage: Any = storage
        self._acquire_callbacks: list[Callable[[AcquireEventPayload], Any]] = []
        self._release_callbacks: list[Callable[[ReleaseEventPayload], Any]] = []
        self._expire_callbacks: list[Callable[[ExpireEventPayload], Any]] = []
        self._revoke_callbacks: list[Callable[[RevokeEventPayload], Any]] = []
        self._health_callbacks: list[Callable[[HealthEventPayload], Any]] = []
        self._lost_callbacks: list[Callable[[LostEventPayload], Any]] = []
        self._outcome_callbacks: list[Callable[[OutcomeEventPayload], Any]] = []
        self._failure_callbacks: list[Callable[[CallbackFailurePayload], Any]] = []
        self._watchers: tuple[Callable[[str], Callable[[], None]], ...] = ()

    @property
    def storage(self) -> S:
        """Where the ledger is kept."""
        answer: S = self._storage
        return answer

    def register_acquire_callback(self, callback: Callable[[AcquireEventPayload], Any]) -> None:
        """Call ``callback`` for every attempt to lease, hit or miss."""
        self._acquire_callbacks.append(self._checked(callback))

    def register_release_callback(self, callback: Callable[[ReleaseEventPayload], Any]) -> None:
        """Call ``callback`` for every lease that this manager releases."""
        self._release_callbacks.append(self._checked(callback))

    def register_expire_callback(self, callback: Callable[[ExpireEventPayload], Any]) -> None:
        """Call ``callback`` for every lease that this manager expires.

        While it keeps a lease alive, that may be in a thread of its own, or in the event loop.
        """
        self._expire_callbacks.append(self._checked(callback))

    def register_revoke_callback(self, callback: Callable[[RevokeEventPayload], Any]) -> None:
        """Call ``callback`` for every lease that this manager revokes."""
        self._revoke_callbacks.append(self._checked(callback))

    def register_health_callback(self, callback: Callable[[HealthEventPayload], Any]) -> None:
        """Call ``callback`` for every health check that this manager records.

        The payload's ``lease_ids`` are the leases whose proxy just became unleasable.
        """
        self._health_callbacks.append(self._checked(callback))

    def register_lost_callback(self, callback: Callable[[LostEventPayload], Any]) -> None:
        """Call ``callback`` for every lease of this manager that was kept alive and is lost.

        It is called in a thread of its own, or in the event loop, while the holder may still
        be working. Its exceptions are logged.
        """
        self._lost_callbacks.append(self._checked(callback))

    def register_outcome_callback(self, callback: Callable[[OutcomeEventPayload], Any]) -> None:
        """Call ``callback`` for every outcome that was reported to this manager, once recorded.

        It may be called in a thread of its own, or in the event loop. Its exceptions are logged.
        """
        self._outcome_callbacks.append(self._checked(callback))

    def register_failure_callback(self, callback: Callable[[CallbackFailurePayload], Any]) -> None:
        """Call ``callback`` for every other callback that raised.

        Its own exceptions are only logged.
        """
        self._failure_callbacks.append(self._checked(callback))

    def watch_requests(self, watcher: Callable[[str], Callable[[], None]]) -> None:
        """Call ``watcher`` with the pool's name when a request for a lease begins.

        It returns a function, which is called when the request is answered, fails or is
        cancelled. Both have to be quick and must not raise.
        """
        self._watchers = (*self._watchers, watcher)

    @abstractmethod
    def acquire_proxy(self, *arguments: Any, **options: Any) -> Any:
        """Lease a proxy of a pool: each kind of manager has its own signature."""

    @abstractmethod
    def release_proxy(self, lease: Lease, outcome: Outcome | Response | None = None) -> Any:
        """Give a lease back."""

    def _storage_of(self, lease: Lease) -> Any:
        """Return where a lease is kept."""
        return self._storage

    @abstractmethod
    def _keeper(self) -> Keeping:
        """Return what keeps the storage's leases alive."""

    @abstractmethod
    def _run_later(self, program: Calls[Any]) -> None:
        """Run a program that nobody waits for."""

    def _checked(self, callback: Callable[[P], Any]) -> Callable[[P], Any]:
        """Return the callback if this manager can call it, else raise InvalidInputError."""
        if not callable(callback):
            raise InvalidInputError("a callback must be a function", value=callback)
        return callback

    # Programs

    def _acquiring(self, arguments: AcquireArguments) -> Calls[Acquisition]:
        """Lease a proxy and notify the callbacks."""
        request = AcquireRequest(
            arguments.pool_name,
            arguments.consumer_name or self.DEFAULT_CONSUMER_NAME,
            arguments.duration_seconds,
            arguments.filters,
            arguments.selector,
            self._is_listened_to(),
            arguments.lease_id,
            arguments.wait_seconds,
            arguments.target,
            arguments.sticky,
            arguments.fallback,
        )
        self._check_wait(request)
        self._check_sticky(request)
        self._check_fallback(request)
        begun = self._begin(keep_alive=arguments.keep_alive)
        answer: Acquisition = yield from self._leasing("acquire_lease", request)
        yield from self._hold([answer], request, begun, keep_alive=arguments.keep_alive)
        return answer

    def _acquiring_set(self, arguments: AcquireSetArguments) -> Calls[SetAcquisition]:
        """Lease several proxies and notify the callbacks of each."""
        if arguments.sticky is not None:
            raise InvalidInputError(
                "a set of leases cannot be of a sticky session; lease one proxy"
            )
        request = AcquireSetRequest(
            arguments.pool_name,
            arguments.consumer_name or self.DEFAULT_CONSUMER_NAME,
            arguments.count,
            arguments.duration_seconds,
            arguments.filters,
            arguments.selector,
            self._is_listened_to(),
            arguments.at_least,
            arguments.distinct,
            arguments.lease_ids,  # type: ignore[arg-type] # which the request makes a tuple
            arguments.wait_seconds,
            arguments.target,
            arguments.fallback,
        )
        self._check_wait(request)
        self._check_fallback(request)
        begun = self._begin(keep_alive=arguments.keep_alive)
        found: SetAcquisition = yield from self._leasing("acquire_set", request)
        yield from self._hold(found.acquisitions, request, begun, keep_alive=arguments.keep_alive)
        return found

    def _unavailable(
        self,
        arguments: AcquireArguments | AcquireSetArguments,
        missed: Acquisition | SetAcquisition,
    ) -> Calls[ProxyUnavailableError]:
        """Return the error for a miss, with the time until waiting may help."""
        pools: list[tuple[str, MissReason | None]]
        pools = [(each.pool_name, each.reason) for each in missed.missed_in]
        pools = pools or [(arguments.pool_name, missed.miss_reason)]
        changes: list[float] = []
        if missed.retry_after_seconds is not None:
            changes.append(missed.retry_after_seconds)
        for pool_name, reason in pools:
            if reason not in _ENDS_BY_ITSELF or reason is MissReason.LIMIT_REACHED:
                continue
            sought: tuple[str | None, ...] = (pool_name, arguments.target)
            if arguments.sticky is not None and reason in _OF_SESSIONS:
                sought = (*sought, arguments.sticky.key)
            with suppress(DatabaseError):  # The miss is known; only its hint is not.
                seconds = yield partial(self._storage.seconds_to_next_change, *sought)
                changes += [] if seconds is None else [seconds]
        (pool_name, reason), *others = pools
        free = missed.free if isinstance(missed, SetAcquisition) else 0
        waited = None if missed.waited_ms is None else missed.waited_ms / 1000
        return ProxyUnavailableError.of_pool(
            pool_name,
            reason,
            min(changes, default=None),
            free=free,
            waited_seconds=waited,
            limit=missed.limit,
            others=others,
        )

    def _begin(self, *, keep_alive: bool) -> float:
        """Return the monotonic time from which a lease counts that is requested now."""
        if keep_alive and not can_renew(self._storage):
            raise InvalidInputError(f"{type(self._storage).__name__} cannot keep leases alive")
        return time.monotonic()

    def _client_options(
        self, options: LeaseOptions, retry_config: RetryConfig | None
    ) -> LeaseOptions:
        """Return the options of a client's lease: it is kept alive, and waited for."""
        waits = self._storage.can_wait and retry_config is None
        defaults: LeaseOptions = {"keep_alive": True, "wait_seconds": WAIT_S if waits else None}
        return {**defaults, **options}

    def _check_wait(self, request: Request) -> None:
        if request.wait_seconds and not self._storage.can_wait:
            raise InvalidInputError(f"{type(self._storage).__name__} cannot wait for a proxy")

    def _check_sticky(self, request: AcquireRequest) -> None:
        if request.sticky is not None and not self._storage.can_stick:
            raise InvalidInputError(CANNOT_KEEP_SESSIONS.format(type(self._storage).__name__))

    def _check_fallback(self, request: Request) -> None:
        if request.fallback and not self._storage.can_fall_back:
            raise InvalidInputError(CANNOT_FALL_BACK.format(type(self._storage).__name__))

    def _hold(
        self,
        acquisitions: Sequence[Acquisition],
        request: Request,
        begun: float,
        *,
        keep_alive: bool,
    ) -> Calls[None]:
        """Let granted leases count from the moment of the request, and keep them alive."""
        granted = [(each.lease, each.is_new) for each in acquisitions if each.lease is not None]
        if acquisitions and acquisitions[0].counts_from is not None:  # It waited until then.
            begun = acquisitions[0].counts_from
        for lease, is_new in granted:
            if is_new:
                lease.count_down(begun + _granted_for_s(lease, request))
        if not keep_alive or not granted:
            return
        if old := [lease for lease, is_new in granted if not is_new]:
            # An earlier call was granted them, so they end earlier than this request says.
            begun = time.monotonic()
            yield from self._renewing(old, _asked_s(request))
        owner = Owner(self._on_lost, self._cleaning_up)
        for lease, _ in granted:
            self._keeper().keep(lease, begun, _granted_for_s(lease, request), owner)

    def _on_lost(self, lease: Lease, error: LeaseLostError) -> None:
        """Notify the callbacks that a lease is lost."""
        if self._lost_callbacks:
            payload = LostEventPayload(lease=lease, pool_name=lease.pool_name, reason=str(error))
            self._run_later(self._notify_lost(payload))

    def _notify_lost(self, payload: LostEventPayload) -> Calls[None]:
        _log((yield from self._notify("lost", self._lost_callbacks, [payload])))

    def _leasing(self, command: str, request: Request) -> Calls[Any]:
        """Have the storage carry out an acquisition, and notify the callbacks of the outcome."""
        started_at = utc_now()
        ends = [watcher(request.pool_name) for watcher in self._watchers]
        try:
            outcome = yield partial(getattr(self._storage, command), request)
        except asyncio.CancelledError as cancelled:
            # The storage gave back what it had granted; expiries on the way are committed.
            for late in outcome_of(cancelled, command):
                _log((yield from self._notify_expired(late.expired)))
            raise
        except (ConflictError, LeaseEndedError) as refused:
            _log((yield from self._notify_expired(refused.data.get("expired", ()))))
            raise
        finally:
            for end in ends:
                end()
        if request.with_stats:
            yield from self._notify_acquired(request, outcome, started_at)
        return outcome

    def _notify_acquired(
        self, request: Request, outcome: Acquisition | SetAcquisition, started_at: datetime
    ) -> Calls[None]:
        """Notify the callbacks of an acquisition; if one fails, release the leases and raise."""
        payloads = _acquire_payloads(request, outcome, started_at)
        leases = new_leases(outcome)
        try:
            errors: list[BaseException] = []
            if outcome.expired:
                errors += yield from self._notify_expired(outcome.expired)
            errors += yield from self._notify("acquire", self._acquire_callbacks, payloads)
        except GeneratorExit:
            raise
        except BaseException:  # such as KeyboardInterrupt: the caller will never see these leases
            if leases:
                yield partial(self._storage.return_leases, leases, reason=CALLBACK_FAILED)
            raise
        if errors and leases:
            reason = CANCELLED if _cancellation(errors) else CALLBACK_FAILED
            try:
                errors += yield from self._returning_all(leases, reason)
            except Exception as error:
                errors.append(error)
        _raise(errors)

    def _is_listened_to(self) -> bool:
        """Return whether a callback needs the statistics of an acquisition or of expiries."""
        return bool(self._acquire_callbacks or self._expire_callbacks)

    def _acquiring_again(
        self, arguments: AcquireArguments, config: RetryConfig, sleep: Callable[[float], Any]
    ) -> Calls[Lease | None]:
        """Lease a proxy, asking again after a pause while nothing is free."""
        positional = arguments[:5]
        options = if_given(
            lease_id=arguments.lease_id,
            keep_alive=arguments.keep_alive or None,
            wait_seconds=arguments.wait_seconds,
            target=arguments.target,
            sticky=arguments.sticky,
            fallback=arguments.fallback or None,
        )

        def attempt() -> Calls[Lease | None]:
            lease: Lease | None = yield partial(self.acquire_proxy, *positional, **options)
            return lease

        return (
            yield from retrying(attempt, config, sleep, is_enough=lambda lease: lease is not None)
        )

    def _releasing(self, lease: Lease, outcome: Outcome | Response | None = None) -> Calls[None]:
        """Report an outcome, give the lease back in any case, and notify the callbacks."""
        _raise((yield from self._returning(lease, outcome=outcome)))

    def _releasing_all(
        self, leases: Iterable[Lease], outcomes: Iterable[Outcome | Response | None] | None = None
    ) -> Calls[None]:
        """Report outcomes, give all leases back even if some fail, and notify the callbacks."""
        _raise((yield from self._returning_all(leases, outcomes=outcomes)))

    def _giving_up(self, lease: Lease) -> Calls[None]:
        """Release a lease that a cancelled task will never see; if that fails, it expires."""
        with given_up(lease):
            _log((yield from self._returning(lease, CANCELLED)))

    def _renewing(
        self, leases: Iterable[Lease], duration_seconds: float | None
    ) -> Calls[list[Lease]]:
        """Extend leases, and raise the errors of those that could not be extended."""
        requests = [RenewRequest(lease, duration_seconds) for lease in leases]
        begun = time.monotonic()
        outcomes: Sequence[Lease | PharoxError] = yield partial(
            self._storage.renew_leases, requests
        )
        for outcome in outcomes:
            if isinstance(outcome, Lease) and (seconds := renewed_for_s(outcome)) is not None:
                outcome.count_down(begun + seconds)
        raise_together([each for each in outcomes if isinstance(each, Exception)])
        return [each for each in outcomes if isinstance(each, Lease)]

    def _rotating(self, lease: Lease) -> Calls[Lease]:
        """Have a lease take another exit of its gateway."""
        check_lease(lease)
        gateway_exit, errors = yield from _to_the_end(
            "rotate_exit", partial(self._storage.rotate_exit, lease.id)
        )
        _raise(errors)
        lease.take_exit(gateway_exit)
        return lease

    def _rotating_proxy(
        self, proxy_id: UUID | str, within_seconds: float | None, fetch: Fetch, pause: Pause
    ) -> Calls[RotationAnswer]:
        """Have a proxy take another exit, and wait until it has or the bound."""
        uuid = id_from_text(proxy_id) or NIL
        _, errors = yield from _to_the_end(
            "begin_rotation", partial(self._storage.begin_rotation, uuid, within_seconds)
        )
        _raise(errors)
        answer = yield from rotating(self._storage, fetch, pause, uuid)
        return answer or RotationAnswer(RotationFailure.HELD)

    def _calling_due(self, fetch: Fetch) -> Calls[list[RotationAnswer]]:
        """Call all links that are due now."""
        return calling_due(self._storage, fetch)

    @abstractmethod
    def _rotator(self) -> Rotator:
        """Return what calls links of the storage in the background."""

    def _rotate_later(self, leases: Iterable[Lease]) -> None:
        """Have links called of proxies whose leases have ended, if their pools want it."""
        for lease in leases:
            if lease.rotates:
                self._rotator().note(lease.proxy_id)

    def _sessions(
        self, pool_name: str | None, after: StickySession | None, limit: int
    ) -> Calls[list[StickySession]]:
        """Return a page of the sticky sessions that live."""
        page = partial(self._storage.list_sessions, pool_name, after=after, limit=limit)
        found: list[StickySession] = yield page
        return found

    def _forgetting(self, pool_name: str, key: str) -> Calls[bool]:
        """End the binding of a sticky session's key. Return whether it was bound."""
        proxy_id, errors = yield from _to_the_end(
            "forget_session", partial(self._storage.forget_session, pool_name, key)
        )
        _raise(errors)
        return proxy_id is not None

    def _inheriting(self, pool_name: str, old: str, new: str) -> Calls[None]:
        """Have one key take over the binding of another."""
        yield partial(self._storage.inherit_session, pool_name, old, new)

    def _revoking(self, lease_ids: Iterable[UUID | str], reason: str) -> Calls[list[Lease]]:
        """Revoke leases, notify their holders in this process and the callbacks."""
        ids: Any = tuple(lease_ids)  # of which the request makes UUIDs
        request = RevokeRequest(ids, reason, bool(self._revoke_callbacks))
        outcomes: Sequence[EndedLease | PharoxError]
        outcomes, errors = yield from _to_the_end(
            "revoke_leases", partial(self._storage.revoke_leases, request)
        )
        ended = [outcome for outcome in outcomes if isinstance(outcome, EndedLease)]
        lose(self._storage, [ending.lease for ending in ended])
        errors += [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        errors += yield from self._notify("revoke", self._revoke_callbacks, map(_revoked, ended))
        _raise(errors)
        return [ending.lease for ending in ended]

    def _cleaning_up(self) -> Calls[int]:
        """Expire leases that have run out, notify the callbacks, and return the number."""
        wanted = bool(self._expire_callbacks)
        count: int
        (count, expired), errors = yield from _to_the_end(
            "expire_leases", partial(self._storage.expire_leases, with_stats=wanted)
        )
        errors += yield from self._notify_expired(expired)
        _raise(errors)
        return count

    def _recording(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None
    ) -> Calls[Sequence[HealthOutcome]]:
        """Record health checks and notify the callbacks."""
        outcomes: Sequence[HealthOutcome]
        outcomes, errors = yield from _to_the_end(
            "record_health_checks", partial(self._storage.record_health_checks, results, policy)
        )
        errors += yield from self._notify_health(outcomes)
        _raise(errors)
        return outcomes

    def _returning(
        self, lease: Lease, reason: str | None = None, outcome: Outcome | Response | None = None
    ) -> Calls[list[BaseException]]:
        """Give a lease back, notify the callbacks, and return what they raised."""
        check_lease(lease)
        check_said(outcome)
        reported: list[BaseException] = []
        if outcome is not None or has_reports(self._storage, lease.proxy_id):
            reported = yield from self._reporting_at_the_end([lease], [outcome])
        let_go(self._storage, [lease.id])
        started_at = utc_now()
        try:
            returned, errors = yield from _to_the_end(
                "return_lease",
                partial(
                    self._storage.return_lease,
                    lease,
                    reason=reason,
                    with_stats=self._is_release_listened_to(),
                ),
            )
        except Exception as error:
            raise _with_reports(error, reported) from error.__cause__
        self._rotate_later([lease])
        errors += yield from self._notify_returned([returned], started_at)
        return reported + errors

    def _returning_all(
        self,
        leases: Iterable[Lease],
        reason: str | None = None,
        outcomes: Iterable[Outcome | Response | None] | None = None,
    ) -> Calls[list[BaseException]]:
        """Give leases back, notify the callbacks, and return all errors."""
        wanted = self._is_release_listened_to()
        requests = [ReleaseRequest(lease, reason, wanted) for lease in leases]
        given = outcomes_for(requests, outcomes)
        if len(requests) == 1:  # A single release may have a faster path.
            return (yield from self._returning(requests[0].lease, reason, given[0]))
        reported = yield from self._reporting_at_the_end(
            [request.lease for request in requests], given
        )
        let_go(self._storage, [request.lease.id for request in requests])
        started_at = utc_now()
        try:
            released, errors = yield from _to_the_end(
                "run_batch", partial(self._storage.run_batch, requests)
            )
        except Exception as error:
            raise _with_reports(error, reported) from error.__cause__
        self._rotate_later(request.lease for request in requests)
        errors += [each for each in released if isinstance(each, Exception)]
        returned = [each for each in released if not isinstance(each, Exception)]
        errors += yield from self._notify_returned(returned, started_at)
        return reported + errors

    def _is_release_listened_to(self) -> bool:
        """Return whether a callback needs the statistics of a release or of expiries."""
        return bool(self._release_callbacks or self._expire_callbacks)

    def _notify_returned(
        self, returned: Sequence[ReleaseResult], started_at: datetime
    ) -> Calls[list[BaseException]]:
        errors: list[BaseException] = []
        if expired := [ended for each in returned for ended in each.expired]:
            errors += yield from self._notify_expired(expired)
        if self._release_callbacks:
            endings = [each.ending for each in returned if each.ending is not None]
            payloads = [_release_payload(ending, started_at) for ending in endings]
            errors += yield from self._notify("release", self._release_callbacks, payloads)
        return errors

    def _notify_expired(self, expired: Sequence[EndedLease]) -> Calls[list[BaseException]]:
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
        return (yield from self._notify("expire", self._expire_callbacks, payloads))

    def _notify_outcomes(self, reports: Sequence[tuple[ReportRequest, Reported]]) -> Calls[None]:
        """Notify the callbacks of outcomes that were recorded, and log what they raise."""
        if not self._outcome_callbacks:
            return
        payloads = (
            built(
                OutcomeEventPayload,
                {
                    "lease": request.lease,
                    "pool_name": request.lease.pool_name,
                    "outcome": request.outcome,
                    "target": reported.target,
                    "cools_until": reported.cools_until,
                },
            )
            for request, reported in reports
        )
        errors = yield from self._notify("outcome", self._outcome_callbacks, payloads)
        _log(errors)
        if (cancellation := _cancellation(errors)) is not None:
            raise cancellation

    def _notify_health(self, outcomes: Sequence[HealthOutcome]) -> Calls[list[BaseException]]:
        if not self._health_callbacks:
            return []
        names = {outcome.pool_name for outcome in outcomes if outcome.pool_name is not None}
        stats: dict[str | None, PoolStatsSnapshot | None] = {}
        errors: list[BaseException] = []
        for name in sorted(names):
            try:
                stats[name] = yield partial(self._storage.get_pool_stats, name)
            except (Exception, asyncio.CancelledError) as error:
                errors.append(error)  # The check is recorded; its callbacks get no statistics.
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
        errors += yield from self._notify("health", self._health_callbacks, payloads)
        return errors

    def _notify(
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
                    errors += yield from self._notify_failure(what, callback, payload, error)
        return errors

    def _notify_failure(
        self, what: str, callback: Callable[..., Any], payload: Any, error: BaseException
    ) -> Calls[list[BaseException]]:
        """Notify the failure callbacks; return a cancellation that came meanwhile."""
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
                logger.exception("pharox.callback.failed: while it was notified of a failure")
        return cancelled


def fleet_subscriptions() -> ModuleType:
    """Return the module that makes subscriptions of callbacks.

    Raises
    ------
    InvalidInputError
        If the extra ``postgres`` is not installed.
    """
    try:
        from ..ledger.subscriptions import fleet  # noqa: PLC0415 - it needs the driver
    except ModuleNotFoundError as error:
        raise InvalidInputError(
            "subscriptions are kept in PostgreSQL: pip install 'pharox[postgres]'"
        ) from error
    return fleet


def _asked_s(request: Request) -> float | None:
    """Return how long a lease was asked for, in seconds; None if that was left to the pool."""
    seconds = request.duration_seconds
    return None if isinstance(seconds, DefaultSeconds) else float(seconds)


def _granted_for_s(lease: Lease, request: Request) -> float:
    """Return how long a lease lasts from its acquisition or last renewal, in seconds."""
    asked = _asked_s(request)
    if asked is not None:
        return asked
    return (lease.expires_at - (lease.renewed_at or lease.acquired_at)).total_seconds()


def _acquire_payloads(
    request: Request, outcome: Acquisition | SetAcquisition, started_at: datetime
) -> list[AcquireEventPayload]:
    """Return a payload for each lease, or one for a miss."""
    completed_at = utc_now()
    pool_name = request.pool_name
    if request.fallback:
        tried = (missed.pool_name for missed in outcome.missed_in)
        granted = (str(lease.pool_name) for lease in _leases_of(outcome))
        pool_name = next(granted, next(tried, pool_name))
    common = {
        "pool_name": pool_name,
        "consumer_name": request.consumer_name,
        "filters": request.filters,
        "selector": outcome.selector or request.selector or SelectorStrategy.FIRST_AVAILABLE,
        "started_at": started_at,
        "completed_at": completed_at,
        "duration_ms": max(0, int((completed_at - started_at).total_seconds() * 1000)),
        "miss_reason": outcome.miss_reason,
        "waited_ms": outcome.waited_ms,
        "fallback_from": () if outcome.miss_reason is not None else outcome.missed_in,
    }
    if isinstance(outcome, SetAcquisition):
        hits = [(each.lease, each.stats) for each in outcome.acquisitions]
        results = hits or [(None, outcome.stats)]
    else:
        results = [(outcome.lease, outcome.stats)]
    return [
        built(AcquireEventPayload, {"lease": lease, **common, "pool_stats": stats})
        for lease, stats in results
    ]


def _leases_of(outcome: Acquisition | SetAcquisition) -> list[Lease]:
    """Return the leases of an outcome, whenever they were granted."""
    parts = (outcome,) if isinstance(outcome, Acquisition) else outcome.acquisitions
    return [each.lease for each in parts if each.lease is not None]


def _release_payload(ending: EndedLease, started_at: datetime) -> ReleaseEventPayload:
    ended, now = ending.lease, utc_now()
    return built(
        ReleaseEventPayload,
        {
            "lease": ended,
            "pool_name": ended.pool_name,
            "released_at": ended.released_at or now,
            "lease_duration_ms": ended.duration_ms,
            "pool_stats": ending.stats,
            "reason": ending.reason,
            "started_at": started_at,
            "completed_at": now,
        },
    )


def _revoked(ending: EndedLease) -> RevokeEventPayload:
    lease = ending.lease
    return RevokeEventPayload(
        lease=lease,
        pool_name=lease.pool_name,
        revoked_at=lease.released_at or utc_now(),
        lease_duration_ms=lease.duration_ms,
        pool_stats=ending.stats,
        reason=ending.reason or "",
    )


def retrying(
    attempt: Callable[[], Calls[P]],
    config: RetryConfig,
    sleep: Callable[[float], Any],
    *,
    is_enough: Callable[[P], bool],
) -> Calls[P]:
    """Make an attempt, and further ones after pauses until one is enough."""
    found = yield from attempt()
    for delay in config.delays():
        if is_enough(found):
            break
        # Even for zero seconds: other tasks get a turn.
        yield partial(sleep, delay)
        found = yield from attempt()
    return found


def releasing_after(
    error: BaseException, release: Callable[[Any], Any], held: Lease | Sequence[Lease] | None
) -> Calls[None]:
    """Release after the caller's block failed; the block's exception takes precedence."""
    if not held:
        return
    try:
        yield partial(release, held)
    except Exception as failure:
        leases = [held] if isinstance(held, Lease) else held
        named = f"lease {', '.join(str(lease.id) for lease in leases)}"
        logger.exception("pharox.release.failed: %s", named)
        error.add_note(f"releasing {named} failed too: {failure!r}")


def lost_of(held: Lease | Sequence[Lease] | None) -> LeaseLostError | None:
    """Return the error for the first kept lease that is lost. Warn of others that have run out.

    It must be called before they are released.
    """
    leases = [held] if isinstance(held, Lease) else held or ()
    for lease in leases:
        if not lease.is_lost:
            continue
        if is_kept(lease):
            return lost_error(lease)
        logger.warning(
            "pharox.lease.outlived: lease %s ran out before its block ended; use a longer "
            "duration_seconds, or keep_alive=True",
            lease.id,
            extra={"lease_id": str(lease.id), "pool": lease.pool_name},
        )
    return None


def _with_reports(error: Exception, reported: Sequence[BaseException]) -> BaseException:
    """Return the exception of a release, with notes of what went wrong with reports before it.

    A cancellation takes precedence.
    """
    for each in reported:
        error.add_note(f"reporting an outcome failed too: {each!r}")
    cancellation = _cancellation(reported)
    if cancellation is not None:
        _log([error])
    return cancellation or error


def outcomes_for(
    releases: Sequence[object], outcomes: Iterable[Outcome | Response | None] | None
) -> list[Outcome | Response | None]:
    """Return an outcome or None for each release; raises :class:`InvalidInputError`."""
    if outcomes is None:
        return [None] * len(releases)
    given = [*outcomes] if isinstance(outcomes, Iterable) else [outcomes]
    for said in given:
        check_said(said)
    if len(given) != len(releases):
        raise InvalidInputError(
            f"outcomes must be one for each lease, or None: {len(given)} for {len(releases)} leases"
        )
    return given


def _to_the_end(
    command: str, arguments: Callable[[], Any]
) -> Calls[tuple[Any, list[BaseException]]]:
    """Return a command's outcome, with a cancellation that came too late to stop it."""
    try:
        return (yield arguments), []
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
    raise_together(errors, "several callbacks or releases failed")


def _log(errors: Sequence[BaseException]) -> None:
    """Log what callbacks raised, as the caller gets a cancellation instead."""
    for error in errors:
        if isinstance(error, Exception):
            logger.error("pharox.callback.failed: %s", error, exc_info=error)
