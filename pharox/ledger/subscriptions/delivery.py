"""The argument of a handler, and the key that an event is parked under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pharox.events import Event


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for a handler.

    ``epoch`` increases whenever another reader takes over, so an outside system can
    refuse deliveries with an older epoch. ``connection`` is psycopg's, within the
    transaction that moves the checkpoint, if the subscription is
    ``in_transaction``.
    """

    subscription: str
    event: Event
    epoch: int
    connection: Any = field(default=None, repr=False)

    @property
    def seq(self) -> int:
        """The event's place in the order."""
        return self.event.seq

    @property
    def key(self) -> tuple[str, int]:
        """An idempotency key: the same whenever this event is delivered again."""
        return self.subscription, self.event.seq


def subject_of(event: Event) -> str:
    """Return the default key of an event: its proxy, else its pool."""
    return str(event.proxy_id or event.pool_id)
