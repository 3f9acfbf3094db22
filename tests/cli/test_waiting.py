"""Waiting in turn, from the command line: who waits, how to, and what is told of it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import UUID

import pytest

from pharox import MissReason, ProxyManager
from pharox.events import AcquireMissed
from pharox.history.describing import describe
from pharox.models import SelectorStrategy
from pharox.storage.postgres import PostgresStorage, batch
from tests.conftest import DatabaseClock, fill, types_of
from tests.ledger.following import until
from tests.queueing import add_ticket, live_with_waits, waiting_in

from .conftest import Pharox
from .test_run import running

TAKEN = "every healthy matching proxy of pool 'pool' is leased to its limit"


@contextmanager
def held(storage: PostgresStorage) -> Iterator[ProxyManager]:
    """Hold the pool's only proxy until somebody waits for it."""
    manager = ProxyManager(storage)
    lease = manager.acquire_proxy("pool", "early", 600)
    assert lease is not None

    def release() -> None:
        until(lambda: waiting_in(storage))
        manager.release_proxy(lease)

    thread = threading.Thread(target=release)
    thread.start()
    yield manager
    thread.join()


class TestStats:
    def test_the_queue_is_shown(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """How many requests wait, and the longest wait; in JSON also whose."""
        clock = DatabaseClock(storage)
        pool, _ = fill(storage)
        fill(storage, name="quiet")
        add_ticket(storage, pool.id, "b")
        clock.advance(2)
        add_ticket(storage, pool.id, "a")
        clock.advance(3)
        header, *rows = pharox("stats").out.splitlines()
        assert header.endswith("waiting  longest wait")
        assert [row.split()[6:] for row in rows] == [["2", "5.0", "s"], ["0", "-"]]
        found, quiet = pharox("stats", "--json").objects
        assert (found["waiting"], found["longest_wait_seconds"]) == (2, 5)
        assert found["consumers"] == {"a": 1, "b": 1}
        assert (quiet["waiting"], quiet["longest_wait_seconds"], quiet["consumers"]) == (0, 0, {})


class TestAcquire:
    def test_it_waits_for_its_turn(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With --wait it returns once somebody has given a proxy back."""
        fill(storage)
        with held(storage):
            outcome = pharox("acquire", "pool", "--consumer", "late", "--wait", "1m")
        assert outcome.status == 0
        lease = storage.get_lease(outcome.out.split()[0])
        assert lease is not None
        assert lease.consumer_name == "late"

    def test_in_vain_it_says_so(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The reason of the miss, and that it waited; without --wait it did not."""
        fill(storage)
        ProxyManager(storage).acquire_proxy("pool", "early", 600)
        outcome = pharox("acquire", "pool", "--wait", "1")
        assert (outcome.status, outcome.out) == (75, "")
        assert re.fullmatch(rf"pharox: {TAKEN}, also after \d+\.\d s of waiting\n", outcome.err)
        assert pharox("acquire", "pool") == (75, "", f"pharox: {TAKEN}\n")
        assert pharox("acquire", "pool", "--wait", "0") == (75, "", f"pharox: {TAKEN}\n")
        waits = [e.waited_ms for e in storage.events() if isinstance(e, AcquireMissed)]
        assert [waited is not None for waited in waits] == [True, False, False]

    def test_a_pool_that_cannot_serve_fails_at_once(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Nothing that happens in the pool would help."""
        fill(storage, 0, name="empty")
        outcome = pharox("acquire", "empty", "--wait", "1h")
        assert outcome == (1, "", "pharox: pool 'empty' has no proxies\n")

    @pytest.mark.parametrize("command", [["acquire", "pool"], ["run", "pool", "true"]])
    @pytest.mark.parametrize("option", ["--wait", "--duration"])
    @pytest.mark.parametrize(
        ("text", "why"),
        [("soon", "is not a duration"), ("-1s", "is negative"), ("", "is not a duration")],
    )
    def test_a_time_is_a_number_and_may_have_a_unit(
        self,
        pharox: Pharox,
        storage: PostgresStorage,
        command: list[str],
        option: str,
        text: str,
        why: str,
    ) -> None:
        """Anything else is a wrong use that names the option, and nothing is leased."""
        name, *arguments = command
        outcome = pharox(name, f"{option}={text}", *arguments)
        assert outcome.status == 2
        expected = f"'{option}': {text!r} {why}; give one such as 30 (seconds), 5m or 2h"
        assert expected in outcome.err
        assert types_of(storage) == []

    def test_a_full_queue_is_told(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is no miss, but the exit status is that of one: try again later."""
        fill(storage)
        ProxyManager(storage).acquire_proxy("pool", "early", 600)
        monkeypatch.setattr(batch, "MAX_WAITING", 0)
        outcome = pharox("acquire", "pool", "--wait", "1h")
        assert outcome.status == 75
        assert "wait for a proxy of pool 'pool' already" in outcome.err


class TestRun:
    def test_it_waits_unless_it_is_told_not_to(
        self, pharox: Pharox, storage: PostgresStorage, database_url: str
    ) -> None:
        """Half a minute by default; with --wait 0 it fails at once."""
        fill(storage)
        command = ("--", sys.executable, "-c", "")
        with held(storage), running(database_url, "pool", *command) as process:
            assert process.wait(60) == 0
        assert types_of(storage)[-2:] == ["LeaseAcquired", "LeaseReleased"]
        ProxyManager(storage).acquire_proxy("pool", "early", 600)
        outcome = pharox("run", "pool", "--wait", "0", *command)
        assert outcome == (75, "", f"pharox: {TAKEN}\n")


class TestHistory:
    def test_each_command_tells_of_the_wait(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The lines of the log, and the sentences of audit and replay."""
        clock = DatabaseClock(storage)
        fill(storage)
        live_with_waits(ProxyManager(storage), clock.advance)
        storage.seal()
        lines = pharox("log", "--type", "LeaseAcquired", "--type", "AcquireMissed").out.splitlines()
        found = [re.findall(r"\bconsumer=(\w+)|\bwaited=(\S+)", line) for line in lines]
        assert [["".join(each) for each in line] for line in found] == [
            ["early"],
            ["late", "0.900s"],
            ["vain", "0.000s"],
        ]
        told = pharox("audit", "pool", "pool").out
        assert (
            "late got http://10.0.0.0:8000 of pool pool for 5 min 0 s, having waited 0.9 s" in told
        )
        assert "vain got nothing from pool pool, having waited 0 s: every healthy matching" in told
        assert told.count("having waited") == 2
        assert "having waited 0.9 s" in pharox("replay", "--pool", "pool", "--from", "1").out

    @pytest.mark.parametrize("reason", MissReason)
    def test_every_reason_of_a_miss_has_words(self, reason: MissReason) -> None:
        """Also that of a set of which only some were free."""
        event = AcquireMissed(
            position=1,
            recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
            pool_id=UUID(int=1),
            pool_name="pool",
            consumer="worker",
            selector=SelectorStrategy.FIRST_AVAILABLE,
            reason=reason,
        )
        sentence = describe(event, pool="pool", address=None).sentence
        assert sentence.startswith("worker got nothing from pool pool: ")
