"""Random callers who wait, against memory, PostgreSQL and a plain queue."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pharox import InMemoryStorage, Lease, Proxy, ProxyFilters, ProxyPool, ProxyStatus
from pharox.events import LeaseAcquired
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireSetRequest, SetAcquisition
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    Clock,
    clock_of,
    new_database,
    open_engine,
    run_sql,
)

COUNTRIES = ("AR", "AR", "CL", None)
WISHES = (None, "AR", "CL")
PATIENCE_S = 10.0


@dataclass
class PlainTicket:
    """A set that waits: who wants how many proxies of which country."""

    number: int
    round: int
    consumer: str
    country: str | None
    count: int
    needed: int
    answers: list[Future[SetAcquisition]] = field(default_factory=list)


@dataclass
class PlainQueue:
    """What the rules of the queue say, in the plainest words."""

    proxies: dict[UUID, str | None]
    banned: set[UUID] = field(default_factory=set)
    holders: dict[UUID, tuple[Lease, ...]] = field(default_factory=dict)
    tickets: list[PlainTicket] = field(default_factory=list)

    def free(self, country: str | None, kept: set[UUID]) -> list[UUID]:
        """Return what could be leased, in the order of ids."""
        return [
            proxy_id
            for proxy_id, its_country in sorted(self.proxies.items())
            if country in (None, its_country)
            and proxy_id not in self.holders
            and proxy_id not in self.banned
            and proxy_id not in kept
        ]

    def healthy(self, country: str | None) -> int:
        """Return how many proxies a set could have if nothing were leased."""
        fitting = [each for each, of in self.proxies.items() if country in (None, of)]
        return len(set(fitting) - self.banned)

    def serve(self) -> tuple[list[tuple[PlainTicket, list[UUID]]], set[UUID]]:
        """Return who gets what in turn, and what is kept for sets that lack some."""
        granted, kept, taken = [], set[UUID](), set[UUID]()
        for ticket in sorted(self.tickets, key=lambda each: (each.round, each.number)):
            found = self.free(ticket.country, kept | taken)[: ticket.count]
            if len(found) >= ticket.needed:
                granted.append((ticket, found))
                taken |= set(found)
                self.tickets.remove(ticket)
            elif self.healthy(ticket.country) >= ticket.needed:
                kept |= set(found)
        return granted, kept

    def turn_of(self, consumer: str) -> int:
        """Return the round of a consumer's next ticket."""
        own = [each.round + 1 for each in self.tickets if each.consumer == consumer]
        return max([*own, min((each.round for each in self.tickets), default=0)])


class WaitingMachine(RuleBasedStateMachine):
    """Each rule does one thing to both storages, and compares who was granted what."""

    server_url: ClassVar[str]
    template: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._database = new_database(self.server_url, f"w_{uuid4().hex[:16]}", self.template)
        engine = open_engine(self._database.__enter__())
        self.postgres = PostgresStorage(engine, secret_keys=[SECRET_KEY])
        self.memory = InMemoryStorage()
        self.both: tuple[AnyStorage, AnyStorage] = (self.memory, self.postgres)
        self.clocks: list[Clock] = [clock_of(storage) for storage in self.both]
        self.threads = ThreadPoolExecutor(80)
        self.numbers = 0

    @initialize()
    def begin(self) -> None:
        pool = ProxyPool(name="pool")
        proxies = [
            Proxy(
                id=UUID(int=number + 1),
                host=f"{number}.example",
                port=8000,
                protocol="http",
                pool_id=pool.id,
                status=ProxyStatus.ACTIVE,
                checked_at=self.clocks[0].now,
                country=country,
                max_concurrency=1,
            )
            for number, country in enumerate(COUNTRIES)
        ]
        self.plain = PlainQueue({proxy.id: proxy.country for proxy in proxies})
        for storage in self.both:
            storage.save_pool(pool)
            storage.add_proxies_bulk(proxies)

    def teardown(self) -> None:
        while self.plain.tickets or self.plain.holders:
            for proxy_id in sorted(self.plain.banned):
                self._set_status(proxy_id, ProxyStatus.ACTIVE)
            if self.plain.holders:
                self.release(0)
        assert self.postgres.verify() == []
        assert self.memory.verify() == []
        self.threads.shutdown()
        self.postgres.close()
        self._database.__exit__()

    # Rules

    @precondition(lambda self: len(self.plain.tickets) < 20)
    @rule(
        consumer=st.sampled_from("abc"),
        country=st.sampled_from(WISHES),
        count=st.sampled_from([1, 1, 1, 2, 3]),
        missing=st.integers(0, 2),
    )
    def wait(self, consumer: str, country: str | None, count: int, missing: int) -> None:
        """A caller waits, unless what it needs is more than there could be, or is free."""
        self._ask(consumer, country, count, max(1, count - missing), wait_seconds=600)

    @rule(consumer=st.sampled_from("abc"), country=st.sampled_from(WISHES), count=st.integers(1, 3))
    def ask(self, consumer: str, country: str | None, count: int) -> None:
        """Who does not wait never overtakes."""
        self._ask(consumer, country, count, 1, wait_seconds=None)

    @precondition(lambda self: self.plain.holders)
    @rule(pick=st.integers(0, 9))
    def release(self, pick: int) -> None:
        """What is given back goes to who is next."""
        proxy_id = sorted(self.plain.holders)[pick % len(self.plain.holders)]
        leases = self.plain.holders.pop(proxy_id)
        for storage, lease in zip(self.both, leases, strict=True):
            assert storage.return_lease(lease).ending is not None
        self._settle()

    @rule(pick=st.integers(0, 9), status=st.sampled_from([ProxyStatus.ACTIVE, ProxyStatus.BANNED]))
    def set_status(self, pick: int, status: ProxyStatus) -> None:
        """A ban takes from who waits, and its end gives."""
        self._set_status(sorted(self.plain.proxies)[pick % len(self.plain.proxies)], status)

    @rule()
    def time_passes(self) -> None:
        """All leases run out at once."""
        for storage, clock in zip(self.both, self.clocks, strict=True):
            clock.advance(61)
            storage.cleanup_expired_leases()
        self.plain.holders.clear()
        self._settle()

    # What holds after every step

    @invariant()
    def logs_agree(self) -> None:
        unlike = {"position", "lease_id", "consumer_id"}
        ours, theirs = (
            [event.model_dump(exclude=unlike) for event in storage.events()]
            for storage in self.both
        )
        assert ours == theirs

    @invariant()
    def queues_agree(self) -> None:
        assert _waiting(self.memory) == _waiting(self.postgres) == len(self.plain.tickets)

    @invariant()
    def who_waited_says_how_long(self) -> None:
        for event in self.memory.events():
            if isinstance(event, LeaseAcquired) and event.waited_ms is not None:
                assert event.waited_ms % 61_000 == 0

    # Parts

    def _ask(
        self,
        consumer: str,
        country: str | None,
        count: int,
        needed: int,
        *,
        wait_seconds: float | None,
    ) -> None:
        filters = None if country is None else ProxyFilters(country=country)
        request = AcquireSetRequest(
            "pool", consumer, count, 60, filters, at_least=needed, wait_seconds=wait_seconds
        )
        self.numbers += 1
        turn = self.plain.turn_of(consumer)
        ticket = PlainTicket(self.numbers, turn, consumer, country, count, needed)
        _, kept = self.plain.serve()
        found = self.plain.free(country, kept)[:count]
        room = len([each for each in self.plain.proxies.values() if country in (None, each)])
        if wait_seconds and len(found) < needed and room >= needed:
            self.plain.tickets.append(ticket)
        for storage in self.both:
            ticket.answers.append(self.threads.submit(storage.acquire_set, request))
            if ticket in self.plain.tickets:
                _until(partial(self._all_wait, storage))
        if ticket not in self.plain.tickets:
            self._check(ticket, found if len(found) >= needed else [])
        self._settle()

    def _all_wait(self, storage: AnyStorage) -> bool:
        return _waiting(storage) == len(self.plain.tickets)

    def _settle(self) -> None:
        granted, _ = self.plain.serve()
        for ticket, proxy_ids in granted:
            self._check(ticket, proxy_ids)
        for ticket in self.plain.tickets:
            assert not any(answer.done() for answer in ticket.answers)

    def _check(self, ticket: PlainTicket, proxy_ids: list[UUID]) -> None:
        ours, theirs = (answer.result(PATIENCE_S).acquisitions for answer in ticket.answers)
        for proxy_id, one, other in zip(proxy_ids, ours, theirs, strict=True):
            assert one.lease is not None
            assert other.lease is not None
            assert one.lease.proxy_id == other.lease.proxy_id == proxy_id
            assert one.lease.consumer_name == other.lease.consumer_name == ticket.consumer
            self.plain.holders[proxy_id] = (one.lease, other.lease)

    def _set_status(self, proxy_id: UUID, status: ProxyStatus) -> None:
        self.plain.banned.discard(proxy_id)
        if status is ProxyStatus.BANNED:
            self.plain.banned.add(proxy_id)
        for storage in self.both:
            storage.set_status(proxy_id, status)
        self._settle()


def _waiting(storage: AnyStorage) -> int:
    """Return how many tickets there are, whether or not their process was seen since."""
    if isinstance(storage, InMemoryStorage):
        return sum(queue.waiting for queue in storage.queue_stats())
    ((number,),) = run_sql(storage.engine, "SELECT count(*)::integer FROM pharox.waiting_tickets")
    assert isinstance(number, int)
    return number


def _until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_nobody_overtakes_and_nobody_is_forgotten(server_url: str, template: str) -> None:
    """Who is granted what, and in what order, is what the rules of the queue say."""

    class Machine(WaitingMachine):
        pass

    Machine.server_url, Machine.template = server_url, template
    run_state_machine_as_test(Machine, settings=settings(max_examples=15, stateful_step_count=25))
