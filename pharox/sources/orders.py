"""Determine the order of host, port, user and password in an address.

A line may be readable in several orders: in ``ann:12345:gw.example:8001`` either end
could be host and port. A wrong guess would register a password as a port and write it
into the log. So a line is refused unless only one order is possible, or the shapes of
the hosts and the list's other lines do not contradict one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, ip_address

from .unreadable import Unreadable

MAX_PORT = 65535
HOST = r"(?P<host>\[[^\[\]]*\]|[^\s:/@\[\]]+)"
PORT = r"(?P<port>[0-9]+)"

_NAME = re.compile(r"[\w-]+(?:\.[\w-]+)*\.?")
_LAST_LABEL = re.compile(r"(?:.*\.)?(?:[^\W\d_]{2,}|xn--[\w-]+)\.?", re.IGNORECASE)
_NUMBERS = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-f:.]+", re.IGNORECASE)


class Order(StrEnum):
    """The possible orders."""

    HOST_FIRST = "host:port:user:pass"
    USER_FIRST = "user:pass:host:port"
    URL = "user:pass@host:port"
    HOST_AT_USER = "host:port@user:pass"


_PATTERNS = {
    Order.HOST_FIRST: re.compile(rf"{HOST}:{PORT}:(?P<user>[^:]*):(?P<password>.*)"),
    Order.USER_FIRST: re.compile(rf"(?P<user>[^:]*):(?P<password>.*):{HOST}:{PORT}"),
    Order.URL: re.compile(rf"(?P<user>[^:]*?)(?::(?P<password>.*))?@{HOST}:{PORT}/?"),
    Order.HOST_AT_USER: re.compile(rf"{HOST}:{PORT}@(?P<user>[^:]*)(?::(?P<password>.*))?"),
}
_RIVALS = {
    Order.HOST_FIRST: Order.USER_FIRST,
    Order.USER_FIRST: Order.HOST_FIRST,
    Order.URL: Order.HOST_AT_USER,
    Order.HOST_AT_USER: Order.URL,
}


@dataclass(frozen=True, slots=True)
class Reading:
    """An address read in one order; ``shape`` rates how much its host looks like a host."""

    order: Order
    host: str
    port: int
    user: str
    password: str
    shape: int


class AmbiguousOrderError(Unreadable):
    """The address can be read in several orders."""

    def __init__(self, readings: list[Reading]) -> None:
        orders = " or ".join(reading.order for reading in readings)
        super().__init__(f"may be {orders}: say which with --line '{readings[0].order}'")


class Orders:
    """What a list's lines have shown about its order so far."""

    def __init__(self) -> None:
        self.certain: set[Order] = set()

    def read(self, text: str, *, is_url: bool) -> Reading | None:
        """Read an address with user and password; return None if it is not one.

        Parameters
        ----------
        text:
            The address without its scheme.
        is_url:
            Whether there was a scheme. The order is then that of URLs, unless the user
            looks more like a host than the host does.
        """
        found = list(readings(text))
        if not found:
            return None
        if len(found) == 1:
            self.certain.add(found[0].order)
            return found[0]
        best = max(reading.shape for reading in found)
        likely = [reading for reading in found if reading.shape == best]
        chosen = [reading for reading in found if self._is_of_list(reading.order)] or likely
        if is_url and (url := _url_of(found)) is not None:
            chosen = [url] if url in chosen else []
        elif not any(reading in likely for reading in chosen):
            chosen = []
        if len(chosen) != 1:
            raise AmbiguousOrderError(found)
        return chosen[0]

    def _is_of_list(self, order: Order) -> bool:
        return order in self.certain and _RIVALS[order] not in self.certain


def readings(text: str) -> Iterator[Reading]:
    """Yield each reading of a text as an address with user and password."""
    if lacks_brackets(text):
        return
    for order, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        host, port = match["host"], port_of(match["port"])
        shape = shape_of(host)
        if port is None or not (shape or order is Order.URL):
            continue
        yield Reading(order, host, port, match["user"], match["password"] or "", shape)


def shape_of(host: str) -> int:
    """Return 3 for an IP address, 2 for a domain name, 1 for another name, 0 for no host."""
    if host.startswith("["):
        return 3
    if not _NAME.fullmatch(host):
        return 0
    if _NUMBERS.fullmatch(host):
        return 3 if is_address(host) else 0
    is_domain = "." in host.rstrip(".") and _LAST_LABEL.fullmatch(host)
    return 2 if is_domain or host.lower() == "localhost" else 1


def is_address(text: str) -> bool:
    """Return whether a text is an IP address."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def lacks_brackets(text: str) -> bool:
    """Return whether a text is an IPv6 address without brackets, with or without a port."""
    if text.count(":") < 2 or not _HEX.fullmatch(text):
        return False
    for part in (text, text.rpartition(":")[0]):
        try:
            IPv6Address(part)
        except ValueError:
            continue
        return True
    return False


def port_of(text: str) -> int | None:
    """Return the port of a text of digits, or None if it is not a valid port."""
    port = int(text) if len(text) <= 5 or text.lstrip("0") == "" else 0
    return port if 0 < port <= MAX_PORT else None


def _url_of(found: list[Reading]) -> Reading | None:
    return next((reading for reading in found if reading.order is Order.URL), None)
