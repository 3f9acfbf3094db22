"""What a storage adapter does.

The abstract methods are those of 0.11.0, so an adapter written for it works
unchanged. The manager itself calls three more: :meth:`IStorage.acquire_lease`,
:meth:`IStorage.return_lease` and :meth:`IStorage.expire_leases`. Here they are
written with the abstract ones; an adapter that can decide in one go overrides
them, as both of ours do.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar, cast
from uuid import UUID

from pydantic import BaseModel, ValidationError

from ..errors import ConflictError, InvalidInputError, PoolNotFoundError, ProxyNotFoundError
from ..events import EventBase, HealthChecked
from ..ids import health_record_id
from ..models import (
    MAX_DURATION_S,
    HealthCheckResult,
    HealthPolicy,
    Lease,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    check_text,
    utc_now,
)

M = TypeVar("M", bound=BaseModel)
logger = logging.getLogger("pharox")


@dataclass(frozen=True, slots=True)
class AcquireRequest:
    """What a consumer asks for. ``duration_seconds`` is the lease's length."""

    pool_name: str
    consumer_name: str
    duration_seconds: float = 300
    filters: ProxyFilters | None = None
    selector: SelectorStrategy = SelectorStrategy.FIRST_AVAILABLE
    with_stats: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "selector", SelectorStrategy(self.selector))


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
    were taken back on the way.
    """

    lease: Lease | None
    miss_reason: MissReason | None = None
    stats: PoolStatsSnapshot | None = None
    expired: Sequence[Ending] = field(default=())


@dataclass(frozen=True, slots=True)
class HealthOutcome:
    """What recording a health check came to.

    ``known`` is False if there is no such proxy; then nothing was recorded.
    ``result`` is dated by the storage's clock if it came from the future.
    ``lease_ids`` are the leases held on a proxy that it made unleasable.
    """

    result: HealthCheckResult
    known: bool = True
    applied: bool = False
    status_before: ProxyStatus | None = None
    status_after: ProxyStatus | None = None
    pool_name: str | None = None
    leases: int = 0
    lease_ids: tuple[UUID, ...] = ()


class IStorage(ABC):
    """Keeps pools, proxies, consumers, leases and health, and decides who gets what."""

    @abstractmethod
    def find_available_proxy(
        self,
        pool_name: str,
        filters: ProxyFilters | None = None,
        selector: SelectorStrategy | None = None,
    ) -> Proxy | None:
        """Return the proxy that the selector offers next, without leasing it.

        ROUND_ROBIN moves its cursor by this alone.

        Parameters
        ----------
        pool_name:
            The pool's unique name; an unknown one offers nothing.
        filters:
            What the proxy must match.
        selector:
            The order of offering; FIRST_AVAILABLE if None.
        """

    @abstractmethod
    def create_lease(self, proxy: Proxy, consumer_name: str, duration_seconds: int) -> Lease:
        """Lease this very proxy.

        Parameters
        ----------
        proxy:
            Only its id counts.
        consumer_name:
            Who leases; registered on first use.
        duration_seconds:
            The lease's length in seconds.

        Raises
        ------
        InvalidLeaseError
            If the duration makes no sense.
        ProxyNotFoundError
            If there is no such proxy (any more).
        ProxyUnavailableError
            If it is at capacity or not healthy.
        """

    @abstractmethod
    def ensure_consumer(self, consumer_name: str) -> UUID:
        """Return the consumer's id, registering the name if it is new."""

    @abstractmethod
    def release_lease(self, lease: Lease) -> None:
        """End a lease. Only its id counts; one that has ended already stays as it is."""

    @abstractmethod
    def cleanup_expired_leases(self) -> int:
        """Take back every proxy whose lease has run out, and return how many leases did."""

    @abstractmethod
    def apply_health_check_result(self, result: HealthCheckResult) -> Proxy | None:
        """Record a health check and return the proxy as it then stands; None if unknown.

        A result older than the newest one is recorded and changes nothing, and
        no result lifts a ban.
        """

    @abstractmethod
    def get_last_health_result(self, proxy_id: UUID) -> HealthCheckResult | None:
        """Return the newest health check of a proxy, or None if there was none."""

    @abstractmethod
    def get_pool_stats(self, pool_name: str) -> PoolStatsSnapshot | None:
        """Return a pool in numbers, or None if there is no such pool."""

    @abstractmethod
    def add_proxies_bulk(self, proxies: Sequence[Proxy]) -> int:
        """Register many proxies at once: all of them or, on an error, none.

        Those whose id is registered already are left as they are.

        Returns
        -------
        int
            How many were new.

        Raises
        ------
        PoolNotFoundError
            If any proxy's pool does not exist.
        """

    @abstractmethod
    def save_pool(self, pool: ProxyPool) -> None:
        """Register a pool, or change the one of this id."""

    @abstractmethod
    def get_pool(self, pool_id: str) -> ProxyPool:
        """Return a pool by the text of its id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def list_pools(self) -> Sequence[ProxyPool]:
        """Return all pools, by name."""

    @abstractmethod
    def delete_pool(self, pool_id: str) -> None:
        """Remove a pool, its proxies and their leases; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def save_proxy(self, proxy: Proxy) -> None:
        """Register a proxy, or change the one of this id; its leases stay as they are.

        Raises
        ------
        PoolNotFoundError
            If the proxy's pool does not exist.
        """

    @abstractmethod
    def get_proxy(self, proxy_id: str) -> Proxy:
        """Return a proxy by the text of its id; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def list_proxies(self, pool_id: str) -> Sequence[Proxy]:
        """Return a pool's proxies, by id; raises :class:`PoolNotFoundError`."""

    @abstractmethod
    def delete_proxy(self, proxy_id: str) -> None:
        """Remove a proxy and release its leases; raises :class:`ProxyNotFoundError`."""

    @abstractmethod
    def get_lease(self, lease_id: str) -> Lease | None:
        """Return a lease by the text of its id, or None."""

    @abstractmethod
    def list_leases(self, consumer_id: str | None = None) -> Sequence[Lease]:
        """Return leases, oldest first, of one consumer (the text of its id) or of all."""

    @abstractmethod
    def save_health_record(self, record: ProxyHealthRecord) -> None:
        """Record an observation made elsewhere; it does not change the proxy's status."""

    @abstractmethod
    def list_health_records(self, proxy_id: UUID, limit: int = 100) -> Sequence[ProxyHealthRecord]:
        """Return the newest health checks of a proxy, newest first."""

    def acquire_lease(self, request: AcquireRequest) -> Acquisition:
        """Find a proxy and lease it.

        This default asks :meth:`find_available_proxy` and :meth:`create_lease`
        in turn, so between the two another caller can be quicker; an adapter
        that cannot decide in one go pays for that with
        :class:`ProxyUnavailableError`.
        """
        self.ensure_consumer(request.consumer_name)
        self.cleanup_expired_leases()
        proxy = self.find_available_proxy(request.pool_name, request.filters, request.selector)
        lease = proxy and self.create_lease(
            proxy,
            request.consumer_name,
            request.duration_seconds,  # type: ignore[arg-type]
        )
        stats = self.get_pool_stats(request.pool_name) if request.with_stats else None
        return Acquisition(lease=lease or None, stats=stats)

    def record_health_checks(
        self, results: Sequence[HealthCheckResult], policy: HealthPolicy | None = None
    ) -> Sequence[HealthOutcome]:
        """Record health checks; return what each came to, in their order.

        Those of one proxy are recorded in the order in which they are given.
        This default asks :meth:`apply_health_check_result` for one after the
        other. It cannot count results in a row.

        Parameters
        ----------
        results:
            Any number, of any proxies; unknown ones have an outcome that says so.
        policy:
            When results become a status; every one at once if None.

        Raises
        ------
        InvalidInputError
            If this storage cannot follow the policy.
        """
        if policy not in (None, HealthPolicy()):
            raise InvalidInputError(
                f"{type(self).__name__} counts no results in a row; it takes the default policy"
            )
        return [self._apply_one(result) for result in results]

    def _apply_one(self, result: HealthCheckResult) -> HealthOutcome:
        try:
            before = self.get_proxy(str(result.proxy_id)).status
        except ProxyNotFoundError:
            return HealthOutcome(result, known=False)
        proxy = self.apply_health_check_result(result)
        if proxy is None:
            return HealthOutcome(result, known=False)
        return HealthOutcome(
            result,
            applied=self.get_last_health_result(proxy.id) == result,
            status_before=before,
            status_after=proxy.status,
            pool_name=self.get_pool(str(proxy.pool_id)).name,
            leases=proxy.current_leases,
        )

    def set_status(
        self, proxy_id: UUID, status: ProxyStatus, *, reason: str | None = None
    ) -> Proxy:
        """Decide a proxy's status, as a person does: also lift or lay a ban.

        This default has nowhere to keep the ``reason``.

        Raises
        ------
        ProxyNotFoundError
            If there is no such proxy.
        """
        check_reason(reason)
        proxy = self.get_proxy(str(proxy_id))
        proxy.status = check_status(status)
        self.save_proxy(proxy)
        return proxy

    def load_proxies_for_healthchecks(
        self,
        pool_name: str | None = None,
        *,
        stale_after: timedelta | float | None = None,
        statuses: Collection[ProxyStatus] | None = None,
    ) -> Iterator[Proxy]:
        """Yield the proxies that are due to be checked, by id within each pool.

        Parameters
        ----------
        pool_name:
            Only of this pool; of all if None.
        stale_after:
            Only those not checked for so long (seconds), or never.
        statuses:
            Only those with one of these; all but BANNED if None.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool.
        InvalidInputError
            If ``stale_after`` or a status makes no sense.
        """
        age, wanted = check_age(stale_after), check_statuses(statuses)
        pools = self._pools_named(pool_name)
        return (
            proxy
            for pool in pools
            for proxy in self.list_proxies(str(pool.id))
            if proxy.status in wanted and self._is_stale(proxy, age)
        )

    def _pools_named(self, pool_name: str | None) -> Sequence[ProxyPool]:
        """Return the pool of this name, or all if None."""
        return pool_named(pool_name, self.list_pools())

    def _is_stale(self, proxy: Proxy, age: timedelta | None) -> bool:
        last = None if age is None else self.get_last_health_result(proxy.id)
        return age is None or last is None or last.checked_at <= utc_now() - age

    def return_lease(
        self, lease: Lease, *, reason: str | None = None, with_stats: bool = False
    ) -> Return:
        """Release a lease and tell what came of it.

        ``lease`` ends with the recorded status and ``released_at`` either way.
        """
        recorded = self.get_lease(str(lease.id))
        was_active = recorded is not None and recorded.status is LeaseStatus.ACTIVE
        if was_active:
            self.release_lease(lease)
            recorded = self.get_lease(str(lease.id))
        copy_ending(recorded, lease)
        if not was_active or recorded is None:
            log_late_release(lease, recorded)
            return Return(None)
        name = recorded.pool_name if with_stats else None
        return Return(Ending(lease, self.get_pool_stats(name) if name else None, reason))

    def expire_leases(self, *, with_stats: bool = False) -> tuple[int, Sequence[Ending]]:
        """Take back what has run out; return how many leases did, and those it can tell of."""
        return self.cleanup_expired_leases(), ()


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
