"""From an address or a record to a proxy, or to the reason why it is none.

A reason is a sentence without a subject ("has no port") and quotes nothing of
the entry, as its parts may be credentials in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import unquote
from uuid import UUID

from pydantic import ValidationError

from ..ids import NIL
from ..models import Proxy, ProxyProtocol, ProxyStatus, utc_now

Unit = Literal["line", "entry"]

_HOST_PORT = r"(\[[^\[\]]*\]|[^\s:/@\[\]]+):([0-9]+)"
_URL = re.compile(rf"([a-z][a-z0-9+.-]*)://(?:(.*)@)?{_HOST_PORT}/?", re.IGNORECASE)
_BARE = re.compile(rf"{_HOST_PORT}(?::([^:]*):(.*))?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_TAKEN = (
    "host",
    "port",
    "protocol",
    "status",
    "checked_at",
    "source",
    "country",
    "city",
    "latitude",
    "longitude",
    "isp",
    "asn",
    "max_concurrency",
)


class Unreadable(ValueError):
    """An entry that is no proxy; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A proxy, and where in the source it stood."""

    number: int
    proxy: Proxy


@dataclass(frozen=True, slots=True)
class BadEntry:
    """A place in the source where no proxy could be read, and why."""

    number: int
    reason: str
    unit: Unit = "line"

    def __str__(self) -> str:
        return f"{self.unit} {self.number} {self.reason}"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every proxy of a source that does not say otherwise itself."""

    pool_id: UUID = NIL
    protocol: ProxyProtocol | None = None
    status: ProxyStatus = ProxyStatus.ACTIVE
    max_concurrency: int | None = None
    source: str | None = None
    checked_at: datetime = field(default_factory=utc_now)

    def proxy(self, record: Mapping[str, Any]) -> Proxy:
        """Return the proxy that a record describes, or raise :class:`Unreadable`."""
        given = {
            name: _checked(name, record[name])
            for name in _TAKEN
            if record.get(name) not in (None, "")
        }
        fields = {name: getattr(self, name) for name in self.__slots__} | given
        for name in ("host", "port", "protocol"):
            if fields.get(name) is None:
                raise Unreadable(f"has no {name}")
        credentials = _credentials(record)
        try:
            return Proxy(**fields, credentials=credentials)
        except ValidationError as error:
            name, why = complaint(error)
            raise Unreadable(f"has an impossible {name}: {why}") from error


def record_of_address(text: str) -> dict[str, Any]:
    """Return the parts of ``scheme://user:password@host:port`` or ``host:port:user:password``.

    In the first form, user and password are percent-encoded, as
    :attr:`Proxy.url` gives them; in the second they stand as they are. The
    scheme, or user and password, may be missing.
    """
    text = text.strip()
    if bare := _BARE.fullmatch(text):
        host, port, user, password = bare.groups()
        return {"host": host, "port": port, "user": user, "password": password}
    has_scheme = _SCHEME.match(text) is not None
    match = _URL.fullmatch(text if has_scheme else f"x://{text}")
    if match is None:
        raise Unreadable("is neither scheme://user:password@host:port nor host:port")
    scheme, userinfo, host, port = match.groups()
    record = {"host": host, "port": port}
    if has_scheme:
        record["protocol"] = scheme
    if userinfo is not None:
        user, _, password = userinfo.partition(":")
        record |= {"user": _unquoted(user), "password": _unquoted(password)}
    return record


def record_of_object(value: Any) -> dict[str, Any]:
    """Return the parts of a JSON object.

    Its members are named like the fields of :class:`Proxy`, or it has
    ``geolocation`` and ``asn`` in the shape of the MaxMind databases.
    """
    if not isinstance(value, dict):
        raise Unreadable("is no JSON object")
    place = {
        "country": _member(value, "geolocation", "country", "iso_code"),
        "city": _member(value, "geolocation", "city", "names", "en"),
        "latitude": _member(value, "geolocation", "location", "latitude"),
        "longitude": _member(value, "geolocation", "location", "longitude"),
    }
    record = place | {name: part for name, part in value.items() if part is not None}
    if isinstance(value.get("asn"), dict):
        record["asn"] = _member(value, "asn", "autonomous_system_number")
        operator = _member(value, "asn", "autonomous_system_organization")
        record.setdefault("isp", operator)
    return record


def complaint(error: ValidationError) -> tuple[str, str]:
    """Return the first field that pydantic finds wrong, and what is, without the value."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in found["loc"] if part != "credentials"]
    message = found["msg"].removeprefix("Value error, ")
    if message[1:2].islower():
        message = message[:1].lower() + message[1:]
    return place[0] if place else "entry", message


def _member(value: Mapping[str, Any], *path: str) -> Any:
    """Return a member of a member, or None where one is missing."""
    found: Any = value
    for depth, name in enumerate(path):
        if not isinstance(found, dict):
            raise Unreadable(f"has a {'.'.join(path[:depth])} that is no JSON object")
        found = found.get(name)
        if found is None:
            return None
    return found


def _credentials(record: Mapping[str, Any]) -> dict[str, Any] | None:
    user = record.get("user") or record.get("username")
    password = record.get("password")
    if not user and not password:
        return None
    if not user or not password:
        missing = "password" if user else "user"
        raise Unreadable(f"has a {'user' if user else 'password'} but no {missing}")
    return {"user": user, "password": password}


def _checked(name: str, value: Any) -> Any:
    """Refuse what the model would bend into shape: a number as an address, true as a port."""
    if isinstance(value, bool) or (name in ("host", "protocol") and not isinstance(value, str)):
        raise Unreadable(f"has an impossible {name}: a value of the wrong type")
    if name == "protocol":
        return value.strip().lower()
    if name == "host":
        return _checked_host(value.strip().removeprefix("[").removesuffix("]"))
    return value


def _checked_host(host: str) -> str:
    if ":" in host:
        try:
            ip_address(host)
        except ValueError as error:
            raise Unreadable("has an impossible host: with a colon, but no IPv6 address") from error
    return host


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise Unreadable("has a user or password that is not UTF-8") from error
