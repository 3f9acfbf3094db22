"""ProxyManager: lease, release, and tell whoever listens.

The storage decides and records; the manager adds defaults, retries, context
managers and callbacks. A callback is told of what this manager appended, after
it is committed. One that raises keeps neither the ledger nor the other
callbacks from their work: all of them run, then the exception reaches the
caller (several as an ``ExceptionGroup``), and a lease that the failed call had
been granted has been given back by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from uuid import UUID

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
from .storage.interface import AcquireRequest, Ending, HealthOutcome, IStorage

if TYPE_CHECKING:
    from .ledger.subscriptions import BoundSubscription

P = TypeVar("P")
logger = logging.getLogger("pharox")

CALLBACK_FAILED = "callback failed"
"""The reason of a release that a failing callback caused."""


class ProxyManager:
    """Leases proxies of a storage's pools.

    Keeps no state but the registered callbacks, so threads can share one.

    Parameters
    ----------
    storage:
        Where the ledger is kept.
    """

    DEFAULT_CONSUMER_NAME = "default"

    def __init__(self, storage: IStorage) -> None:
        self._storage = storage
        self._acquire_callbacks: list[Callable[[AcquireEventPayload], None]] = []
        self._release_callbacks: list[Callable[[ReleaseEventPayload], None]] = []
        self._expire_callbacks: list[Callable[[ExpireEventPayload], None]] = []
        self._health_callbacks: list[Callable[[HealthEventPayload], None]] = []

    @property
    def storage(self) -> IStorage:
        """Where the ledger is kept."""
        return self._storage

    def acquire_proxy(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = 300,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Lease | None:
        """Lease a proxy of a pool.

        Parameters
        ----------
        pool_name:
            The pool; an unknown one is a miss.
        consumer_name:
            Who leases, registered on first use; "default" if None.
        duration_seconds:
            How long the lease may last.
        filters:
            What the proxy must match.
        selector:
            Which of several; FIRST_AVAILABLE if None.

        Returns
        -------
        Lease or None
            None if nothing was free; the ``AcquireMissed`` in the log says why.

        Raises
        ------
        InvalidLeaseError
            If the duration makes no sense.
        InvalidInputError
            If a name is empty or cannot be stored.
        """
        check_duration(duration_seconds)
        strategy = SelectorStrategy(selector or SelectorStrategy.FIRST_AVAILABLE)
        request = AcquireRequest(
            pool_name=pool_name,
            consumer_name=consumer_name or self.DEFAULT_CONSUMER_NAME,
            duration_seconds=duration_seconds,
            filters=filters,
            selector=strategy,
            with_stats=bool(self._acquire_callbacks or self._expire_callbacks),
        )
        started_at = utc_now()
        acquisition = self._storage.acquire_lease(request)
        lease = acquisition.lease
        if not request.with_stats:
            return lease
        completed_at = utc_now()
        payload = AcquireEventPayload(
            lease=lease,
            pool_name=pool_name,
            consumer_name=request.consumer_name,
            filters=filters,
            selector=strategy,
            started_at=started_at,
            completed_at=completed_at,
            duration_ms=max(0, int((completed_at - started_at).total_seconds() * 1000)),
            pool_stats=acquisition.stats,
            miss_reason=acquisition.miss_reason,
        )
        try:
            errors = self._tell_expired(acquisition.expired)
            errors += _tell(self._acquire_callbacks, [payload])
        except BaseException:  # such as KeyboardInterrupt: the caller will never see this lease
            if lease is not None:
                self._storage.return_lease(lease, reason=CALLBACK_FAILED)
            raise
        if errors and lease is not None:
            errors += self._return(lease, reason=CALLBACK_FAILED)
        _raise(errors)
        return lease

    def acquire_proxy_with_retry(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = 300,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], None] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
    ) -> Lease | None:
        """Lease a proxy, asking again after a pause while nothing is free.

        Parameters
        ----------
        pool_name, consumer_name, duration_seconds, filters, selector:
            As for :meth:`acquire_proxy`.
        retry_config:
            How often and how long, instead of the four parameters below.
        sleep_fn:
            Waits for so many seconds; ``time.sleep`` if None.
        max_attempts:
            How often to ask at most.
        backoff_seconds:
            The first pause.
        backoff_multiplier:
            How much longer each further pause is.
        max_backoff_seconds:
            The longest pause.

        Raises
        ------
        ValueError
            If these make no sense.
        """
        config = retry_config or RetryConfig(
            max_attempts=max_attempts,
            backoff_seconds=backoff_seconds,
            backoff_multiplier=backoff_multiplier,
            max_backoff_seconds=max_backoff_seconds,
        )
        sleep = sleep_fn or time.sleep
        ask = (pool_name, consumer_name, duration_seconds, filters, selector)
        lease = self.acquire_proxy(*ask)
        for delay in config.delays():
            if lease is not None:
                break
            if delay > 0:
                sleep(delay)
            lease = self.acquire_proxy(*ask)
        return lease

    def release_proxy(self, lease: Lease) -> None:
        """Give a lease back.

        Only its id counts. ``lease`` ends with the status and ``released_at``
        that the ledger recorded; if it had ended before, that is all that
        happens, with a warning in the log.

        Parameters
        ----------
        lease:
            What :meth:`acquire_proxy` returned.
        """
        _raise(self._return(lease))

    def cleanup_expired_leases(self) -> int:
        """Take back the proxies of all leases that have run out.

        Returns
        -------
        int
            How many leases this call ended.
        """
        count, expired = self._storage.expire_leases(with_stats=bool(self._expire_callbacks))
        _raise(self._tell_expired(expired))
        return count

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks, those of one proxy in their order, and tell the callbacks.

        Parameters
        ----------
        results:
            Any number, of any proxies.
        policy:
            When results become a status; every one at once if None.

        Returns
        -------
        Sequence of HealthOutcome
            What each came to, also that a proxy is unknown.
        """
        outcomes = self._storage.record_health_checks(results, policy)
        _raise(self._tell_health(outcomes))
        return outcomes

    @contextmanager
    def with_lease(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = 300,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Iterator[Lease | None]:
        """Lease a proxy for a block; yields None if nothing was free.

        Parameters are those of :meth:`acquire_proxy`. An exception of the
        block is never replaced by one of a callback.
        """
        lease = self.acquire_proxy(pool_name, consumer_name, duration_seconds, filters, selector)
        with self._held(lease):
            yield lease

    @contextmanager
    def with_retrying_lease(
        self,
        pool_name: str,
        consumer_name: str | None = None,
        duration_seconds: int = 300,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
        retry_config: RetryConfig | None = None,
        sleep_fn: Callable[[float], None] | None = None,
        max_attempts: int = 3,
        backoff_seconds: float = 0.5,
        backoff_multiplier: float = 2.0,
        max_backoff_seconds: float | None = None,
    ) -> Iterator[Lease | None]:
        """Lease a proxy for a block, with the retries of :meth:`acquire_proxy_with_retry`."""
        lease = self.acquire_proxy_with_retry(
            pool_name,
            consumer_name,
            duration_seconds,
            filters,
            selector,
            retry_config,
            sleep_fn,
            max_attempts,
            backoff_seconds,
            backoff_multiplier,
            max_backoff_seconds,
        )
        with self._held(lease):
            yield lease

    def register_acquire_callback(self, callback: Callable[[AcquireEventPayload], None]) -> None:
        """Have ``callback`` told of every attempt to lease, hit or miss."""
        self._acquire_callbacks.append(callback)

    def register_release_callback(self, callback: Callable[[ReleaseEventPayload], None]) -> None:
        """Have ``callback`` told of every lease that this manager releases."""
        self._release_callbacks.append(callback)

    def register_expire_callback(self, callback: Callable[[ExpireEventPayload], None]) -> None:
        """Have ``callback`` told of every lease that this manager finds to have run out."""
        self._expire_callbacks.append(callback)

    def register_health_callback(self, callback: Callable[[HealthEventPayload], None]) -> None:
        """Have ``callback`` told of every health check that this manager records.

        Its ``lease_ids`` are the leases whose proxy has just become unleasable.
        """
        self._health_callbacks.append(callback)

    def subscribe(
        self,
        name: str | None = None,
        *,
        on_acquire: Callable[[AcquireEventPayload], Any] | None = None,
        on_release: Callable[[ReleaseEventPayload], Any] | None = None,
        on_expire: Callable[[ExpireEventPayload], Any] | None = None,
        on_health: Callable[[HealthEventPayload], Any] | None = None,
        start: Literal["beginning", "now"] | int = "now",
        pool: str | UUID | None = None,
    ) -> BoundSubscription:
        """Have callbacks told of what any manager does, from the log.

        They get what registered callbacks get, in the order of the log, with the
        pool's statistics exactly as they were. The times are those of the log;
        it does not know when an attempt began.

        Parameters
        ----------
        name:
            The subscription's; another process goes on under it where this one
            ended. If None, it is forgotten when it ends.
        on_acquire, on_release, on_expire, on_health:
            What to call; coroutine functions need ``run_async``.
        start:
            Where a new name begins: "beginning", "now", or with the event of a seq.
        pool:
            Only this pool, by its name, or its id as UUID.

        Returns
        -------
        BoundSubscription
            Nothing is read before ``with ...running():``, ``run()`` or ``run_async()``.

        Raises
        ------
        InvalidInputError
            If the storage is not in PostgreSQL, or there is no callback.
        """
        try:
            from .ledger.subscriptions.fleet import (  # noqa: PLC0415 - it needs the driver
                fleet_subscription,
            )
        except ModuleNotFoundError as error:
            raise InvalidInputError(
                "subscriptions are kept in PostgreSQL: pip install 'pharox[postgres]'"
            ) from error
        callbacks = {
            "on_acquire": on_acquire,
            "on_release": on_release,
            "on_expire": on_expire,
            "on_health": on_health,
        }
        return fleet_subscription(self._storage, name, callbacks, start=start, pool=pool)

    @contextmanager
    def _held(self, lease: Lease | None) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if lease is not None:
                self._release_after(error, lease)
            raise
        if lease is not None:
            self.release_proxy(lease)

    def _release_after(self, error: BaseException, lease: Lease) -> None:
        """Release because the block failed; the block's exception is the one that counts."""
        try:
            self.release_proxy(lease)
        except Exception as failure:
            logger.exception("pharox.release.failed: lease %s", lease.id)
            error.add_note(f"releasing lease {lease.id} failed too: {failure!r}")

    def _return(self, lease: Lease, reason: str | None = None) -> list[Exception]:
        """Give a lease back, tell the callbacks, and return what they raised."""
        wanted = bool(self._release_callbacks or self._expire_callbacks)
        returned = self._storage.return_lease(lease, reason=reason, with_stats=wanted)
        errors = self._tell_expired(returned.expired)
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
        return errors + _tell(self._release_callbacks, [payload])

    def _tell_expired(self, expired: Sequence[Ending]) -> list[Exception]:
        if not self._expire_callbacks:
            return []
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
        return _tell(self._expire_callbacks, payloads)

    def _tell_health(self, outcomes: Sequence[HealthOutcome]) -> list[Exception]:
        if not self._health_callbacks:
            return []
        names = {outcome.pool_name for outcome in outcomes if outcome.pool_name is not None}
        stats: dict[str | None, PoolStatsSnapshot | None] = {
            name: self._storage.get_pool_stats(name) for name in names
        }
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
        return _tell(self._health_callbacks, payloads)


def _tell(callbacks: Sequence[Callable[[P], None]], payloads: Iterable[P]) -> list[Exception]:
    """Call every callback with every payload, in order, and return what they raised."""
    errors: list[Exception] = []
    for payload in payloads:
        for callback in tuple(callbacks):
            try:
                callback(payload)
            except Exception as error:
                errors.append(error)
    return errors


def _raise(errors: Sequence[Exception]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("several callbacks failed", errors)
