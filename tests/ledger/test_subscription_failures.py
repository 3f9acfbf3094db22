"""What a handler does not take is tried again, then parked, and its key stays in order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from pharox import Delivery, ProxyManager, Subscription, SubscriptionNotFoundError
from pharox.events import Event
from pharox.ledger.subscriptions import parked, remove, reset, retry, subscriptions
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, run_sql
from tests.ledger.following import BOTH, following, is_level, status_of, until

both = pytest.mark.parametrize("driver", BOTH)


class Handler:
    """Takes what it is given, but for the seqs that are bad."""

    def __init__(self, *bad: int) -> None:
        self.bad = set(bad)
        self.tried: Counter[int] = Counter()
        self.taken: list[int] = []

    def __call__(self, delivery: Delivery) -> None:
        self.tried[delivery.seq] += 1
        if delivery.seq in self.bad:
            raise ValueError(f"no \0 {delivery.seq}")
        self.taken.append(delivery.seq)


def by_remainder(event: Event) -> str:
    return str(event.seq % 3)


def subscription(handler: Any, **options: Any) -> Subscription:
    known: dict[str, Any] = {"key": by_remainder, "attempts": 3, "pause": wait_none()}
    return Subscription("sub", handler, **{**known, **options})


def parked_seqs(storage: PostgresStorage) -> list[int]:
    return [event.seq for event in parked(storage, "sub")]


def read_to_the_end(wanted: Subscription, storage: PostgresStorage, driver: str = "thread") -> None:
    with following(wanted, storage, driver):
        until(lambda: is_level(storage, "sub"))


@both
def test_a_bad_event_is_parked_after_its_attempts(storage: PostgresStorage, driver: str) -> None:
    """It is tried so often, then put aside with its error; the others go on, once each."""
    fill(storage, 11)
    handler = Handler(5)
    read_to_the_end(subscription(handler, key=lambda event: str(event.seq)), storage, driver)
    assert handler.tried[5] == 3
    assert handler.taken == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]
    (event,) = parked(storage, "sub")
    assert (event.seq, event.type, event.key, event.attempts) == (5, "ProxyRegistered", "5", 3)
    assert event.error == "ValueError: no \\x00 5"
    assert status_of(storage, "sub").parked == 1


@both
def test_what_follows_under_its_key_waits_behind_it(storage: PostgresStorage, driver: str) -> None:
    """Later events of the key are parked without an error, other keys go on."""
    fill(storage, 11)
    handler = Handler(5)
    read_to_the_end(subscription(handler), storage, driver)
    assert handler.taken == [1, 2, 3, 4, 6, 7, 9, 10, 12]
    assert [(e.seq, e.error is None) for e in parked(storage, "sub")] == [
        (5, False),
        (8, True),
        (11, True),
    ]


@both
def test_retried_events_come_in_order_and_free_their_key(
    storage: PostgresStorage, driver: str
) -> None:
    """When the first of a key is taken, all behind it follow, and the key is as any other."""
    fill(storage, 11)
    handler = Handler(5)
    with following(subscription(handler), storage, driver):
        until(lambda: parked_seqs_or_none(storage) == [5, 8, 11])
        handler.bad.clear()
        handler.taken.clear()
        assert retry(storage, "sub") == 3
        until(lambda: parked_seqs(storage) == [])
        for name in ("a", "b", "c"):
            storage.ensure_consumer(name)
        until(lambda: len(handler.taken) == 6)
    assert handler.taken == [5, 8, 11, 13, 14, 15]


def parked_seqs_or_none(storage: PostgresStorage) -> list[int] | None:
    return parked_seqs(storage) if is_level(storage, "sub") else None


def test_what_is_parked_after_the_mark_follows_too(storage: PostgresStorage) -> None:
    """An event that joins its key between the wish to retry and the retry is not left behind."""
    fill(storage, 11)
    handler = Handler(5)

    def handle(delivery: Delivery) -> None:
        handler(delivery)
        if delivery.seq == 7:
            handler.bad.clear()
            assert retry(storage, "sub") == 1

    with following(subscription(handle), storage):
        until(lambda: len(handler.taken) == 12)
    assert handler.taken == [1, 2, 3, 4, 6, 7, 9, 10, 12, 5, 8, 11]
    assert parked_seqs(storage) == []


@both
def test_a_retry_in_vain_keeps_the_new_error(storage: PostgresStorage, driver: str) -> None:
    """It is tried once more; then the whole key waits again."""
    fill(storage, 11)
    handler = Handler(5)
    with following(subscription(handler), storage, driver):
        until(lambda: parked_seqs_or_none(storage) == [5, 8, 11])
        assert retry(storage, "sub", seq=11) == 3
        until(lambda: parked(storage, "sub")[0].attempts == 4)
    assert [event.retry for event in parked(storage, "sub")] == [False] * 3
    assert handler.tried == {**dict.fromkeys((1, 2, 3, 4, 6, 7, 9, 10, 12), 1), 5: 4}


def test_a_retry_chooses_by_key(storage: PostgresStorage) -> None:
    """What is parked under other keys is left alone."""
    fill(storage, 11)
    handler = Handler(5, 6)
    with following(subscription(handler), storage):
        until(lambda: parked_seqs_or_none(storage) == [5, 6, 8, 9, 11, 12])
        handler.bad.clear()
        assert retry(storage, "sub", key="0") == 3
        until(lambda: parked_seqs(storage) == [5, 8, 11])
        assert retry(storage, "sub", key="none") == 0
    assert handler.taken == [1, 2, 3, 4, 7, 10, 6, 9, 12]


@both
def test_a_bad_batch_is_delivered_one_by_one(storage: PostgresStorage, driver: str) -> None:
    """When a whole batch fails, its events come alone, and only the bad one is parked."""
    fill(storage, 11)
    sizes: list[int] = []
    handler = Handler(5)

    def handle(deliveries: list[Delivery]) -> None:
        sizes.append(len(deliveries))
        for delivery in deliveries:
            handler(delivery)

    wanted = subscription(
        handle, whole_batches=True, batch_size=6, key=lambda event: str(event.seq)
    )
    read_to_the_end(wanted, storage, driver)
    assert sizes == [6, *[1] * 7, 6, 1]  # event 5 is tried three times; then batches again
    assert parked_seqs(storage) == [5]
    assert handler.taken == [1, 2, 3, 4, 1, 2, 3, 4, *range(6, 13)]


def warnings(caplog: pytest.LogCaptureFixture, what: str) -> list[str]:
    """Return what was logged of one kind about the subscription."""
    told = [record.getMessage() for record in caplog.records if record.name == "pharox"]
    prefix = f"pharox.subscription.{what}: sub: "
    return [line.removeprefix(prefix) for line in told if line.startswith(prefix)]


@both
@pytest.mark.parametrize("in_transaction", [True, False])
def test_what_is_parked_is_warned_of_once(
    storage: PostgresStorage, caplog: pytest.LogCaptureFixture, driver: str, in_transaction: bool
) -> None:
    """For each event with an error of its own, not for what waits behind it."""
    fill(storage, 11)
    handler = Handler(5, 6)
    wanted = subscription(handler, in_transaction=in_transaction, batch_size=4)
    read_to_the_end(wanted, storage, driver)
    assert parked_seqs(storage) == [5, 6, 8, 9, 11, 12]
    waits = "later events of {} wait behind it; `pharox subscriptions retry sub`"
    assert warnings(caplog, "parked") == [
        f"event 5 parked; {waits.format(2)}",
        f"event 6 parked; {waits.format(0)}",
    ]


def test_a_retry_in_vain_is_warned_of(
    storage: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """With its error, each time."""
    fill(storage, 4)
    with following(subscription(Handler(5)), storage):
        until(lambda: parked_seqs_or_none(storage) == [5])
        retry(storage, "sub")
        until(lambda: warnings(caplog, "failed")[-1].startswith("event 5 stays parked"))
    assert warnings(caplog, "failed")[-1] == "event 5 stays parked: ValueError: no \\x00 5"


def test_the_log_does_not_command_a_terminal(
    storage: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """What an error, a key or a name has in it is escaped, so that a line stays a line."""
    fill(storage, 0)

    def handle(_: Delivery) -> None:
        raise ValueError("\x1b[31mred\nnext")

    wanted = Subscription("a \x1b", handle, attempts=1, key=lambda _: "\x1b]0;key")
    with following(wanted, storage):
        until(lambda: is_level(storage, "a \x1b"))
    assert [record.getMessage() for record in caplog.records] == [
        r"pharox.subscription.failed: a \x1b: event 1, attempt 1: ValueError: \x1b[31mred\nnext",
        r"pharox.subscription.parked: a \x1b: event 1 parked; "
        r"later events of \x1b]0;key wait behind it; `pharox subscriptions retry 'a \x1b'`",
    ]


class Copier:
    """Writes each seq in the delivery's transaction, and may break that in several ways."""

    def __init__(self, storage: PostgresStorage, bad: int, how: str) -> None:
        self.storage, self.bad, self.how = storage, bad, how
        run_sql(
            storage.engine,
            "CREATE TABLE copied (seq bigint, "
            "same bigint CONSTRAINT once UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        )

    @property
    def copied(self) -> list[int]:
        rows = run_sql(self.storage.engine, "SELECT seq FROM copied ORDER BY seq")
        return [int(str(seq)) for (seq,) in rows]

    def __call__(self, delivery: Delivery) -> None:
        connection: psycopg.Connection[Any] = delivery.connection
        is_bad = delivery.seq == self.bad
        same = 1 if is_bad and self.how == "deferred constraint" else delivery.seq
        connection.execute("INSERT INTO copied VALUES (%s, %s)", [delivery.seq, same])
        if not is_bad:
            return
        if self.how == "error":
            raise ValueError
        if self.how == "swallowed":
            try:
                connection.execute("SELECT 1 / 0")
            except psycopg.errors.DivisionByZero:
                return
        if self.how == "commit":
            connection.commit()
        if self.how == "rollback":
            connection.execute("ROLLBACK")


@pytest.mark.parametrize("how", ["error", "swallowed", "deferred constraint", "commit", "rollback"])
def test_a_failing_transaction_writes_nothing(storage: PostgresStorage, how: str) -> None:
    """Whatever breaks a handler's transaction, the others' writes are there exactly once."""
    fill(storage, 11)
    copier = Copier(storage, 5, how)
    wanted = subscription(copier, in_transaction=True, key=lambda event: str(event.seq))
    read_to_the_end(wanted, storage)
    assert copier.copied == [1, 2, 3, 4, *range(6, 13)]
    assert parked_seqs(storage) == [5]


def test_a_parked_event_is_retried_in_a_transaction(storage: PostgresStorage) -> None:
    """Its write and its leaving are one commit; in vain, neither happens."""
    fill(storage, 11)
    copier = Copier(storage, 5, "error")
    wanted = subscription(copier, in_transaction=True)
    with following(wanted, storage):
        until(lambda: parked_seqs_or_none(storage) == [5, 8, 11])
        retry(storage, "sub")
        until(lambda: parked(storage, "sub")[0].attempts == 4)
        assert copier.copied == [1, 2, 3, 4, 6, 7, 9, 10, 12]
        copier.bad = 0
        retry(storage, "sub")
        until(lambda: parked_seqs(storage) == [])
    assert copier.copied == list(range(1, 13))


def test_without_a_limit_all_waits(storage: PostgresStorage) -> None:
    """With ``attempts=None`` nothing is parked: the event is tried until it is taken."""
    fill(storage, 4)
    handler = Handler(3)
    with following(subscription(handler, attempts=None), storage):
        until(lambda: handler.tried[3] > 8)
        assert handler.taken == [1, 2]
        handler.bad.clear()
        until(lambda: handler.taken == [1, 2, 3, 4, 5])
    assert parked_seqs(storage) == []


def test_an_event_is_parked_by_its_proxy_unless_told_otherwise(storage: PostgresStorage) -> None:
    """The default key is the proxy, or the pool where there is none."""
    pool, proxies = fill(storage, 2)
    read_to_the_end(subscription(Handler(1, 2), key=None), storage)
    registered = next(iter(storage.events(after=1)))
    assert [event.key for event in parked(storage, "sub")] == [
        str(pool.id),
        str(registered.proxy_id),
    ]
    assert registered.proxy_id in {proxy.id for proxy in proxies}


@pytest.mark.parametrize(
    ("to", "expected"), [("beginning", [1, 2, 3, 4, 5]), (4, [4, 5]), ("now", [])]
)
def test_a_reset_begins_anew(storage: PostgresStorage, to: Any, expected: list[int]) -> None:
    """The running reader goes on from there, and what was parked is forgotten."""
    fill(storage, 4)
    handler = Handler(2)
    with following(subscription(handler), storage):
        until(lambda: parked_seqs_or_none(storage) == [2, 5])
        handler.bad.clear()
        handler.taken.clear()
        reset(storage, "sub", to)
        storage.ensure_consumer("last")
        until(lambda: handler.taken[-1:] == [6])
    assert handler.taken == [*expected, 6]
    assert parked_seqs(storage) == []


def test_a_subscription_can_be_removed_when_nobody_reads(storage: PostgresStorage) -> None:
    """Not while it has a reader; then it is forgotten with what is parked."""
    fill(storage, 2)
    with following(subscription(Handler(1)), storage):
        until(lambda: parked_seqs_or_none(storage) == [1])
        with pytest.raises(Exception, match="has a running reader"):
            remove(storage, "sub")
    remove(storage, "sub")
    assert subscriptions(storage) == []
    assert run_sql(storage.engine, "SELECT count(*) FROM pharox.parked_events") == [(0,)]


def test_an_unknown_name_is_told(storage: PostgresStorage) -> None:
    """Every question about a subscription that is not there is answered so."""
    for ask in (
        lambda: parked(storage, "none"),
        lambda: retry(storage, "none"),
        lambda: reset(storage, "none", "now"),
        lambda: remove(storage, "none"),
    ):
        with pytest.raises(SubscriptionNotFoundError, match="none"):
            ask()


@settings(max_examples=10)
@given(
    bad=st.dictionaries(st.integers(1, 21), st.integers(1, 5), max_size=6),
    whole_batches=st.booleans(),
    in_transaction=st.booleans(),
    batch_size=st.integers(1, 8),
)
def test_a_key_is_always_in_order(
    storage: PostgresStorage,
    bad: dict[int, int],
    whole_batches: bool,
    in_transaction: bool,
    batch_size: int,
) -> None:
    """However often which events fail: what is taken is in order under its key, and all of it is.

    An event of ``bad`` fails so many times.
    """
    if not list(storage.events()):
        fill(storage, 20)
        ProxyManager(storage).acquire_proxy("pool")
        run_sql(storage.engine, "CREATE TABLE taken (place bigserial, seq bigint)")
    run_sql(storage.engine, "TRUNCATE taken")
    run_sql(storage.engine, "TRUNCATE pharox.subscriptions, pharox.parked_events")
    left = Counter(bad)
    taken: list[int] = []

    def take(deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if left[delivery.seq]:
                left[delivery.seq] -= 1
                raise ValueError(delivery.seq)
            taken.append(delivery.seq)
            if in_transaction:
                delivery.connection.execute("INSERT INTO taken (seq) VALUES (%s)", [delivery.seq])

    wanted = subscription(
        take if whole_batches else lambda delivery: take([delivery]),
        whole_batches=whole_batches,
        in_transaction=in_transaction,
        batch_size=batch_size,
        attempts=2,
    )
    with following(wanted, storage):
        until(lambda: is_level(storage, "sub"))
        while status_of(storage, "sub").parked:
            retry(storage, "sub")
            until(lambda: not any(event.retry for event in parked(storage, "sub")))
    if in_transaction:
        taken = [
            int(str(seq))
            for (seq,) in run_sql(storage.engine, "SELECT seq FROM taken ORDER BY place")
        ]
    last = {seq: place for place, seq in enumerate(taken)}
    first = {seq: place for place, seq in reversed(list(enumerate(taken)))}
    everything = [event.seq for event in storage.events()]
    assert sorted(last) == everything
    for remainder in range(3):
        seqs = [seq for seq in everything if seq % 3 == remainder]
        assert sorted(seqs, key=last.__getitem__) == seqs
        assert sorted(seqs, key=first.__getitem__) == seqs
    if in_transaction:
        assert len(taken) == len(everything)
