"""Validate the arguments of callers before a storage is called."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import NamedTuple, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError

from ..effects import is_async
from ..errors import (
    ConflictError,
    InvalidInputError,
    LeaseEndedError,
    PoolNotFoundError,
    SessionNotFoundError,
)
from ..models import (
    MAX_DURATION_S,
    Lease,
    Proxy,
    ProxyPool,
    ProxyStatus,
    StickySession,
    TargetOutcomes,
    TargetSummary,
    check_name,
    check_pause,
    check_text,
    check_whole,
    target_of,
)
from ..models.ids import NIL
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    EndedLease,
    ReleaseRequest,
)

M = TypeVar("M", bound=BaseModel)

_COMMANDS = (AcquireRequest, ReleaseRequest, AcquireSetRequest)


def checked_model(model: M) -> M:
    """Validate a model again, because fields may have been assigned after creation.

    Raises
    ------
    InvalidInputError
        If a field is invalid: if it were stored, it could not be read back.
    """
    try:
        checked = type(model).model_validate(model.model_dump(warnings=False))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise InvalidInputError(f"{type(model).__name__} is not valid: {faults}") from None
    checked.model_fields_set.intersection_update(model.model_fields_set)
    return checked


def check_storage(storage: object, *, awaited: bool) -> None:
    """Raise :class:`InvalidInputError` unless this is a storage of the expected kind."""
    save_pool = getattr(storage, "save_pool", None)
    if save_pool is None:
        # The value is not quoted: it may be a URL with a password.
        raise InvalidInputError(f"a storage is needed, not a {type(storage).__name__}")
    if is_async(save_pool) is awaited:
        return
    kind = type(storage).__name__
    if awaited:
        raise InvalidInputError(
            f"{kind} blocks; use pharox.connect_async(), or ProxyManager and helpers such as "
            "with_lease_async"
        )
    raise InvalidInputError(
        f"{kind} must be awaited; use AsyncProxyManager and functions whose names end in _async"
    )


def check_reason(reason: str | None) -> None:
    """Raise :class:`InvalidInputError` if a release's reason cannot be stored."""
    if reason is not None:
        check_text(reason)


def pool_named(pool_name: str | None, pools: Sequence[ProxyPool]) -> Sequence[ProxyPool]:
    """Return the pool with this name, or all if None; raises :class:`PoolNotFoundError`."""
    found = [pool for pool in pools if pool_name in (None, pool.name)]
    if pool_name is not None and not found:
        raise PoolNotFoundError(f"Pool {pool_name!r} not found.", pool_name=pool_name)
    return found


def check_age(age: timedelta | float | None) -> timedelta | None:
    """Convert an age in seconds to a timedelta; raises :class:`InvalidInputError`."""
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
    """Return the statuses of proxies to check; all but BANNED if None."""
    if statuses is None:
        return frozenset(ProxyStatus) - {ProxyStatus.BANNED}
    if isinstance(statuses, str):
        raise InvalidInputError("statuses must be a list, such as ['active']", value=statuses)
    return frozenset(check_status(status) for status in statuses)


def check_status(status: ProxyStatus | str) -> ProxyStatus:
    """Return ``status`` as a ProxyStatus, else raise :class:`InvalidInputError`."""
    try:
        return ProxyStatus(status)
    except ValueError as error:
        raise InvalidInputError(f"{status!r} is not a proxy status", value=status) from error


def check_ban(status: ProxyStatus, for_seconds: float | None) -> None:
    """Raise :class:`InvalidInputError` unless a status can be set for so many seconds."""
    if for_seconds is None:
        return
    if status is not ProxyStatus.BANNED:
        raise InvalidInputError("for_seconds is how long a ban lasts; no other status ends")
    if not check_pause(for_seconds, "for_seconds"):
        raise InvalidInputError("for_seconds must be greater than zero", value=for_seconds)


def check_one_pool_each(proxies: Sequence[Proxy]) -> Sequence[Proxy]:
    """Return the proxies if each is given for one pool only, else raise ConflictError."""
    pools: dict[UUID, UUID] = {}
    for proxy in proxies:
        if pools.setdefault(proxy.id, proxy.pool_id) != proxy.pool_id:
            raise ConflictError(f"proxy {proxy.id} is given for two pools", proxy_id=proxy.id)
    return proxies


def check_commands(commands: Sequence[Command]) -> None:
    """Raise :class:`InvalidInputError` unless all of these are commands that do not wait."""
    for command in commands:
        if not isinstance(command, _COMMANDS):
            raise InvalidInputError(f"a {type(command).__name__} is not a command of a batch")
        if getattr(command, "wait_seconds", None):
            raise InvalidInputError("a command of a batch cannot wait")


def check_granted(
    lease: Lease, request: AcquireRequest | AcquireSetRequest, expired: Sequence[EndedLease] = ()
) -> None:
    """Check that the lease with the request's id was granted to this consumer.

    The error carries the leases that this call expired, so that the manager can report them.

    Raises
    ------
    ConflictError
        If it belongs to another consumer or another pool.
    """
    if (lease.pool_name, lease.consumer_name) != (request.pool_name, request.consumer_name):
        raise ConflictError(
            f"lease {lease.id} belongs to {lease.consumer_name!r} in pool {lease.pool_name!r}",
            lease_id=lease.id,
            expired=tuple(expired),
        )


def too_few_granted(request: AcquireSetRequest, granted: Sequence[Acquisition]) -> ConflictError:
    """Return the error for ids of which too few were granted to be the requested set."""
    lease = granted[0].lease
    return ConflictError(
        f"{len(granted)} leases have ids of this set, which needs {request.needed}",
        lease_id=lease and lease.id,
    )


def granted_and_ended(
    lease_id: UUID, how: str, expired: Sequence[EndedLease] = ()
) -> LeaseEndedError:
    """Return the error for a lease that was granted before and has ended since.

    It carries the leases that this call expired, so that the manager can report them.
    """
    return LeaseEndedError(
        f"lease {lease_id} was granted before and has ended ({how}); acquire under another id",
        lease_id=lease_id,
        expired=tuple(expired),
    )


class HeldPage(NamedTuple):
    """Which active leases a page has, checked: those after a place, in the order of the ids."""

    pool_name: str | None
    consumer_name: str | None
    after: tuple[UUID, UUID, UUID]
    limit: int


def held_page(
    pool_name: str | None, consumer_name: str | None, after: Lease | None, limit: int
) -> HeldPage:
    """Return the arguments of ``list_held_leases``, checked."""
    if pool_name is not None:
        check_name(pool_name, "pool")
    if consumer_name is not None:
        check_name(consumer_name, "consumer")
    _check_limit(limit)
    place = (NIL, NIL, NIL) if after is None else (after.pool_id or NIL, after.proxy_id, after.id)
    return HeldPage(pool_name, consumer_name, place, limit)


def _check_limit(limit: int) -> int:
    if not 1 <= check_whole(limit, "limit") < 2**31:
        raise InvalidInputError(f"limit must be from 1 to {2**31 - 1}", value=limit)
    return limit


class TargetPage(NamedTuple):
    """Which pairs, or targets, a page has, checked: those after a place.

    A place is a pool, a proxy (none among targets) and a target.
    """

    pool_name: str | None
    target: str | None
    proxy_id: UUID | None
    cooling: bool
    after: tuple[UUID, UUID, str]
    limit: int


def target_page(
    pool_name: str | None,
    target: str | None,
    after: TargetOutcomes | TargetSummary | None,
    limit: int,
    proxy_id: UUID | None = None,
    *,
    cooling: bool = False,
) -> TargetPage:
    """Return the arguments of ``list_target_outcomes`` or ``summarize_targets``, checked."""
    if pool_name is not None:
        check_name(pool_name, "pool")
    if proxy_id is not None and not isinstance(proxy_id, UUID):
        raise InvalidInputError("a proxy's id is a UUID", value=proxy_id)
    wanted = None if target is None else target_of(target)
    place = (NIL, NIL, "")
    if after is not None:
        place = (after.pool_id, getattr(after, "proxy_id", NIL), after.target)
    return TargetPage(pool_name, wanted, proxy_id, bool(cooling), place, _check_limit(limit))


class SessionPage(NamedTuple):
    """Which sticky sessions a page has, checked: those after a pool and a key."""

    pool_name: str | None
    after: tuple[UUID, str]
    limit: int


def session_page(pool_name: str | None, after: StickySession | None, limit: int) -> SessionPage:
    """Return the arguments of ``list_sessions``, checked."""
    if pool_name is not None:
        check_name(pool_name, "pool")
    if after is not None and not isinstance(after, StickySession):
        raise InvalidInputError("after is the last session of the page before", value=after)
    place = (NIL, "") if after is None else (after.pool_id, after.key)
    return SessionPage(pool_name, place, _check_limit(limit))


def check_heirs(pool_name: str, old: str, new: str) -> None:
    """Raise :class:`InvalidInputError` unless one key may take over the binding of another."""
    check_session(pool_name, old)
    check_session(pool_name, new)
    if old == new:
        raise InvalidInputError("a session cannot inherit from itself", value=new)


def check_session(pool_name: str, key: str) -> None:
    """Raise :class:`InvalidInputError` unless these may name a pool and a session's key."""
    check_name(pool_name, "pool")
    check_name(key, "session")


def session_unknown(pool_name: str, key: str) -> SessionNotFoundError:
    """Return the error for a key that is not bound."""
    return SessionNotFoundError(
        f"Session {key!r} of pool {pool_name!r} is not bound to a proxy.",
        pool_name=pool_name,
        key=key,
    )


def session_taken(pool_name: str, key: str) -> ConflictError:
    """Return the error for an heir that has a proxy of its own."""
    return ConflictError(
        f"Session {key!r} of pool {pool_name!r} is bound to a proxy already; forget it first.",
        pool_name=pool_name,
        key=key,
    )


def id_from_text(text: str | UUID) -> UUID | None:
    """Parse a UUID. Return None if the text is not one, so nothing has this id."""
    try:
        return text if isinstance(text, UUID) else UUID(text)
    except (ValueError, AttributeError, TypeError):
        return None
