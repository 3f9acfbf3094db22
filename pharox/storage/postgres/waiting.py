"""The waiting callers of a process, and what the answers of its statements tell them.

The tickets of all callers are in the database, in one queue a pool
(``sql/0004/waiting.sql``). Every batch of this process also grants the tickets whose turn it is,
whoever sent it. :mod:`.in_turn` is what a caller does.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from ..requests import EndedLease
from .batch import Acquire, Answer, CommandOutcome
from .sql import Query, Statement, call_of, quoted

BEAT_S = 1.0
"""How often a process with waiting callers says that it is there. Six are missed at most."""

OVERDUE_S = 0.1
"""How soon to look again at a lease that has run out, but that somebody has locked."""

MAX_SERVED = 10_000
"""How many leases of callers who have left a room remembers."""

LOOKS, LOST, UNATTENDED = "looks", "lost", "unattended"
"""What a waiting caller may be told beside an outcome.

To look again; to ask again, as its ticket is gone; or to have somebody attend to its ticket.
"""


class Waiter:
    """A caller who waits: its command, and what it will be told."""

    def __init__(self, command: Acquire) -> None:
        self.command = command
        self.queued_at: float | None = None
        self.known_at = 0.0
        """A moment not after the last one at which its ticket is known to have been there."""
        self.expired: list[EndedLease] = []
        """The leases that were taken back on its behalf while it waited."""
        self.told: Future[Any] = Future()

    @property
    def lease_id(self) -> UUID:
        """The id of its ticket."""
        return self.command.lease_id

    @property
    def ticket_ids(self) -> tuple[UUID, ...]:
        """The ids of all its tickets: one in each pool that it waits in."""
        return (self.lease_id, *self.command.ticket_ids)

    def waited_ms(self) -> int | None:
        """Return how long it has waited, in milliseconds; None if it has not."""
        if self.queued_at is None:
            return None
        return int((time.monotonic() - self.queued_at) * 1000)

    def tell(self, what: Any) -> None:
        """Tell the caller, unless it has been told and has not listened yet."""
        with suppress(InvalidStateError):  # Two threads may tell at once.
            self.told.set_result(what)

    def listen_again(self) -> None:
        """Be ready to be told once more."""
        self.told = Future()


@dataclass(frozen=True)
class Granted:
    """An acquisition of a ticket, and when its statement was sent, on the monotonic clock."""

    outcome: CommandOutcome
    begun: float


class Room:
    """The waiting callers of a storage, in one process. Threads and tasks may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start_empty()

    def _start_empty(self) -> None:
        self._pid = os.getpid()
        self._process = uuid4()
        self._waiters: dict[UUID, list[Waiter]] = {}
        self._served: OrderedDict[UUID, None] = OrderedDict()
        self.emptied_at = time.monotonic()
        self.looks_at = 0.0
        self.beats_at = 0.0

    @property
    def process(self) -> UUID:
        """The id of this process in the queues. A forked child has its own, and nobody waits."""
        self._forget_parent()
        return self._process

    def _forget_parent(self) -> None:
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # a thread that is not here may hold it
            self._start_empty()

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, command: Acquire) -> Waiter:
        """Add a caller, before it asks: it may be granted before it has its ticket's answer."""
        waiter = Waiter(command)
        self._forget_parent()  # Later would be too late: it would forget this caller.
        with self._lock:
            for lease_id in (*command.lease_ids, *command.ticket_ids):
                self._waiters.setdefault(lease_id, []).append(waiter)
        return waiter

    def leave(self, waiter: Waiter, *, is_served: bool) -> None:
        """Remove a caller, who has what it was granted or has given it up.

        Its own answer may overtake that of the statement that granted its ticket.
        """
        with self._lock:
            for lease_id in (*waiter.command.lease_ids, *waiter.command.ticket_ids):
                others = [w for w in self._waiters.pop(lease_id, ()) if w is not waiter]
                if others:
                    self._waiters[lease_id] = others
                if is_served:
                    self._served[lease_id] = None
            while len(self._served) > MAX_SERVED:
                self._served.popitem(last=False)
            self.emptied_at = time.monotonic()

    def was_served(self, lease_id: UUID) -> bool:
        """Return whether a caller left lately with this lease."""
        return lease_id in self._served

    def queued(self) -> list[Waiter]:
        """Return the callers who have tickets and have not been told anything yet."""
        with self._lock:
            waiters = dict.fromkeys(waiter for own in self._waiters.values() for waiter in own)
        return [w for w in waiters if w.queued_at is not None and not w.told.done()]

    def waiters_of(self, lease_id: UUID) -> Sequence[Waiter]:
        """Return the callers who wait for this lease: several if they chose the same id."""
        return tuple(self._waiters.get(lease_id, ()))

    def look_again(self, at: float | None = None) -> None:
        """Have the attendant serve no later than this monotonic time; None is at once."""
        self.looks_at = min(self.looks_at, time.monotonic() if at is None else at)


class News(NamedTuple):
    """What the answers of a statement say about the queue, beside those of its commands."""

    grants: dict[UUID, list[Answer]]
    looks: list[UUID]
    woken: list[str]

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> News:
        """Sort the answers with the number 0."""
        news = cls({}, [], [])
        for answer in answers:
            if answer.number != 0:
                continue
            if answer.outcome == "wake":
                news.woken.append(answer.consumer)
            elif answer.outcome == "look":
                news.looks.append(answer.lease_id)
            elif answer.outcome in ("LeaseAcquired", "granted"):
                news.grants.setdefault(answer.lease_id, []).append(answer)
        return news


# Statements


def channel_of(process: UUID | str) -> str:
    """Return the channel on which a process is woken."""
    return f"pharox_{UUID(str(process)).hex}"


@lru_cache(maxsize=8)
def beat_statement(schema: str) -> Statement:
    """Return the statement that says that a process is there."""
    return call_of(schema, "beat_v1", {"own_process": "uuid"})._replace(columns=("beat",))


@lru_cache(maxsize=8)
def leave_statement(schema: str) -> Statement:
    """Return the statement that gives up a place in a queue."""
    parameters = {
        "own_process": "uuid",
        "own_slot": "smallint",
        "with_stats": "boolean",
        "lease_id": "uuid",
        "is_miss": "boolean",
    }
    statement = call_of(schema, "leave_queue_v1", parameters)
    return statement._replace(columns=Answer._fields, writes=True, is_bare=True)


@lru_cache(maxsize=8)
def leave_all_statement(schema: str) -> Statement:
    """Return the statement that gives up a caller's places in several queues."""
    parameters = {"own_process": "uuid", "asked_ids": "uuid[]"}
    statement = call_of(schema, "leave_queues_v1", parameters)
    return statement._replace(columns=Answer._fields, writes=True, is_bare=True)


@lru_cache(maxsize=8)
def tickets_statement(schema: str) -> Statement:
    """Return the query for the ids of a process's tickets."""
    text = (
        f"SELECT lease_ids[1] FROM {quoted(schema)}.waiting_tickets "  # noqa: S608 - quoted
        "WHERE process_id = $1::uuid"
    )
    return Statement(text.encode(), ("own_process",), {}, ("lease_id",))


@lru_cache(maxsize=8)
def waited_for_statement(schema: str) -> Statement:
    """Return the query for the pools in which somebody waits."""
    text = f"SELECT DISTINCT pool_id FROM {quoted(schema)}.waiting_tickets"  # noqa: S608 - quoted
    return Statement(text.encode(), (), {}, ("pool_id",))


@lru_cache(maxsize=8)
def queue_statement(schema: str) -> Statement:
    """Return the query for who waits, by pool. Tickets of a silent process do not count."""
    own = quoted(schema)
    text = f"""
        SELECT
            waits.pool_name,
            sum(waits.requests)::bigint,
            greatest(0, extract(epoch FROM {own}.clock() - min(waits.since)))::double precision,
            jsonb_object_agg(waits.consumer, waits.requests)
        FROM (
            SELECT
                pool.name AS pool_name,
                ticket.consumer,
                count(*) AS requests,
                min(ticket.since) AS since
            FROM {own}.waiting_tickets AS ticket
            JOIN {own}.waiting_processes AS process ON process.id = ticket.process_id
            JOIN {own}.pools AS pool ON pool.id = ticket.pool_id
            WHERE process.seen_at > {own}.clock() - {own}.silence_v1()
              AND ($1::text IS NULL OR pool.name = $1::text)
            GROUP BY pool.name, ticket.consumer
        ) AS waits
        GROUP BY waits.pool_name
        ORDER BY waits.pool_name COLLATE "C"
    """  # noqa: S608 - quoted
    columns = ("pool_name", "waiting", "longest_wait_seconds", "consumers")
    return Statement(text.encode(), ("name",), {}, columns)


WAKE = Statement(
    b"SELECT pg_notify(channel, '') FROM unnest($1::text[]) AS channel",
    ("channels",),
    {},
    ("woken",),
)
"""Wakes processes. It is a transaction of its own, as NOTIFY takes a lock of the whole server."""


def wake_query(processes: Sequence[str]) -> Query:
    """Return the query that wakes processes."""
    return Query(WAKE, {"channels": [channel_of(each) for each in processes]})
