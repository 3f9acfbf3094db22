"""Wait for a proxy: one queue a pool, in the order of tickets.

A ticket is a request that nothing was free for. Whatever makes a proxy free serves the queue
at once, under the same lock, so nobody overtakes. Turns are taken by rounds, as in
``sql/0004/waiting.sql``: of the requests of one consumer, each is one round after the one before.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from typing import Any, NamedTuple
from uuid import UUID

from ...events.attribution import current_attribution
from ...models import QueueStats
from ..requests import (
    MAX_WAITING,
    AcquireRequest,
    AcquireSetRequest,
    EndedLease,
    queue_full,
)

Request = AcquireRequest | AcquireSetRequest


class Told(NamedTuple):
    """What a waiting caller is told, and when it was granted, on the monotonic clock."""

    outcome: Any
    at: float


@dataclass(eq=False)
class Ticket:
    """A place in a queue."""

    request: Request
    pool_id: UUID
    round: int
    number: int
    since: datetime
    attribution: tuple[str, str | None] = field(default_factory=current_attribution)
    told: Future[Told] = field(default_factory=Future)
    expired: list[EndedLease] = field(default_factory=list)
    """The leases that were taken back on its behalf."""

    def waited_ms(self, now: datetime) -> int:
        """Return how long it has waited, in whole milliseconds."""
        return max(0, int((now - self.since).total_seconds() * 1000))


class Queue:
    """The tickets of a pool, and what is kept for the sets in front that lack some."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.kept: Counter[UUID] = Counter()

    def stats(self, pool_name: str, now: datetime) -> QueueStats:
        """Return who waits."""
        consumers = Counter(ticket.request.consumer_name for ticket in self.tickets)
        waited_s = (now - min(ticket.since for ticket in self.tickets)).total_seconds()
        return QueueStats(
            pool_name=pool_name,
            waiting=len(self.tickets),
            longest_wait_seconds=max(0.0, waited_s),
            consumers=consumers,
        )


class Queues:
    """The queues of all pools."""

    def __init__(self) -> None:
        self._queues: dict[UUID, Queue] = {}
        self._numbers = count(1)

    def __bool__(self) -> bool:
        return bool(self._queues)

    def of(self, pool_id: UUID) -> Queue | None:
        """Return the queue of a pool, if somebody waits there."""
        return self._queues.get(pool_id)

    def pools(self) -> list[UUID]:
        """Return the pools in which somebody waits."""
        return sorted(self._queues)

    def take_ticket(self, request: Request, pool_id: UUID, now: datetime) -> Ticket:
        """Add a request to the queue of its pool.

        Raises
        ------
        QueueFullError
            If it is as long as it may be.
        """
        queue = self._queues.setdefault(pool_id, Queue())
        if len(queue.tickets) >= MAX_WAITING:
            raise queue_full(request.pool_name)
        first = queue.tickets[0].round if queue.tickets else 0
        own = (
            each.round + 1
            for each in queue.tickets
            if each.request.consumer_name == request.consumer_name
        )
        turn = max(first, max(own, default=0))
        ticket = Ticket(request, pool_id, turn, next(self._numbers), now)
        queue.tickets.append(ticket)
        queue.tickets.sort(key=lambda each: (each.round, each.number))
        return ticket

    def is_first(self, ticket: Ticket) -> bool:
        """Return whether a ticket is the first in its queue."""
        queue = self._queues.get(ticket.pool_id)
        return queue is not None and queue.tickets[0] is ticket

    def leave(self, ticket: Ticket) -> bool:
        """Give up a place. Return whether there was one."""
        queue = self._queues.get(ticket.pool_id)
        if queue is None or ticket not in queue.tickets:
            return False
        queue.tickets.remove(ticket)
        if not queue.tickets:
            del self._queues[ticket.pool_id]
        return True
