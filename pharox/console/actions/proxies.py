"""Ban, unban and drain a proxy."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from ...errors import InvalidInputError, ProxyNotFoundError
from ...incident.wording import full_moment
from ...models import Proxy, ProxyStatus
from ...models.text import url_of
from ...storage.validation import id_from_text
from ..access import Action
from .shapes import Deed, Field, Subject, Values, number_in

LONGEST_BAN_MIN = 60 * 24 * 365
"""A ban that is longer than a year is one until somebody lifts it."""


def _proxy(storage: Any, name: str) -> Proxy:
    proxy_id = id_from_text(name)
    if proxy_id is None:
        raise ProxyNotFoundError(f"there is no proxy {name!r}", proxy=name)
    proxy: Proxy = storage.get_proxy(str(proxy_id))
    return proxy


def _subject(proxy: Proxy, *fields: Field) -> Subject:
    facts = [f"It is {proxy.status.value}."]
    if proxy.current_leases:
        facts.append(f"It has {proxy.current_leases} of {proxy.max_concurrency} leases now.")
    address = url_of(proxy.protocol, proxy.host, proxy.port)
    return Subject(address, facts, fields, "proxy", {"proxy": proxy.id})


def _find_to_ban(storage: Any, name: str) -> Subject:
    hint = "Empty: until somebody lifts the ban."
    return _subject(
        _proxy(storage, name), Field("minutes", "For how many minutes", "number", hint=hint)
    )


def _ban(storage: Any, name: str, values: Values, reason: str) -> str:
    minutes = number_in(values, "minutes", "For how many minutes")
    if minutes is not None and not 0 < minutes <= LONGEST_BAN_MIN:
        raise InvalidInputError(
            f"For how many minutes: a number above 0, of at most {LONGEST_BAN_MIN:,}", value=minutes
        )
    seconds = None if minutes is None else minutes * 60
    proxy = storage.set_status(UUID(name), ProxyStatus.BANNED, reason=reason, for_seconds=seconds)
    if proxy.banned_until is None:
        return "It is banned."
    return f"It is banned until {full_moment(proxy.banned_until)}."


def _find_to_unban(storage: Any, name: str) -> Subject:
    _check_banned(_proxy(storage, name))
    hint = "Else it is leased again after a check has succeeded."
    return _subject(
        _proxy(storage, name), Field("at_once", "Lease it again at once", "box", hint=hint)
    )


def _unban(storage: Any, name: str, values: Values, reason: str) -> str:
    _check_banned(_proxy(storage, name))
    at_once = "at_once" in values
    status = ProxyStatus.ACTIVE if at_once else ProxyStatus.INACTIVE
    storage.set_status(UUID(name), status, reason=reason)
    return "It may be leased again." if at_once else "It is inactive until a check succeeds."


def _check_banned(proxy: Proxy) -> None:
    if proxy.status is not ProxyStatus.BANNED:
        raise InvalidInputError(f"this proxy is not banned: it is {proxy.status.value}")


def _find_to_drain(storage: Any, name: str) -> Subject:
    return _subject(_proxy(storage, name))


def _drain(storage: Any, name: str, _: Values, reason: str) -> str:
    left = storage.drain_proxy(UUID(name), reason=reason)
    return "It was removed." if left is None else "It is removed when its last lease ends."


DEEDS = (
    Deed(
        Action.BAN,
        "Ban a proxy",
        "Then it is leased to nobody, whatever checks find. Leases that it has go on.",
        _find_to_ban,
        _ban,
    ),
    Deed(
        Action.UNBAN,
        "Lift a ban",
        "Then it can be leased again: after a check has succeeded, or at once.",
        _find_to_unban,
        _unban,
    ),
    Deed(
        Action.DRAIN,
        "Drain a proxy",
        "Then it is leased to nobody, and removed once its leases have ended. Lifting the ban "
        "undoes it until then.",
        _find_to_drain,
        _drain,
    ),
)
