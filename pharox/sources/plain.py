"""A fast path for plain addresses, which most lists consist of.

Most lines are plain: nothing in them needs quoting, and only one order is possible. One
pattern checks all of that, so their proxies are copies of one validated proxy with other
parts. The test of this module compares them with what the models make of the same parts.
All other lines take the slow path.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from itertools import count
from socket import inet_aton
from typing import Any, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, SecretStr

from ..models import PROTOCOL_ALIASES, Proxy, ProxyCredentials, ProxyProtocol
from .entries import Defaults
from .orders import MAX_PORT, AmbiguousOrderError, Order, Orders

M = TypeVar("M", bound=BaseModel)
_set = object.__setattr__

_COUNTED = 2**40 - 1
"""The last bits of an id, which count the proxies of a list."""

# The password of a plain login has more than digits, so it is not a port.
_WORD = r"[A-Za-z0-9!$&*+.=^_~-]{1,255}"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_IP = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLAIN = re.compile(
    rf"\s*(?:([A-Za-z0-9]+)://)?(?:({_WORD}):(?![0-9]+@)({_WORD})@)?"
    rf"(?:({_IP}\.{_IP}\.{_IP}\.{_IP})|((?:{_LABEL}\.){{0,5}}[A-Za-z][A-Za-z0-9-]{{0,62}}))"
    rf":([0-9]{{1,5}})(?::({_WORD}):(?![0-9]+\s*$)({_WORD}))?\s*",
)
_PROTOCOLS: dict[str, ProxyProtocol] = {
    **{protocol.value: protocol for protocol in ProxyProtocol},
    **PROTOCOL_ALIASES,
}


_TIDY = re.compile(r"\s*(?:([A-Za-z0-9]+)://)?([A-Za-z0-9!$&*+.=^_~:@-]{1,800})\s*")
_NAME = re.compile(
    rf"({_IP}\.{_IP}\.{_IP}\.{_IP})|(?:{_LABEL}\.){{0,5}}[A-Za-z][A-Za-z0-9-]{{0,62}}"
)
_LOGIN = re.compile(rf"{_WORD}:{_WORD}")


class PlainLines:
    """Builds proxies from plain lines, all with the same defaults."""

    def __init__(self, defaults: Defaults, orders: Orders) -> None:
        self._orders = orders
        self._default = defaults.protocol and defaults.protocol.value
        self._like = {
            name: defaults.proxies({"host": "gw.example", "port": 1, "protocol": name})[0]
            for name in _PROTOCOLS
        }
        self._login = ProxyCredentials(user="user")
        self._match = _PLAIN.fullmatch
        # As unique as one random id, and faster than one for each proxy.
        self._ids = count(uuid4().int & ~_COUNTED)

    def proxy(self, line: str) -> Proxy | None:
        """Return the proxy in a line, or None if the line is not plain."""
        match = self._match(line)
        if match is None:
            return self._judged(line)
        scheme, user, password, address, name, digits, user_behind, password_behind = match.groups()
        port = int(digits)
        if not 0 < port <= MAX_PORT:
            return None
        if user_behind is not None:
            if user is not None:
                return None
            self._orders.certain.add(Order.HOST_FIRST)
            user, password = user_behind, password_behind
        elif user is not None:
            self._orders.certain.add(Order.URL)
        return self._proxy(scheme, address, name, port, user, password)

    def _judged(self, line: str) -> Proxy | None:
        """Return the proxy in a line that is plain except for its order."""
        match = _TIDY.fullmatch(line)
        if match is None:
            return None
        try:
            reading = self._orders.read(match[2], is_url=match[1] is not None)
        except AmbiguousOrderError:
            return None  # The slow path reports all that is wrong with a line.
        if reading is None or not _LOGIN.fullmatch(f"{reading.user}:{reading.password}"):
            return None
        host = _NAME.fullmatch(reading.host)
        if host is None:
            return None
        return self._proxy(match[1], host[1], host[0], reading.port, reading.user, reading.password)

    def _proxy(
        self,
        scheme: str | None,
        address: str | None,
        name: str,
        port: int,
        user: str | None,
        password: str,
    ) -> Proxy | None:
        named = scheme.lower() if scheme else self._default
        like = self._like.get(named) if named else None
        if like is None:
            return None
        changes: dict[str, Any] = {
            "id": UUID(int=next(self._ids)),
            "host": IPv4Address(inet_aton(address)) if address else name.lower(),
            "port": port,
        }
        if user is not None:
            changes["credentials"] = _changed(
                self._login, {"user": user, "password": SecretStr(password)}
            )
        return _changed(like, changes)


def _changed(model: M, changes: dict[str, Any]) -> M:
    """Return a copy of a model with changes; three times as fast as ``model_copy``."""
    copied = type(model).__new__(type(model))
    for name, value in (
        ("__dict__", {**model.__dict__, **changes}),
        ("__pydantic_fields_set__", model.model_fields_set | changes.keys()),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", None),
    ):
        _set(copied, name, value)
    return copied
