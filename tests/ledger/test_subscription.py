"""A subscription delivers the log: each event, in order, from where its checkpoint is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any
from uuid import uuid4

import pytest

from pharox import (
    DatabaseError,
    Delivery,
    InMemoryStorage,
    InvalidInputError,
    PoolNotFoundError,
    ProxyManager,
    Subscription,
)
from pharox.errors import ArchivedError
from pharox.ledger.subscriptions import Reset, parked, reset, subscriptions
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, open_engine, run_sql
from tests.ledger.following import BOTH, following, is_level, status_of, until

both = pytest.mark.parametrize("driver", BOTH)


def seqs(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def read_to_the_end(
    subscription: Subscription, storage: PostgresStorage, driver: str = "thread"
) -> None:
    """Run a subscription until nothing is behind its checkpoint."""
    with following(subscription, storage, driver):
        until(lambda: is_level(storage, subscription.name))


@both
def test_every_event_is_delivered_in_order(storage: PostgresStorage, driver: str) -> None:
    """What was there before and what comes meanwhile arrives once, in the sealed order."""
    fill(storage, 20)
    taken: list[Delivery] = []
    with following(Subscription("all", taken.append, batch_size=3), storage, driver):
        until(lambda: len(taken) == 21)
        fill(storage, 5, name="other")
        until(lambda: len(taken) == 27)
    assert [delivery.event for delivery in taken] == list(storage.events())
    assert seqs(taken) == list(range(1, 28))
    assert {delivery.key for delivery in taken} == {("all", seq) for seq in range(1, 28)}


@both
def test_it_goes_on_from_its_checkpoint(storage: PostgresStorage, driver: str) -> None:
    """A second run begins where the first one ended, whatever it asks to start with."""
    fill(storage, 3)
    first: list[Delivery] = []
    second: list[Delivery] = []
    read_to_the_end(Subscription("again", first.append), storage, driver)
    storage.ensure_consumer("new")
    read_to_the_end(Subscription("again", second.append, start=1), storage, driver)
    assert seqs(first) == [1, 2, 3, 4]
    assert seqs(second) == [5]


@pytest.mark.parametrize(
    ("start", "expected"), [("beginning", [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), ("now", [4])]
)
def test_a_new_name_begins_where_it_is_told(
    storage: PostgresStorage, start: Any, expected: list[int]
) -> None:
    """From the first event, from a seq, or with what is committed after the start."""
    fill(storage, 2)
    taken: list[Delivery] = []
    with following(Subscription("new", taken.append, start=start), storage):
        storage.ensure_consumer("late")
        until(lambda: taken and taken[-1].seq == 4)
    assert seqs(taken) == expected


@both
def test_whole_batches_come_in_one_call(storage: PostgresStorage, driver: str) -> None:
    """With ``whole_batches`` a call gets as many events as a batch has, and none is left out."""
    fill(storage, 24)
    batches: list[list[Delivery]] = []
    subscription = Subscription("batches", batches.append, whole_batches=True, batch_size=10)
    read_to_the_end(subscription, storage, driver)
    assert [seqs(batch) for batch in batches] == [
        list(range(1, 11)),
        list(range(11, 21)),
        list(range(21, 26)),
    ]


def test_filters_choose_and_the_checkpoint_passes_the_rest(storage: PostgresStorage) -> None:
    """By type, pool and proxy; what does not fit is passed without being delivered."""
    pool, proxies = fill(storage, 3)
    other, _ = fill(storage, 3, name="other")
    manager = ProxyManager(storage)
    for _ in range(3):
        manager.acquire_proxy("pool")
    manager.acquire_proxy("other")
    expected: dict[str, Callable[[Any], bool]] = {
        "types": lambda event: event.type in ("LeaseAcquired", "PoolRegistered"),
        "pool": lambda event: event.pool_id == pool.id,
        "pool id": lambda event: event.pool_id == other.id,
        "proxy": lambda event: event.proxy_id == proxies[1].id,
    }
    options: dict[str, dict[str, Any]] = {
        "types": {"types": ["LeaseAcquired", "PoolRegistered"]},
        "pool": {"pool": "pool"},
        "pool id": {"pool": other.id},
        "proxy": {"proxy_id": proxies[1].id},
    }
    for name, chosen in options.items():
        taken: list[Delivery] = []
        read_to_the_end(Subscription(name, taken.append, batch_size=2, **chosen), storage)
        log = list(storage.events())
        assert seqs(taken) == [event.seq for event in log if expected[name](event)]
        assert status_of(storage, name).checkpoint == len(log)


@both
def test_a_handler_writes_in_the_transaction_of_the_checkpoint(
    storage: PostgresStorage, driver: str
) -> None:
    """What is written through the delivery's connection is there with the checkpoint."""
    run_sql(storage.engine, "CREATE TABLE copied (seq bigint, checkpoint bigint)")
    insert = (
        "INSERT INTO copied SELECT %s, checkpoint FROM pharox.subscriptions WHERE name = 'copy'"
    )

    def copy(delivery: Delivery) -> object:
        return delivery.connection.execute(insert, [delivery.seq])

    fill(storage, 9)
    read_to_the_end(Subscription("copy", copy, in_transaction=True, batch_size=4), storage, driver)
    assert run_sql(storage.engine, "SELECT seq, checkpoint FROM copied ORDER BY seq") == [
        (seq, (seq - 1) // 4 * 4) for seq in range(1, 11)
    ]


def test_a_coroutine_function_is_awaited(storage: PostgresStorage) -> None:
    """An ``async def`` handler runs in the loop, one event after the other."""
    fill(storage, 4)
    taken: list[int] = []

    async def handle(delivery: Delivery) -> None:
        taken.append(delivery.seq)

    read_to_the_end(Subscription("async", handle), storage, "asyncio")
    assert taken == [1, 2, 3, 4, 5]
    with pytest.raises(InvalidInputError, match="run_async"):
        Subscription("async", handle).run(storage)


def test_a_slow_commit_is_not_lost(storage: PostgresStorage, database_url: str) -> None:
    """An event that commits behind one with a later position is delivered all the same."""
    taken: list[Delivery] = []
    other = open_engine(database_url)
    slow = other.connect().execution_options(isolation_level="READ COMMITTED")
    with slow, following(Subscription("slow", taken.append), storage):
        slow.exec_driver_sql(
            "INSERT INTO pharox.events (recorded_at, type, pool_id, consumer, data) VALUES "
            "(now(), 'ConsumerRegistered', gen_random_uuid(), 'late', "
            "jsonb_build_object('consumer_id', gen_random_uuid()))"
        )
        storage.ensure_consumer("early")
        until(lambda: len(taken) == 1)
        slow.commit()
        until(lambda: len(taken) == 2)
    other.dispose()
    early, late = (delivery.event for delivery in taken)
    assert (early.consumer, late.consumer) == ("early", "late")
    assert late.position < early.position


def test_the_lag_is_told(storage: PostgresStorage) -> None:
    """In events, and as the age of the first one behind the checkpoint."""
    fill(storage, 4)
    stop = threading.Event()
    Subscription("lag", lambda _: stop.set(), batch_size=2, whole_batches=True).run(storage, stop)
    behind = status_of(storage, "lag")
    assert (behind.checkpoint, behind.lag_events, behind.parked) == (2, 3, 0)
    (age,) = run_sql(
        storage.engine,
        "SELECT extract(epoch FROM now() - recorded_at)::float FROM pharox.events "
        "JOIN pharox.seals USING (position) WHERE seq = 3",
    )[0]
    assert isinstance(age, float)
    assert 0 < behind.lag_seconds <= age
    read_to_the_end(Subscription("lag", lambda _: None), storage)
    level = status_of(storage, "lag")
    assert (level.lag_events, level.lag_seconds) == (0, 0)


def test_a_stop_waits_for_the_handler_and_keeps_what_it_did(storage: PostgresStorage) -> None:
    """Stopped in the middle of a batch, a reader commits the checkpoint behind what is done."""
    fill(storage, 9)
    stop = threading.Event()
    taken: list[int] = []

    def handle(delivery: Delivery) -> None:
        taken.append(delivery.seq)
        if delivery.seq == 4:
            stop.set()

    Subscription("stopped", handle).run(storage, stop)
    assert taken == [1, 2, 3, 4]
    assert status_of(storage, "stopped").checkpoint == 4


def test_two_subscriptions_do_not_know_each_other(storage: PostgresStorage) -> None:
    """Each name has its own checkpoint and gets every event."""
    taken: dict[str, list[int]] = {"a": [], "b": []}
    with (
        following(Subscription("a", lambda d: taken["a"].append(d.seq)), storage),
        following(Subscription("b", lambda d: taken["b"].append(d.seq)), storage),
    ):
        fill(storage, 50)
        until(lambda: all(len(got) == 51 for got in taken.values()))
    assert all(later == earlier + 1 for got in taken.values() for earlier, later in pairwise(got))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_reader_leaves_at_once(
    storage: PostgresStorage, error: type[BaseException]
) -> None:
    """Ctrl-C in a handler ends the reader; its batch counts for nothing, the name is free."""
    fill(storage, 2)

    def handle(delivery: Delivery) -> None:
        if delivery.seq == 2:
            raise error

    with pytest.raises(error):
        Subscription("interrupted", handle).run(storage)
    status = status_of(storage, "interrupted")
    assert (status.checkpoint, status.active, status.parked) == (0, False, 0)


def test_a_cancelled_reader_leaves_at_once(storage: PostgresStorage) -> None:
    """Cancelling the task ends it as anything else in the loop, and the name is free."""
    fill(storage, 2)

    async def cancel_in_the_middle() -> None:
        called = asyncio.Event()

        async def handle(_: Delivery) -> None:
            called.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(Subscription("cancelled", handle).run_async(storage))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_in_the_middle())
    status = status_of(storage, "cancelled")
    assert (status.checkpoint, status.active) == (0, False)


def test_a_coroutine_that_nobody_awaits_is_no_delivery(storage: PostgresStorage) -> None:
    """Where a plain function returns one, in a thread, that is the handler's failure."""
    fill(storage, 0)

    async def handle(_: Delivery) -> None:
        """Do nothing."""

    def forget_to_await(delivery: Delivery) -> object:
        return handle(delivery)

    wanted = Subscription("coroutine", forget_to_await, attempts=1)
    read_to_the_end(wanted, storage)
    (event,) = parked(storage, "coroutine")
    assert event.error is not None
    assert "use run_async" in event.error


def test_an_archived_event_is_not_passed_over(storage: PostgresStorage) -> None:
    """A reader whose next event has been archived ends, and says where to go on."""
    fill(storage, 5)
    storage.seal()
    run_sql(
        storage.engine,
        "UPDATE pharox.partitions SET first_seq = 1, last_seq = 4, archive = 'old', "
        "first_recorded_at = now(), last_recorded_at = now(), archived_at = now()",
    )
    taken: list[Delivery] = []
    with pytest.raises(ArchivedError, match="seq 4"):
        Subscription("late", taken.append).run(storage)
    assert taken == []
    reset(storage, "late", 5)
    read_to_the_end(Subscription("late", taken.append), storage)
    assert seqs(taken) == [5, 6]


def test_what_the_database_refuses_is_told(storage: PostgresStorage) -> None:
    """What is no lack of a connection ends the reader, in our words."""
    fill(storage, 1)
    run_sql(storage.engine, "ALTER TABLE pharox.parked_events RENAME TO gone")
    with pytest.raises(DatabaseError, match="parked_events"):
        Subscription("refused", print).run(storage)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"start": 0}, "is not a start"),
        ({"start": "yesterday"}, "is not a start"),
        ({"start": True}, "is not a start"),
        ({"types": ["NoSuchEvent"]}, "NoSuchEvent"),
        ({"proxy_id": "192.0.2.1"}, "192.0.2.1"),
        ({"batch_size": 0}, "batch_size"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], sentence: str) -> None:
    """A subscription is checked when it is made."""
    with pytest.raises(InvalidInputError, match=sentence):
        Subscription("bad", print, **options)


def test_a_name_is_needed() -> None:
    """An empty name, or one that cannot be stored, is refused."""
    for name in ("", "a\0b"):
        with pytest.raises(InvalidInputError):
            Subscription(name, print)


def test_where_it_cannot_run_is_told(storage: PostgresStorage) -> None:
    """Not in memory; but for a pool's id that nobody knows yet."""
    with pytest.raises(InvalidInputError, match="PostgreSQL"):
        Subscription("memory", print).run(InMemoryStorage())
    stop = threading.Event()
    stop.set()
    Subscription("pool", print, pool=uuid4()).run(storage, stop)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"pool": "nowhere"}, PoolNotFoundError, "nowhere"),
        ({"start": 5}, InvalidInputError, "no event 5 yet: it ends at 3"),
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(
    storage: PostgresStorage, options: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    """The name is as new as before, so the corrected start is obeyed."""
    fill(storage, 2)
    wanted = Subscription("typo", print, **options)
    callbacks = ProxyManager(storage).subscribe("callbacks", on_acquire=print, **options)
    for run in (
        lambda: wanted.run(storage),
        lambda: wanted.running(storage),
        lambda: asyncio.run(wanted.run_async(storage)),
        callbacks.running,
    ):
        with pytest.raises(error, match=sentence):
            run()
    assert subscriptions(storage) == []


def test_nothing_is_reset_to_what_is_not_there_yet(storage: PostgresStorage) -> None:
    """A checkpoint behind the log's end would pass over what comes."""
    fill(storage, 2)
    read_to_the_end(Subscription("two", print), storage)
    with pytest.raises(InvalidInputError, match="no event 99999 yet: it ends at 3"):
        reset(storage, "two", 99_999)
    assert status_of(storage, "two").checkpoint == 3
    assert reset(storage, "two", 4) == Reset(next_seq=4, forgotten=0)
