"""Where a proxy was to be reached: what a person knows it by, and most events do not say."""

from __future__ import annotations

from uuid import UUID

from pharox.log import Extract
from projections import ProxyRow

from ..events import Event, ProxyDescribed
from .sealed_log import Beginning, SealedLog


def address_of(proxy: ProxyRow | ProxyDescribed) -> str:
    """Return a proxy's URL without credentials."""
    host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
    return f"{proxy.protocol}://{host}:{proxy.port}"


class Addresses:
    """The addresses of the proxies in a story, each looked up in the log once.

    A change of address is noticed where it is part of the story.
    """

    def __init__(self, log: SealedLog, begin: Beginning) -> None:
        self._log, self._begin = log, begin.seq
        self._once = {row.id: address_of(row) for row in begin.rows("proxies").values()}
        self._known: dict[UUID, str | None] = {}

    def of(self, event: Event) -> str | None:
        """Return the address that the proxy of an event had then; None if it is about none."""
        if event.proxy_id is None:
            return None
        if isinstance(event, ProxyDescribed):
            self._known[event.proxy_id] = address_of(event)
        elif event.proxy_id not in self._known:
            self._known[event.proxy_id] = self._described(event.proxy_id, event.seq)
        return self._known[event.proxy_id]

    def _described(self, proxy_id: UUID, upto: int) -> str | None:
        address = self._once.get(proxy_id)
        described = Extract(
            self._begin, upto, types=("ProxyRegistered", "ProxyChanged"), proxy_id=proxy_id
        )
        for event in self._log.history(described):
            if isinstance(event, ProxyDescribed):
                address = address_of(event)
        return address
