"""Callers who wait are interrupted, cut off, forgotten and forked: nothing is lost or left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from pharox import (
    DatabaseUnavailableError,
    Lease,
    LeaseStatus,
    OutcomeUnknownError,
    PharoxError,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    connect,
    new_lease_id,
)
from pharox.errors import QueueFullError
from pharox.storage.memory import waiting as memory_waiting
from pharox.storage.postgres import PostgresStorage, batch, sql
from pharox.storage.postgres import waiting as pharox_waiting
from pharox.storage.requests import AcquireRequest
from tests import pgbouncer
from tests.conftest import (
    SECRET_KEY,
    AnyStorage,
    fill,
    ledger,
    run_sql,
    types_of,
)
from tests.leasing.test_contention import most_holders_at_once
from tests.ledger.following import until

WAIT_S = 20


def tickets(storage: AnyStorage) -> int:
    """Return how many callers have a place in a queue."""
    if isinstance(storage, PostgresStorage):
        ((count,),) = run_sql(storage.engine, "SELECT count(*) FROM pharox.waiting_tickets")
        return int(str(count))
    queues = storage._state.queues
    found = [queues.of(pool_id) for pool_id in queues.pools()]
    return sum(len(queue.tickets) for queue in found if queue is not None)


def active(storage: AnyStorage) -> list[Lease]:
    """Return the leases that somebody holds."""
    return [each for each in storage.list_leases() if each.status is LeaseStatus.ACTIVE]


def assert_nothing_is_left(storage: AnyStorage) -> None:
    """Nobody holds a lease or waits, no proxy had two holders, the read models are the log's."""
    assert active(storage) == []
    assert tickets(storage) == 0
    assert set(most_holders_at_once(list(storage.events())).values()) <= {1}
    assert storage.verify() == []


class Waiting:
    """Callers in threads of their own."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(20)

    def start(self, storage: AnyStorage, name: str = "w", **options: Any) -> Future[Lease | None]:
        """Have somebody wait, and return once there is a ticket."""
        before = tickets(storage)
        known = {"wait_seconds": WAIT_S, **options}
        answer = self._pool.submit(ProxyManager(storage).acquire_proxy, "pool", name, **known)
        until(lambda: tickets(storage) > before or answer.done(), 10)
        return answer

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Make a call in a thread."""
        return self._pool.submit(call, *arguments)

    def end(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """Callers who wait."""
    callers = Waiting()
    yield callers
    callers.end()


def held(storage: AnyStorage, count: int = 1, **facts: Any) -> list[Lease]:
    """Fill a pool, and hold all of it."""
    fill(storage, count, **facts)
    leases = ProxyManager(storage).acquire_proxies("pool", count, "holder", 300)
    assert len(leases) == count
    return list(leases)


def cut_all(storage: PostgresStorage) -> int:
    """End all sessions of the database but one's own."""
    url = make_url(storage.engine.url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as own:
        rows = own.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchall()
    return len(rows)


# Connections


def test_cut_connections_end_no_wait(storage: PostgresStorage, waiting: Waiting) -> None:
    """All sessions end again and again, the listener's too; callers are served in their order."""
    (lease,) = held(storage)
    answers = [waiting.start(storage, "w") for _ in range(4)]
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as other:
        for answer in answers:
            for _ in range(3):
                cut_all(storage)
                time.sleep(0.1)
            assert not answer.done()
            _insist(lambda: ProxyManager(other).release_proxy(lease))  # noqa: B023
            found = answer.result(WAIT_S)
            assert found is not None
            lease = found
        _insist(lambda: ProxyManager(other).release_proxy(lease))
    assert_nothing_is_left(storage)
    assert "AcquireMissed" not in types_of(storage)


def _insist(ask: Callable[[], Any]) -> Any:
    for _ in range(20):
        try:
            return ask()
        except PharoxError:
            time.sleep(0.05)
    return ask()


def test_an_unknown_grant_reaches_its_waiter(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that grants a ticket is lost: the caller asks again, and has that lease."""
    (lease,) = held(storage)
    answer = waiting.start(storage, "w")
    lost = _lose_the_next_grant(storage, monkeypatch)
    with pytest.raises(RuntimeError, match="lost"):
        storage.release_lease(lease)
    found = answer.result(WAIT_S)
    assert lost
    assert found is not None
    assert [each.id for each in active(storage)] == [found.id]
    assert types_of(storage).count("LeaseAcquired") == 2
    ProxyManager(storage).release_proxy(found)
    assert_nothing_is_left(storage)


def test_an_unknown_grant_counts_from_before_it(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who learns late of a lease does not count on it for longer than the ledger does."""
    (lease,) = held(storage)
    request = AcquireRequest("pool", "w", 60, wait_seconds=WAIT_S)
    answer = waiting.submit(storage.acquire_lease, request)
    until(lambda: tickets(storage) == 1, 10)
    monkeypatch.setattr(storage._commands, "serve", _pausing(storage, 1))
    _lose_the_next_grant(storage, monkeypatch)
    with pytest.raises(RuntimeError, match="lost"):
        storage.release_lease(lease)
    granted_by = time.monotonic()
    found = answer.result(WAIT_S)
    assert found.lease is not None
    assert found.is_new
    assert found.counts_from is not None
    assert found.counts_from <= granted_by
    storage.release_lease(found.lease)
    assert_nothing_is_left(storage)


def _pausing(storage: PostgresStorage, seconds: float) -> Callable[[], Any]:
    original = storage._commands.serve

    def serve() -> Any:
        time.sleep(seconds)
        return (yield from original())

    return serve


def _lose_the_next_grant(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have the next answer that grants a ticket never arrive."""
    original, lost = storage._commands._pass_on, list[bool]()

    def pass_on(answers: Any, begun: float) -> Any:
        if not lost and any(a.number == 0 and a.outcome == "LeaseAcquired" for a in answers):
            lost.append(True)
            raise RuntimeError("the answer was lost")
        yield from original(answers, begun)

    monkeypatch.setattr(storage._commands, "_pass_on", pass_on)
    return lost


def test_a_wake_up_that_fails_fails_nobody(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is told to its caller, whether or not others could be woken."""
    (lease,) = held(storage)
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as other:
        answer = waiting.start(other, "w")
        query = sql.Query
        broken = pharox_waiting.WAKE._replace(
            text=b"SELECT pg_terminate_backend(pg_backend_pid()), $1::text[]"
        )
        monkeypatch.setattr(
            pharox_waiting, "wake_query", lambda ids: query(broken, {"channels": list(ids)})
        )
        ProxyManager(storage).release_proxy(lease)
        found = answer.result(WAIT_S)
        assert found is not None
        other.release_lease(found)
    assert_nothing_is_left(storage)


def test_a_forgotten_process_asks_again(storage: PostgresStorage, waiting: Waiting) -> None:
    """The tickets of a process are gone: its callers take new ones, and are served."""
    (lease,) = held(storage)
    answers = [waiting.start(storage, "w") for _ in range(3)]
    run_sql(storage.engine, "DELETE FROM pharox.waiting_processes RETURNING id")
    assert tickets(storage) == 0
    until(lambda: tickets(storage) == 3, 5)
    for _ in answers:
        ProxyManager(storage).release_proxy(lease)
        until(lambda: len(active(storage)) == 1, 5)
        (lease,) = active(storage)
    assert all(answer.result(5) is not None for answer in answers)
    ProxyManager(storage).release_proxy(lease)
    assert_nothing_is_left(storage)


def test_a_process_that_is_being_forgotten_has_its_ticket(
    storage: PostgresStorage, waiting: Waiting
) -> None:
    """It has not waited for long, and does again just while others forget it."""
    (lease,) = held(storage)
    assert waiting.start(storage, "w", wait_seconds=0.1).result(10) is None
    until(lambda: "pharox-waiting" not in [each.name for each in threading.enumerate()], 10)
    url = make_url(storage.engine.url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as other:
        assert other.execute("DELETE FROM pharox.waiting_processes").rowcount == 1
        request = AcquireRequest("pool", "w", 60, wait_seconds=WAIT_S)
        answer = waiting.submit(storage.acquire_lease, request)
        time.sleep(0.5)
        other.commit()
    until(lambda: tickets(storage) == 1, 10)
    storage.release_lease(lease)
    found = answer.result(WAIT_S)
    storage.release_lease(found.lease)
    assert_nothing_is_left(storage)


def test_the_dead_are_forgotten_although_nobody_waits(
    storage: PostgresStorage, waiting: Waiting
) -> None:
    """Whoever leases there forgets them, so that leasing is as fast as before."""
    (lease,) = held(storage)
    answer = waiting.start(storage, "w", wait_seconds=1)
    _leave_tickets_of_the_dead(storage)
    assert answer.result(10) is None
    until(lambda: "pharox-waiting" not in [each.name for each in threading.enumerate()], 10)
    assert tickets(storage) == 1
    run_sql(
        storage.engine, "UPDATE pharox.waiting_processes SET seen_at = now() - interval '1 hour'"
    )
    ProxyManager(storage).release_proxy(lease)
    assert_nothing_is_left(storage)


def test_behind_a_pooler_they_poll(pooled_url: str) -> None:
    """Where nobody can listen, waiting works, as the attendant looks more often."""
    storage = PostgresStorage(pgbouncer.pooled_engine(pooled_url), secret_keys=[SECRET_KEY])
    other = PostgresStorage(pgbouncer.pooled_engine(pooled_url), secret_keys=[SECRET_KEY])
    callers = Waiting()
    try:
        (lease,) = held(storage)
        answers = [callers.start(storage, "w") for _ in range(3)]
        for answer in answers:
            ProxyManager(other).release_proxy(lease)
            found = answer.result(5)
            assert found is not None
            lease = found
        ProxyManager(other).release_proxy(lease)
        assert_nothing_is_left(storage)
    finally:
        callers.end()
        storage.close()
        other.close()


# The queue


def test_the_places_of_the_dead_fill_no_queue(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process's tickets count no more towards the queue's length once it is silent."""
    monkeypatch.setattr(batch, "MAX_WAITING", 3)
    (lease,) = held(storage)
    answers = [waiting.start(storage, "w", wait_seconds=3) for _ in range(3)]
    with pytest.raises(QueueFullError):
        ProxyManager(storage).acquire_proxy("pool", "late", wait_seconds=1)
    _leave_tickets_of_the_dead(storage)
    assert [answer.result(10) for answer in answers] == [None] * 3
    assert tickets(storage) == 3
    last = waiting.start(storage, "late")
    ProxyManager(storage).release_proxy(lease)
    found = last.result(WAIT_S)
    assert found is not None


def _leave_tickets_of_the_dead(storage: PostgresStorage) -> None:
    """Have the tickets be those of a process that was killed a while ago."""
    for statement in (
        "INSERT INTO pharox.waiting_processes VALUES "
        "('00000000-0000-0000-0000-000000000001', now() - interval '7 seconds')",
        "UPDATE pharox.waiting_tickets SET process_id = '00000000-0000-0000-0000-000000000001', "
        "lease_ids = ARRAY[gen_random_uuid()]",
    ):
        run_sql(storage.engine, statement)


def test_a_full_queue_says_so(
    any_storage: AnyStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an error of its own, and whoever is in it is served."""
    monkeypatch.setattr(batch, "MAX_WAITING", 2)
    monkeypatch.setattr(memory_waiting, "MAX_WAITING", 2)
    (lease,) = held(any_storage)
    answers = [waiting.start(any_storage, "w") for _ in range(2)]
    with pytest.raises(QueueFullError):
        ProxyManager(any_storage).acquire_proxy("pool", "late", wait_seconds=5)
    for answer in answers:
        ProxyManager(any_storage).release_proxy(lease)
        found = answer.result(5)
        assert found is not None
        lease = found
    ProxyManager(any_storage).release_proxy(lease)
    assert_nothing_is_left(any_storage)


# The pool


def test_a_banned_proxy_is_waited_for(any_storage: AnyStorage, waiting: Waiting) -> None:
    """Nothing may be had meanwhile; once the ban is lifted, who waits has it."""
    (lease,) = held(any_storage)
    any_storage.set_status(lease.proxy_id, ProxyStatus.BANNED)
    answer = waiting.start(any_storage, "w")
    ProxyManager(any_storage).release_proxy(lease)
    time.sleep(1.2)
    assert not answer.done()
    any_storage.set_status(lease.proxy_id, ProxyStatus.ACTIVE)
    found = answer.result(5)
    assert found is not None
    ProxyManager(any_storage).release_proxy(found)
    assert_nothing_is_left(any_storage)


def test_an_emptied_pool_is_a_miss(any_storage: AnyStorage, waiting: Waiting) -> None:
    """Who waits while the last proxy is removed misses; there is no ticket left."""
    (lease,) = held(any_storage)
    answer = waiting.start(any_storage, "w", wait_seconds=3)
    _remove(any_storage, lease)
    assert answer.result(10) is None
    assert_nothing_is_left(any_storage)


def _remove(storage: AnyStorage, lease: Lease) -> None:
    storage.set_status(lease.proxy_id, ProxyStatus.BANNED)
    ProxyManager(storage).release_proxy(lease)
    storage.delete_proxy(str(lease.proxy_id))


def test_a_deleted_pool_is_a_miss(any_storage: AnyStorage, waiting: Waiting) -> None:
    """Who waits in a pool that is deleted misses, and leaves no ticket."""
    (lease,) = held(any_storage)
    answer = waiting.start(any_storage, "w", wait_seconds=3)
    behind = waiting.start(any_storage, "w", wait_seconds=4, filters=None)
    pool_id = any_storage.get_proxy(str(lease.proxy_id)).pool_id
    _remove(any_storage, lease)
    any_storage.delete_pool(str(pool_id))
    assert [answer.result(10), behind.result(10)] == [None, None]
    assert_nothing_is_left(any_storage)


# Sets


def test_a_set_is_not_starved(any_storage: AnyStorage, waiting: Waiting) -> None:
    """A set of three behind two singles and before two others is served in its turn."""
    leases = held(any_storage, 3)
    manager, order, lock = ProxyManager(any_storage), list[str](), threading.Lock()

    def take(name: str, count: int) -> None:
        found = list(manager.acquire_proxies("pool", count, "w", 300, wait_seconds=WAIT_S))
        with lock:
            order.append(name)
        assert len(found) == count
        time.sleep(0.05)
        for each in found:
            manager.release_proxy(each)

    pool = ThreadPoolExecutor(8)
    done = []
    for place, (name, count) in enumerate(
        [("first", 1), ("second", 1), ("set", 3), ("third", 1), ("fourth", 1)]
    ):
        done.append(pool.submit(take, name, count))
        until(lambda place=place: tickets(any_storage) == place + 1, 10)  # type: ignore[misc]
    for lease in leases:
        manager.release_proxy(lease)
        time.sleep(0.05)
    for each in done:
        each.result(WAIT_S)
    pool.shutdown()
    assert set(order[:2]) == {"first", "second"}
    assert order[2] == "set"
    assert_nothing_is_left(any_storage)


def test_a_set_that_cannot_be_had_keeps_nothing(any_storage: AnyStorage, waiting: Waiting) -> None:
    """The pool has become too small for the set in front: those behind it are served."""
    leases = held(any_storage, 3)
    manager = ProxyManager(any_storage)
    pool = ThreadPoolExecutor(1)
    front = pool.submit(manager.acquire_proxies, "pool", 3, "w", 300, wait_seconds=8)
    until(lambda: tickets(any_storage) == 1, 10)
    behind = waiting.start(any_storage, "w")
    _remove(any_storage, leases[0])
    manager.release_proxy(leases[1])
    found = behind.result(5)
    assert found is not None
    manager.release_proxies([found, leases[2]])
    assert list(front.result(20)) == []
    pool.shutdown()
    assert_nothing_is_left(any_storage)


def test_two_processes_take_turns(storage: PostgresStorage) -> None:
    """The consumers of two processes alternate, although one came first with all of its callers."""
    (lease,) = held(storage)
    order: list[str] = []
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as other:

        def take(where: PostgresStorage, name: str) -> None:
            manager = ProxyManager(where)
            found = manager.acquire_proxy("pool", name, wait_seconds=WAIT_S)
            assert found is not None
            order.append(name)
            manager.release_proxy(found)

        pool = ThreadPoolExecutor(12)
        done = []
        for where, name in [(storage, "many")] * 6 + [(other, "few")] * 3:
            before = tickets(storage)
            done.append(pool.submit(take, where, name))
            until(lambda before=before: tickets(storage) > before, 10)  # type: ignore[misc]
        ProxyManager(storage).release_proxy(lease)
        for each in done:
            each.result(WAIT_S)
        pool.shutdown()
    assert order == ["many", "few"] * 3 + ["many"] * 3
    assert_nothing_is_left(storage)


# Processes and storages


def test_a_forked_child_waits_for_itself(storage: PostgresStorage) -> None:
    """It does not answer for its parent's callers, and its first own wait is served."""
    url = storage.engine.url.render_as_string(hide_password=False)
    held(storage)
    with multiprocessing.get_context("spawn").Manager() as shared:
        results = shared.list()
        parent = multiprocessing.get_context("spawn").Process(target=_forking, args=(url, results))
        parent.start()
        until(lambda: tickets(storage) == 2, 30)
        (lease,) = active(storage)
        for _ in range(2):
            ProxyManager(storage).release_proxy(lease)
            until(lambda: len(active(storage)) == 1, 10)
            (lease,) = active(storage)
        parent.join(30)
        assert parent.exitcode == 0
        assert sorted(results) == ["child", "parent"]
    ProxyManager(storage).release_proxy(lease)
    assert_nothing_is_left(storage)


def _forking(url: str, results: Any) -> None:
    os.environ["PHAROX_SECRET_KEY"] = SECRET_KEY
    with closing(connect(url)) as storage:
        thread = threading.Thread(target=_wait, args=(storage, "parent", results))
        thread.start()
        until(lambda: tickets(storage) == 1, 10)
        child = multiprocessing.get_context("fork").Process(
            target=_wait, args=(storage, "child", results)
        )
        child.start()
        child.join(30)
        assert child.exitcode == 0
        thread.join(30)


def _wait(storage: PostgresStorage, name: str, results: Any) -> None:
    lease = ProxyManager(storage).acquire_proxy("pool", name, wait_seconds=WAIT_S)
    results.append(name if lease is not None else f"{name} missed")


def test_a_closed_storage_keeps_no_caller_waiting(
    storage: PostgresStorage, waiting: Waiting
) -> None:
    """Whoever waits while it is closed goes on, has an answer in time, and leaves no ticket."""
    (lease,) = held(storage)
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as other:
        first = waiting.start(other, "w", wait_seconds=60)
        others = [waiting.start(other, "w", wait_seconds=4) for _ in range(2)]
        other.close()
        ProxyManager(storage).release_proxy(lease)
        found = first.result(10)
        assert found is not None
        for answer in others:
            assert answer.result(8) is None
    assert "pharox-waiting" not in [each.name for each in threading.enumerate()]
    ProxyManager(storage).release_proxy(found)
    assert_nothing_is_left(storage)


def test_whoever_waits_while_an_attendant_ends_has_the_next(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that was told to end, and is slow to, is not taken for one that attends."""
    (lease,) = held(storage)
    attendant, threads = storage._attendant, set[threading.Thread]()
    attend, ask, is_attended = attendant.attend, attendant._ask, threading.Event()

    def attend_again() -> None:
        attend()
        if threads:
            is_attended.set()

    def ask_and_stop(program: Any) -> Any:
        thread = threading.current_thread()
        if thread.name == "pharox-waiting" and not threads:
            threads.add(thread)
            until(lambda: bool(attendant.room.queued()), 10)
            attendant.stop()  # By which the caller has one started, while this thread is here.
            assert is_attended.wait(10)
        return ask(program)

    monkeypatch.setattr(attendant, "attend", attend_again)
    monkeypatch.setattr(attendant, "_ask", ask_and_stop)
    answer = waiting.start(storage, wait_seconds=20)
    assert is_attended.wait(10)
    (ended,) = threads
    ended.join(10)
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as elsewhere:
        ProxyManager(elsewhere).release_proxy(lease)
        found = answer.result(10)
    assert found is not None
    ProxyManager(storage).release_proxy(found)
    assert_nothing_is_left(storage)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupted_wait_leaves_no_place(any_storage: AnyStorage) -> None:
    """A KeyboardInterrupt at any moment of a wait leaves neither a ticket nor a lease.

    One within psycopg or SQLAlchemy may leave a connection to the collector, which warns.
    """
    fill(any_storage, 1)
    manager, other = ProxyManager(any_storage), ThreadPoolExecutor(1)
    for number in range(40):
        (lease,) = manager.acquire_proxies("pool", 1, "holder", 300)
        seconds = 0.0005 + number * 0.0005
        freeing = other.submit(_release_after, manager, lease, seconds if number % 2 else 0.1)
        found = None
        with suppress(KeyboardInterrupt):
            try:
                with _interrupted_after(seconds):
                    found = manager.acquire_proxy("pool", "w", 300, wait_seconds=WAIT_S)
            finally:
                if found is not None:
                    manager.release_proxy(found)
        freeing.result(10)
        until(lambda: tickets(any_storage) == 0 and not active(any_storage), 10)
    other.shutdown()
    assert_nothing_is_left(any_storage)
    gc.collect()  # Here, and not in the middle of another test.


def _release_after(manager: ProxyManager, lease: Lease, seconds: float) -> None:
    time.sleep(seconds)
    manager.release_proxy(lease)


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Have a signal interrupt the main thread, unless the block ends first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Ids of one's own, and predicates


def test_who_waits_under_an_id_has_what_it_was_granted(any_storage: AnyStorage) -> None:
    """Its first grant may be old: it is renewed if it is kept, and no new lease of this call."""
    fill(any_storage, 1)
    manager, mine = ProxyManager(any_storage), new_lease_id()
    first = manager.acquire_proxy("pool", "w", 100, lease_id=mine)
    again = manager.acquire_proxy(
        "pool", "w", 100, lease_id=mine, wait_seconds=WAIT_S, keep_alive=True
    )
    assert first is not None
    assert again is not None
    assert again.id == mine
    assert types_of(any_storage).count("LeaseRenewed") == 1
    request = AcquireRequest("pool", "w", 100, lease_id=mine, wait_seconds=WAIT_S)
    assert not any_storage.acquire_lease(request).is_new
    manager.release_proxy(again)
    assert_nothing_is_left(any_storage)


def test_an_interrupted_wait_under_an_id_ends_no_earlier_lease(
    storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier call was granted it, and its holder goes on."""
    fill(storage, 1)
    manager, mine = ProxyManager(storage), new_lease_id()
    lease = manager.acquire_proxy("pool", "w", 100, lease_id=mine)
    assert lease is not None
    original = storage._attendant.ask_in_turn

    def ask(command: Any) -> Any:
        original(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(storage._attendant, "ask_in_turn", ask)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire_proxy("pool", "w", 100, lease_id=mine, wait_seconds=WAIT_S)
    assert [each.id for each in active(storage)] == [mine]
    manager.release_proxy(lease)
    assert_nothing_is_left(storage)


def test_a_wait_with_a_predicate_survives_the_same(
    storage: PostgresStorage, waiting: Waiting
) -> None:
    """Cut off and forgotten, it looks again, and is served; its place ends with it."""
    leases = held(storage, 3)
    wanted = {leases[1].proxy_id}
    filters = ProxyFilters(predicate=lambda proxy: proxy.id in wanted)
    answer = waiting.start(storage, "w", filters=filters)
    cut_all(storage)
    with ledger(storage.engine.url.render_as_string(hide_password=False)) as other:
        run_sql(other.engine, "DELETE FROM pharox.waiting_processes")
        until(lambda: tickets(other) == 1, 10)
        ProxyManager(other).release_proxy(leases[0])
        time.sleep(0.5)
        assert not answer.done()
        ProxyManager(other).release_proxy(leases[1])
        found = answer.result(WAIT_S)
    assert found is not None
    assert found.proxy_id == leases[1].proxy_id
    ProxyManager(storage).release_proxies([found, leases[2]])
    assert_nothing_is_left(storage)


@pytest.mark.parametrize("error", [DatabaseUnavailableError, OutcomeUnknownError])
@pytest.mark.parametrize("filters", [None, ProxyFilters(predicate=lambda _: True)])
def test_asking_again_survives_an_outage(
    filters: ProxyFilters | None,
    error: type[PharoxError],
    storage: PostgresStorage,
    waiting: Waiting,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its process was forgotten, and asking again fails, before or after it is carried out."""
    (lease,) = held(storage)
    attendant, asked = storage._attendant, list[bool]()
    name = "ask_in_turn" if filters is None else "look_in_turn"
    original = getattr(attendant, name)

    def ask(command: Any) -> Any:
        asked.append(True)
        if len(asked) in (2, 3):
            if error is OutcomeUnknownError:
                original(command)
            raise error("the connection broke")
        return original(command)

    monkeypatch.setattr(attendant, name, ask)
    answer = waiting.start(storage, "w", filters=filters)
    run_sql(storage.engine, "DELETE FROM pharox.waiting_processes")
    storage.release_lease(lease)
    found = answer.result(WAIT_S)
    assert len(asked) > 1
    assert found is not None
    assert [each.id for each in active(storage)] == [found.id]
    storage.release_lease(found)
    assert_nothing_is_left(storage)


def test_an_outage_tells_nothing_twice(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken back when somebody began to wait is told once, whatever fails later."""
    fill(storage, 2)
    manager = ProxyManager(storage)
    lease, gone = (manager.acquire_proxy("pool", "gone", seconds) for seconds in (300, 1))
    assert lease is not None
    assert gone is not None
    storage.set_status(gone.proxy_id, ProxyStatus.BANNED)
    until(lambda: storage.seconds_to_next_expiry("pool") == 0, 10)
    attendant, asked = storage._attendant, list[bool]()
    original = attendant.ask_in_turn

    def ask(command: Any) -> Any:
        asked.append(True)
        if len(asked) == 2:
            raise DatabaseUnavailableError("the connection broke")
        return original(command)

    monkeypatch.setattr(attendant, "ask_in_turn", ask)
    request = AcquireRequest("pool", "w", 60, wait_seconds=WAIT_S)
    answer = waiting.submit(storage.acquire_lease, request)
    until(lambda: tickets(storage) == 1, 10)
    run_sql(storage.engine, "DELETE FROM pharox.waiting_processes")
    until(lambda: len(asked) > 2, 10)
    storage.release_lease(lease)
    found = answer.result(WAIT_S)
    assert [ending.lease.id for ending in found.expired] == [gone.id]
    storage.release_lease(found.lease)


def test_a_locked_lease_is_not_looked_at_all_the_time(
    storage: PostgresStorage, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has run out, and a transaction requires it: who waits for its proxy looks now and then."""
    fill(storage, 1)
    lease = ProxyManager(storage).acquire_proxy("pool", "holder", 1)
    assert lease is not None
    served, original = list[bool](), storage._commands.serve

    def serve() -> Any:
        served.append(True)
        return original()

    monkeypatch.setattr(storage._commands, "serve", serve)
    url = make_url(storage.engine.url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as other:
        required = (lease.id, lease.fencing_token)
        other.execute("SELECT pharox.require_lease(%s, %s)", required)
        answer = waiting.start(storage)
        until(lambda: storage.seconds_to_next_expiry("pool") == 0, 10)
        before = len(served)
        with suppress(TimeoutError):
            answer.result(1.5)
        assert 0 < len(served) - before < 30
    found = answer.result(WAIT_S)
    assert found is not None
    storage.release_lease(found)
    assert_nothing_is_left(storage)
