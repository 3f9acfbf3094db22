"""Build proxies from the parts of an address or a record, or say why that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Any, Literal
from uuid import UUID

from pydantic import ValidationError

from ..models import PROTOCOL_ALIASES, Proxy, ProxyProtocol, ProxyStatus, utc_now
from ..models.gateway import placeholders_in
from ..models.ids import NIL
from .unreadable import Unreadable
from .values import protocol_of_name, words_of

Unit = Literal["line", "entry"]

UNLIMITED = "unlimited"
"""The limit of a proxy that takes any number of leases."""

_TAKEN = (
    "host",
    "port",
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
    "cost_per_gb",
    "cost_per_lease",
    "weight",
    "rotate_url",
)
_SOCKS = (ProxyProtocol.SOCKS4, ProxyProtocol.SOCKS5)


@dataclass(slots=True)
class Entry:
    """A proxy, and its place in the source."""

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
    """Defaults for the proxies of a source.

    ``protocol`` also selects one of the protocols that an entry offers. With ``template`` each
    entry has to be a template of a gateway; if it is False, none is, and if it is None, an entry
    with a placeholder cannot be read.
    """

    pool_id: UUID = NIL
    protocol: ProxyProtocol | None = None
    status: ProxyStatus = ProxyStatus.ACTIVE
    max_concurrency: int | None = 1
    source: str | None = None
    country: str | None = None
    template: bool | None = None
    checked_at: datetime = field(default_factory=utc_now)
    cost_per_gb: Decimal | None = None
    cost_per_lease: Decimal | None = None
    weight: int | None = None

    def proxies(self, parts: Mapping[str, Any]) -> list[Proxy]:
        """Return the described proxies, one for each offered protocol.

        Parameters
        ----------
        parts:
            Fields of :class:`Proxy`, ``user`` and ``password``, and all offered values
            of ``protocol`` or ``ports`` (by protocol).

        Raises
        ------
        Unreadable
            If they do not describe a proxy.
        """
        given = {
            name: _checked(name, parts[name])
            for name in _TAKEN
            if parts.get(name) not in (None, "")
        }
        fields = {name: getattr(self, name) for name in self.__slots__} | given
        fields["credentials"] = _credentials(parts)
        offers = list(self._picked(self._offers(parts, fields.get("port"))))
        for name in ("host", "port", "protocol"):
            if (offers[0][name] if name != "host" else fields.get(name)) is None:
                raise Unreadable(f"has no {name}")
        if self.template is None:
            _check_literal(fields["credentials"])
        return [_proxy(fields | offer) for offer in offers]

    def _offers(self, parts: Mapping[str, Any], port: Any) -> Iterator[dict[str, Any]]:
        """Yield each offered protocol with its port."""
        if ports := parts.get("ports"):
            for name, own in ports.items():
                yield {"protocol": self._protocol(name), "port": _checked("port", own)}
            return
        named = parts.get("protocol")
        if isinstance(named, bool) or not isinstance(named, str | list | None):
            raise Unreadable("has an invalid protocol: a value of the wrong type")
        words: list[str | None] = [*words_of(named)]
        for word in words or [None]:
            yield {"protocol": self._protocol(word), "port": port}

    def _picked(self, offers: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        every = list({str(offer["protocol"]): offer for offer in offers}.values())
        wanted = [offer for offer in every if offer["protocol"] == self.protocol]
        return wanted or every

    def _protocol(self, word: str | None) -> Any:
        if word is None:
            return self.protocol
        word = protocol_of_name(word) or word
        if word != "socks":
            return PROTOCOL_ALIASES.get(word, word)
        if self.protocol not in _SOCKS:
            raise Unreadable(
                "says socks without a version: write socks4 or socks5, or give --protocol"
            )
        return self.protocol


def complaint(error: ValidationError) -> tuple[str, str]:
    """Return the first invalid field and the reason, without its value."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = [str(part) for part in found["loc"] if part != "credentials"]
    message = found["msg"].removeprefix("Value error, ")
    if message[1:2].islower():
        message = message[:1].lower() + message[1:]
    return place[0] if place else "entry", message


def _proxy(fields: Mapping[str, Any]) -> Proxy:
    try:
        return Proxy(**fields)
    except ValidationError as error:
        name, why = complaint(error)
    raise Unreadable(
        f"has an invalid {name}: {why}"
    )  # Not chained, as pydantic's error shows the values.


def _credentials(parts: Mapping[str, Any]) -> dict[str, Any] | None:
    user, password = parts.get("user"), parts.get("password")
    if isinstance(password, int) and not isinstance(password, bool):
        password = str(password)  # spreadsheets turn a password of digits into a number
    if not user and not password:
        return None
    if not user:
        raise Unreadable("has a password but no user")
    return {"user": user, "password": password or ""}


def _check_literal(credentials: Mapping[str, Any] | None) -> None:
    """Refuse credentials of which nobody said whether their placeholders are filled."""
    texts = [each for each in (credentials or {}).values() if isinstance(each, str)]
    if names := placeholders_in(*texts):
        raise Unreadable(
            f"has {' and '.join(f'{{{name}}}' for name in names)} in its credentials: --template "
            "fills this for each lease, --no-template takes it literally"
        )


def _checked(name: str, value: Any) -> Any:
    """Refuse values that the model would coerce: a number as an address, true as a port."""
    if name == "max_concurrency" and value == UNLIMITED:
        return None
    if isinstance(value, bool) or (name == "host" and not isinstance(value, str)):
        raise Unreadable(f"has an invalid {name}: a value of the wrong type")
    if name == "host":
        return _checked_host(value.strip().removeprefix("[").removesuffix("]"))
    return value.strip() if name == "port" and isinstance(value, str) else value


def _checked_host(host: str) -> str:
    if ":" not in host:
        return host
    try:
        IPv6Address(host)
    except ValueError:
        raise Unreadable("has an invalid host: with a colon, but not an IPv6 address") from None
    return host
