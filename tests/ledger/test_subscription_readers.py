"""One reader a name: killed, frozen, cut off or behind a pooler, nothing is lost or done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pharox import Delivery, Subscription
from pharox.connecting import embedded
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, open_engine, run_sql
from tests.ledger.following import BOTH, following, is_level, status_of, until

both = pytest.mark.parametrize("driver", BOTH)
ROOT = Path(__file__).parents[2]
TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
)


@contextmanager
def worker(url: str, where: str, last: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run tests/ledger/worker.py for a block."""
    words = [sys.executable, "-m", "tests.ledger.worker", url, "copy", where, str(last)]
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def make_table(storage: PostgresStorage) -> None:
    columns = "place bigserial, seq bigint, pid int, epoch bigint"
    run_sql(storage.engine, f"CREATE TABLE copied ({columns})")


def copied(storage: PostgresStorage) -> list[tuple[int, int, int]]:
    rows = run_sql(storage.engine, "SELECT seq, pid, epoch FROM copied ORDER BY place")
    return [(int(str(seq)), int(str(pid)), int(str(epoch))) for seq, pid, epoch in rows]


def check_each_once(rows: list[tuple[int, int, int]], storage: PostgresStorage) -> None:
    """Each event was written once, in order, by the reader of its epoch."""
    assert [seq for seq, _, _ in rows] == [event.seq for event in storage.events()]
    assert [epoch for _, _, epoch in rows] == sorted(epoch for _, _, epoch in rows)
    assert len({pid for _, pid, _ in rows}) == len({epoch for _, _, epoch in rows})


def test_a_write_in_the_transaction_happens_once_through_kills(
    storage: PostgresStorage, database_url: str
) -> None:
    """Two readers are killed in the middle of a batch, each behind its write: nothing is twice."""
    fill(storage, 99)
    make_table(storage)
    for last in (33, 71):
        with worker(database_url, "inside", last) as process:
            assert process.wait(timeout=60) == -9
    with worker(database_url, "inside", 0):
        until(lambda: is_level(storage, "copy"), 60)
    rows = copied(storage)
    check_each_once(rows, storage)
    assert [rows[seq - 1][2] for seq in (20, 21, 60, 61, 100)] == [1, 2, 2, 3, 3]


def test_a_second_process_takes_over(storage: PostgresStorage, database_url: str) -> None:
    """One that stands by goes on when the reader is killed."""
    fill(storage, 49)
    make_table(storage)
    with worker(database_url, "inside", 51) as first:
        until(lambda: is_level(storage, "copy"), 60)
        with worker(database_url, "inside", 0) as second:
            fill(storage, 9, name="other")
            assert first.wait(timeout=60) == -9
            until(lambda: is_level(storage, "copy"), 60)
            assert second.poll() is None
    rows = copied(storage)
    check_each_once(rows, storage)
    assert {epoch for _, _, epoch in rows} == {1, 2}


def test_a_frozen_reader_is_no_reader_when_it_wakes(
    storage: PostgresStorage, database_url: str
) -> None:
    """One that slept while another took over delivers nothing with what it remembers."""
    fill(storage, 9)
    make_table(storage)
    with worker(database_url, "inside", 0) as first:
        until(lambda: is_level(storage, "copy"), 60)
        first.send_signal(signal.SIGSTOP)
        with worker(database_url, "inside", 0):
            fill(storage, 9, name="other")
            until(lambda: is_level(storage, "copy"), 60)
            first.send_signal(signal.SIGCONT)
            for number in range(20):
                storage.ensure_consumer(f"later {number}")
            until(lambda: is_level(storage, "copy"), 60)
            assert first.poll() is None
    rows = copied(storage)
    check_each_once(rows, storage)
    assert [epoch for _, _, epoch in rows] == [1] * 10 + [2] * 30


def test_a_write_elsewhere_happens_at_least_once(
    storage: PostgresStorage, database_url: str
) -> None:
    """What was done before the kill is delivered again; its key says so."""
    fill(storage, 99)
    make_table(storage)
    with worker(database_url, "outside", 33) as process:
        assert process.wait(timeout=60) == -9
    with worker(database_url, "outside", 0):
        until(lambda: is_level(storage, "copy"), 60)
    seqs = [seq for seq, _, _ in copied(storage)]
    assert set(seqs) == set(range(1, 101))
    assert seqs == [*range(1, 34), *range(21, 101)]


def test_a_pooler_may_be_between(storage: PostgresStorage, pooled_url: str) -> None:
    """Through PgBouncer in transaction mode: one reader, each event once, and a take-over."""
    fill(storage, 49)
    make_table(storage)
    with worker(pooled_url, "inside", 51) as first:
        until(lambda: is_level(storage, "copy"), 60)
        with worker(pooled_url, "inside", 0):
            fill(storage, 9, name="other")
            assert first.wait(timeout=60) == -9
            until(lambda: is_level(storage, "copy"), 60)
            storage.ensure_consumer("later")
            until(lambda: is_level(storage, "copy"), 60)
    check_each_once(copied(storage), storage)


@both
def test_a_cut_off_reader_changes_nothing(
    storage: PostgresStorage, database_url: str, driver: str
) -> None:
    """When it wakes after another one took over, its write and its checkpoint are refused."""
    fill(storage, 9)
    make_table(storage)
    frozen, thaw = threading.Event(), threading.Event()
    insert = "INSERT INTO copied (seq, pid, epoch) VALUES (%s, %s, %s)"

    def old(delivery: Delivery) -> object:
        if delivery.seq == 5:
            frozen.set()
            thaw.wait(60)
        return delivery.connection.execute(insert, [delivery.seq, 1, delivery.epoch])

    def new(delivery: Delivery) -> object:
        return delivery.connection.execute(insert, [delivery.seq, 2, delivery.epoch])

    second = PostgresStorage(open_engine(database_url), secret_keys=[])
    with following(Subscription("copy", old, in_transaction=True), storage, driver):
        try:
            assert frozen.wait(30)
            run_sql(second.engine, TERMINATE)
            with following(Subscription("copy", new, in_transaction=True), second, driver):
                until(lambda: is_level(second, "copy"))
                thaw.set()
                second.ensure_consumer("later")
                until(lambda: is_level(second, "copy"))
        finally:
            thaw.set()
    assert copied(second) == [(seq, 2, 2) for seq in range(1, 12)]
    assert status_of(second, "copy").checkpoint == 11
    second.close()


@both
def test_a_second_reader_waits(storage: PostgresStorage, driver: str) -> None:
    """While one reads, the other gets nothing; when it stops, the other goes on."""
    first: list[Delivery] = []
    second: list[Delivery] = []
    with following(Subscription("one", first.append), storage, driver):
        fill(storage, 4)
        until(lambda: is_level(storage, "one"))
        waiting = following(Subscription("one", second.append), storage, driver)
        with waiting:
            fill(storage, 4, name="other")
            until(lambda: is_level(storage, "one"))
            assert second == []
            assert len(first) == 10
    with following(Subscription("one", second.append), storage, driver):
        storage.ensure_consumer("new")
        until(lambda: is_level(storage, "one"))
    assert [(delivery.seq, delivery.epoch) for delivery in second] == [(11, 2)]


@both
def test_it_reconnects(storage: PostgresStorage, database_url: str, driver: str) -> None:
    """When the server ends its connection, a reader connects again and goes on, the same one."""
    taken: list[Delivery] = []
    second = PostgresStorage(open_engine(database_url), secret_keys=[])
    with following(Subscription("cut", taken.append), storage, driver):
        fill(storage, 4)
        until(lambda: is_level(storage, "cut"))
        for round_ in range(3):
            run_sql(second.engine, TERMINATE)
            second.ensure_consumer(f"after {round_}")
            until(lambda: is_level(second, "cut"))
    second.close()
    assert [delivery.seq for delivery in taken] == list(range(1, 9))
    assert {delivery.epoch for delivery in taken} == {1}


def test_the_server_may_restart() -> None:
    """A reader waits for a server that is away, and goes on with it."""
    taken: list[Delivery] = []
    with tempfile.TemporaryDirectory(prefix="pharox-test-") as name:
        server = embedded.start(Path(name))
        storage = PostgresStorage(open_engine(server.url), secret_keys=[SECRET_KEY])
        storage.upgrade_schema()
        try:
            with following(Subscription("restart", taken.append), storage):
                fill(storage, 4)
                until(lambda: is_level(storage, "restart"))
                server.close()
                server = embedded.start(Path(name))
                # Not the reader's engine: what it has lent while it is disposed of, nobody closes.
                other = PostgresStorage(open_engine(server.url), secret_keys=[SECRET_KEY])
                other.ensure_consumer("new")
                until(lambda: is_level(other, "restart"))
                other.close()
        finally:
            storage.close()
            server.close()
    assert [delivery.seq for delivery in taken] == [1, 2, 3, 4, 5, 6]
