"""Validate the arguments of callers before a storage is called."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar
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
    MAX_ROTATION_S,
    MAX_RULES,
    MAX_TOKENS,
    ApiToken,
    DueRotation,
    Lease,
    Proxy,
    ProxyPool,
    ProxyStatus,
    RotationAnswer,
    StickySession,
    TargetOutcomes,
    TargetRules,
    TargetSummary,
    check_aware,
    check_name,
    check_pause,
    check_remark,
    check_whole,
    target_of,
)
from ..models.ids import NIL
from ..models.refusing import faults_of
from ..models.usage import checked_keys
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    Command,
    EndedLease,
    ReleaseRequest,
)

M = TypeVar("M", bound=BaseModel)

ID_DIGITS = 4
"""How many digits of an id are needed at least to look for it."""

_ID_BEGINS = re.compile(f"[0-9a-f]{{{ID_DIGITS},32}}")
_COMMANDS = (AcquireRequest, ReleaseRequest, AcquireSetRequest)


def checked_model(model: M, kind: type[M]) -> M:
    """Validate a model again, because fields may have been assigned after creation.

    Raises
    ------
    InvalidInputError
        If it is not of this kind, or a field is invalid: if it were stored, it could not be read
        back.
    """
    check_kind(model, kind)
    try:
        checked = type(model).model_validate(model.model_dump(warnings=False))
    except ValidationError as error:
        name = type(model).__name__
        raise InvalidInputError(f"{name} is not valid: {faults_of(error, name)}") from None
    checked.model_fields_set.intersection_update(model.model_fields_set)
    return checked


def check_kind(model: object, kind: type[BaseModel]) -> None:
    """Raise :class:`InvalidInputError` unless a model is of this kind.

    What it is instead is not quoted: it may be a URL with a password.
    """
    if not isinstance(model, kind):
        raise InvalidInputError(f"a {kind.__name__} is needed, not a {type(model).__name__}")


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
        check_remark(reason, "reason")


def checked_pool(given: ProxyPool) -> ProxyPool:
    """Return a pool that is to be saved, validated again.

    Raises
    ------
    InvalidInputError
        If a field is invalid. Pools that were saved before may have what is refused only here.
    """
    pool = checked_model(given, ProxyPool)
    if pool.description is not None:
        check_remark(pool.description, "description")
    return pool


def check_action(action: str, subject: str, reason: str) -> dict[str, Any]:
    """Return the facts of an action that a person took.

    Raises
    ------
    InvalidInputError
        If one is empty or cannot be stored.
    """
    taken = {"action": action, "subject": subject, "reason": reason}
    for what, text in taken.items():
        if not check_remark(text, what).strip():
            raise InvalidInputError(f"an action has a {what}", value=text)
    return taken


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
    """Return the proxies if each is given for one pool only, else raise ConflictError.

    Raises :class:`InvalidInputError` if one cannot be the template that it is said to be.
    """
    pools: dict[UUID, UUID] = {}
    for proxy in proxies:
        check_template(proxy)
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
    lease: Lease,
    request: AcquireRequest | AcquireSetRequest,
    expired: Sequence[EndedLease] = (),
    *,
    also_in: Sequence[str] = (),
) -> None:
    """Check that the lease with the request's id was granted to this consumer.

    It may be of one of the request's pools, or of one that is named in ``also_in``. The
    error carries the leases that this call expired, so that the manager can report them.

    Raises
    ------
    ConflictError
        If it belongs to another consumer or another pool.
    """
    pools = (*request.pools, *also_in)
    if lease.pool_name not in pools or lease.consumer_name != request.consumer_name:
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


class IdSpan(NamedTuple):
    """The ids that begin alike: from ``first`` to ``last``, both inclusive."""

    first: UUID
    last: UUID


def id_span(beginning: str) -> IdSpan:
    """Return the ids that begin with this text, which may have their dashes or not.

    Raises
    ------
    InvalidInputError
        If an id cannot begin so, or it is shorter than four digits.
    """
    digits = str(beginning).strip().replace("-", "").lower()
    if not _ID_BEGINS.fullmatch(digits):
        raise InvalidInputError(
            f"{beginning!r} is not an id, nor the first {ID_DIGITS} or more digits of one",
            value=beginning,
        )
    return IdSpan(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))


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


def check_rules(rules: TargetRules) -> TargetRules:
    """Return rules for a target, else raise :class:`InvalidInputError`."""
    if not isinstance(rules, TargetRules):
        raise InvalidInputError(
            f"TargetRules are needed, not a {type(rules).__name__}", value=rules
        )
    return rules


def too_many_rules(target: str) -> InvalidInputError:
    """Return the error for rules of one target more than there may be."""
    return InvalidInputError(
        f"{MAX_RULES} targets have rules, and every process reads them all: unset some first",
        target=target,
    )


def check_token(token: ApiToken) -> ApiToken:
    """Return a token, or raise InvalidInputError if it is none."""
    if not isinstance(token, ApiToken):
        raise InvalidInputError(
            f"an ApiToken is needed, as ApiToken.draw() returns one, not a {type(token).__name__}"
        )
    return token


def check_token_id(token_id: UUID | str) -> UUID:
    """Return the id of a token, which may be given as text."""
    try:
        return token_id if isinstance(token_id, UUID) else UUID(token_id)
    except (ValueError, AttributeError, TypeError):
        raise InvalidInputError("the id of a token is a UUID", value=token_id) from None


def token_known(token: ApiToken) -> ConflictError:
    """Return the error for a token that is stored already."""
    return ConflictError(f"There is a token {token.id} already.", token_id=token.id)


def too_many_tokens() -> InvalidInputError:
    """Return the error for one token more than there may be."""
    return InvalidInputError(
        f"there are {MAX_TOKENS} tokens, and who serves the API reads them all: withdraw some first"
    )


class UsageWish(NamedTuple):
    """What usage is asked for, checked: by what, and of what."""

    by: tuple[str, ...]
    pool_name: str | None
    since: datetime | None
    until: datetime | None
    limit: int


def usage_wish(
    by: Sequence[str],
    pool_name: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
) -> UsageWish:
    """Return the arguments of ``usage``, checked."""
    if pool_name is not None:
        check_name(pool_name, "pool")
    begin, end = (None if moment is None else check_aware(moment) for moment in (since, until))
    if begin is not None and end is not None and end < begin:
        raise InvalidInputError(f"the end, {end}, is before the beginning, {begin}")
    return UsageWish(checked_keys(by), pool_name, begin, end, _check_limit(limit))


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


RETRY_LINK_S = 5.0
"""After how many seconds a link that failed is called again, unless it says itself."""

MAX_CLAIM_S = 600


def no_rotate_url(proxy_id: UUID) -> InvalidInputError:
    """Return the error for a proxy that is to take another exit and has no link for it."""
    return InvalidInputError(
        f"proxy {proxy_id} has no rotate_url: save it with the link of its provider",
        proxy_id=proxy_id,
    )


def rotates_too_soon(proxy_id: UUID, seconds: float) -> ConflictError:
    """Return the error for a proxy whose link may not be called before the bound."""
    return ConflictError(
        f"the link of proxy {proxy_id} may be called again in {seconds:.0f} s: wait, or allow for "
        "more time",
        proxy_id=proxy_id,
        retry_after_seconds=seconds,
    )


def check_within(seconds: float | None) -> float | None:
    """Return the bound of a rotation in seconds; raises :class:`InvalidInputError`."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidInputError("within_seconds must be a number", value=seconds)
    if not 0 < seconds <= MAX_ROTATION_S:
        raise InvalidInputError(
            f"within_seconds must be above 0 and at most {MAX_ROTATION_S}", value=seconds
        )
    return float(seconds)


def check_rotation(due: object, answer: object) -> None:
    """Raise :class:`InvalidInputError` unless they are a claim and what came of it."""
    if not isinstance(due, DueRotation) or not isinstance(answer, RotationAnswer):
        raise InvalidInputError(
            "give a DueRotation that was claimed, and a RotationAnswer", value=(due, answer)
        )


def check_claim(seconds: float, most: int) -> None:
    """Raise :class:`InvalidInputError` if links cannot be claimed for so long, or so many."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidInputError("seconds must be a number", value=seconds)
    if not 0 < seconds <= MAX_CLAIM_S:
        raise InvalidInputError(f"seconds must be above 0 and at most {MAX_CLAIM_S}", value=seconds)
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 1000:
        raise InvalidInputError("most must be from 1 to 1000", value=most)


def no_session_id(lease_id: UUID) -> InvalidInputError:
    """Return the error for a lease whose exit has no session id that could be changed."""
    return InvalidInputError(
        f"lease {lease_id} has no session id to change: its proxy is no template with {{session}}",
        lease_id=lease_id,
    )


def rests_no_gateway(proxy_id: UUID) -> InvalidInputError:
    """Return the error for a rest of a template whose leases have exits of their own."""
    return InvalidInputError(
        f"proxy {proxy_id} is a gateway, a template with {{session}}: a rest would be of all its "
        "exits; rotate the lease, or give it back and take another",
        proxy_id=proxy_id,
    )


def check_template(proxy: Proxy) -> None:
    """Raise :class:`InvalidInputError` if a proxy is said to be a template and cannot be one."""
    if proxy.template and not proxy.placeholders:
        raise InvalidInputError(
            "a template needs credentials with {session}, {country} or {lifetime}"
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
