"""What a handler gets, and what an event is parked under."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pharox.events import Event


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event as a handler gets it.

    ``epoch`` rises whenever another reader takes over: a system outside can
    refuse what comes with an older one. ``connection`` is psycopg's, within the
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
        """What is the same whenever this event is delivered again."""
        return self.subscription, self.event.seq


def subject_of(event: Event) -> str:
    """Return what an event is about: its proxy, else its pool."""
    return str(event.proxy_id or event.pool_id)
