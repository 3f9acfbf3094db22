"""Addresses of proxies over time: people know a proxy by its address, most events lack it."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import chain
from uuid import UUID

from pharox.log import Extract
from pharox.log.extract import BIGGEST
from projections import ProxyRow

from ..events import Event, ProxyDescribed
from ..models import PROTOCOL_ALIASES, Proxy
from ..models.text import normal_host, url_of
from .sealed_log import Beginning, SealedLog

_TYPES = ("ProxyRegistered", "ProxyChanged")


def address_of(proxy: Proxy | ProxyRow | ProxyDescribed) -> str:
    """Return a proxy's URL without its credentials."""
    return url_of(proxy.protocol, proxy.host, proxy.port)


def proxies_at(log: SealedLog, begin: Beginning, address: str) -> dict[UUID, UUID]:
    """Return the pools of the proxies that ever had an address, by the proxies' ids.

    Parameters
    ----------
    address:
        A URL, whose credentials do not matter, or ``host:port`` for any protocol.
    """
    wanted = without_login(address)
    if ":" not in wanted:
        return {}
    described = log.history(Extract(begin.seq, types=_TYPES))
    known = ((row.id, row) for row in begin.rows("proxies").values())
    later = ((e.proxy_id, e) for e in described if isinstance(e, ProxyDescribed))
    return {
        proxy_id: proxy.pool_id
        for proxy_id, proxy in chain(known, later)
        if names(wanted, address_of(proxy))
    }


def without_login(address: str) -> str:
    """Return an address that a person typed in the form of :func:`address_of`."""
    scheme, mark, place = address.strip().rpartition("://")
    scheme = scheme.lower()
    host, colon, port = place.rpartition("@")[2].removesuffix("/").rpartition(":")
    return f"{PROTOCOL_ALIASES.get(scheme, scheme)}{mark}{_spelled(host)}{colon}{port}"


def _spelled(host: str) -> str:
    if not host.startswith("["):
        return normal_host(host)
    try:
        return f"[{ip_address(host.strip('[]'))}]"
    except ValueError:
        return host.lower()


def names(wanted: str, address: str) -> bool:
    """Return whether ``wanted`` is this address, or its ``host:port``."""
    return wanted in (address, address.partition("://")[2])


class Addresses:
    """The addresses of the proxies in a story, each looked up in the log once.

    A change of address is noticed if its event is part of the story.
    """

    def __init__(self, log: SealedLog, begin: Beginning) -> None:
        self._log, self._begin = log, begin.seq
        self._once = {row.id: address_of(row) for row in begin.rows("proxies").values()}
        self._known: dict[UUID, str | None] = {}

    def of(self, event: Event) -> str | None:
        """Return the address of an event's proxy at that time; None if it has no proxy."""
        if event.proxy_id is None:
            return None
        if isinstance(event, ProxyDescribed):
            self._known[event.proxy_id] = address_of(event)
        elif event.proxy_id not in self._known:
            self._known[event.proxy_id] = self.last(event.proxy_id, upto=event.seq)
        return self._known[event.proxy_id]

    def last(self, proxy_id: UUID, *, upto: int = BIGGEST) -> str | None:
        """Return a proxy's address as of a seq; None if it was not registered yet."""
        address = self._once.get(proxy_id)
        described = Extract(self._begin, upto, types=_TYPES, proxy_id=proxy_id)
        for event in self._log.history(described):
            if isinstance(event, ProxyDescribed):
                address = address_of(event)
        return address
