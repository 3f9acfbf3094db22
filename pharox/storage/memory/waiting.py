"""Wait for a proxy: one queue a pool, in the order of tickets.

A ticket is a request that nothing was free for. Whatever makes a proxy free serves the queue
at once, under the same lock, so nobody overtakes. Turns are taken by rounds, as in
``sql/0004/waiting.sql``: of the requests of one consumer, each is one round after the one before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
    """A place in a queue, or one in the queue of each pool of a request with a fallback.

    ``rounds`` has its round in each pool.
    """

    request: Request
    rounds: dict[UUID, int]
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

    def take_ticket(
        self, request: Request, names: Sequence[str], pool_ids: Sequence[UUID], now: datetime
    ) -> Ticket:
        """Add a request to the queues of its pools.

        Raises
        ------
        QueueFullError
            If one of them is as long as it may be.
        """
        for name, pool_id in zip(names, pool_ids, strict=True):
            if pool_id in self._queues and len(self._queues[pool_id].tickets) >= MAX_WAITING:
                raise queue_full(name)
        rounds = {pool_id: self._next_round(request, pool_id) for pool_id in pool_ids}
        ticket = Ticket(request, rounds, next(self._numbers), now)
        for pool_id in pool_ids:
            queue = self._queues.setdefault(pool_id, Queue())
            queue.tickets.append(ticket)
            queue.tickets.sort(key=lambda each: (each.rounds[pool_id], each.number))
        return ticket

    def _next_round(self, request: Request, pool_id: UUID) -> int:
        tickets = self._queues[pool_id].tickets if pool_id in self._queues else []
        first = tickets[0].rounds[pool_id] if tickets else 0
        own = (
            each.rounds[pool_id] + 1
            for each in tickets
            if each.request.consumer_name == request.consumer_name
        )
        return max(first, max(own, default=0))

    def is_first(self, ticket: Ticket) -> bool:
        """Return whether a ticket is the first in a queue."""
        queues = (self._queues.get(pool_id) for pool_id in ticket.rounds)
        return any(queue is not None and queue.tickets[0] is ticket for queue in queues)

    def leave(self, ticket: Ticket) -> bool:
        """Give up all places of a ticket. Return whether there were any."""
        left = False
        for pool_id in ticket.rounds:
            queue = self._queues.get(pool_id)
            if queue is None or ticket not in queue.tickets:
                continue
            left = True
            queue.tickets.remove(ticket)
            if not queue.tickets:
                del self._queues[pool_id]
        return left
