"""``pharox log`` and ``pharox prune``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import combinations_with_replacement
from typing import Any, cast

import pytest

from pharox import (
    CheckFailure,
    InMemoryStorage,
    InvalidInputError,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    attributed,
)
from pharox.cli.log import _only_pool
from pharox.events import Event
from pharox.models import HealthCheckResult, ProxyProtocol, SelectorStrategy
from pharox.models.moments import moment_before
from pharox.storage.postgres import PostgresStorage
from pharox.testing import checked
from tests.conftest import clock_of, fill, types_of

from .conftest import Pharox

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def lead_a_life(storage: PostgresStorage, pharox: Pharox) -> None:
    """Do one thing of every kind that there is an event for."""
    pool, (proxy, *_) = fill(storage, 2, name="a pool", country="AR")
    storage.save_pool(ProxyPool(id=pool.id, name="a pool", lease_slow=True))
    lease_id = pharox("acquire", "a pool", "--country", "AR").out.split()[0]
    pharox("release", lease_id, "--reason", "done = yes")
    pharox("acquire", "a pool", "--duration", "0.001")
    pharox("acquire", "nowhere")
    storage.cleanup_expired_leases()
    storage.find_available_proxy("a pool", selector=SelectorStrategy.ROUND_ROBIN)
    for status, age in ((ProxyStatus.SLOW, 0), (ProxyStatus.ACTIVE, 9)):
        storage.apply_health_check_result(
            HealthCheckResult(
                proxy_id=proxy.id,
                status=status,
                latency_ms=2500,
                protocol=ProxyProtocol.HTTP,
                checked_at=datetime.now(UTC) - timedelta(hours=age),
            )
        )
    storage.save_proxy(proxy.model_copy(update={"max_concurrency": None}))
    storage.create_lease(proxy, "holder", 60)
    failed = checked(
        proxy,
        status=ProxyStatus.INACTIVE,
        failure=CheckFailure.TIMEOUT,
        error_message="no complete answer in time",
    )
    storage.apply_health_check_result(failed)
    storage.set_status(proxy.id, ProxyStatus.BANNED, reason="429 = too many")
    storage.delete_pool(str(pool.id))


class TestLog:
    def test_every_event_is_one_line(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Each line has seq, time and type, and names the pool even after its removal."""
        lead_a_life(storage, pharox)
        events = list(storage.events())
        lines = pharox("log").out.splitlines()
        assert [line.split()[0] for line in lines] == [str(event.seq) for event in events]
        assert [line.split()[2] for line in lines] == [event.type for event in events]
        assert len({event.type for event in events}) == 13
        for event, line in zip(events, lines, strict=True):
            assert ('pool="a pool"' in line) == (event.pool_id.int != 0)

    @pytest.mark.parametrize(
        ("type_", "facts"),
        [
            ("PoolChanged", "lease_slow=yes"),
            ("ProxyRegistered", "address=http://10.0.0.0:8000 status=active max_concurrency=1"),
            ("ProxyChanged", "max_concurrency=1->-"),
            ("LeaseAcquired", "leases=0->1 expires_at=2"),
            ("LeaseAcquired", 'selector=first_available filters={"country":"AR"}'),
            ("LeaseReleased", 'reason="done = yes"'),
            ("LeaseReleased", "leases=1->0 held=0."),
            ("LeaseExpired", "leases=1->0 held="),
            ("AcquireMissed", "pool=nowhere consumer=default reason=unknown_pool"),
            ("CursorMoved", "selector=round_robin"),
            ("HealthChecked", "status=active->slow latency_ms=2500"),
            ("HealthChecked", "applied=no"),
            ("HealthChecked", 'failure=timeout error="no complete answer in time" lease_ids=01'),
            ("ProxyChanged", 'status=inactive->banned country=AR reason="429 = too many"'),
        ],
    )
    def test_a_line_has_the_facts_that_matter(
        self, pharox: Pharox, storage: PostgresStorage, type_: str, facts: str
    ) -> None:
        """An event's line has the change and its reason."""
        lead_a_life(storage, pharox)
        assert facts in pharox("log", "--type", type_).out

    def test_who_did_it_is_told(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """And as part of which job."""
        with attributed(actor="ada", correlation_id="job-7"):
            fill(storage, 1)
        assert all(line.endswith("actor=ada job=job-7") for line in pharox("log").out.splitlines())

    def test_json_is_the_whole_event(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With --json each event is one object with all of its facts."""
        lead_a_life(storage, pharox)
        expected = [event.model_dump(mode="json") for event in storage.events()]
        assert pharox("log", "--json").objects == expected

    def test_it_can_begin_later_and_end_earlier(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """--after skips the positions up to there, and --limit counts what is shown."""
        fill(storage, 5, name="p")
        positions = [event.position for event in storage.events()]
        shown = pharox("log", "--after", positions[1], "--limit", "2", "--json").objects
        assert [event["position"] for event in shown] == positions[2:4]

    def test_the_last_ones_may_be_more_than_any_log_has(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Then it is the whole log."""
        fill(storage, 1)
        assert pharox("log", "--last", "9" * 30).out == pharox("log").out != ""

    def test_it_can_be_of_one_pool_and_type(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """--pool and --type leave out all others; --type may be repeated."""
        for name in ("one", "two"):
            fill(storage, 1, name=name)
            pharox("acquire", name)
        pharox("acquire", "typo")
        of_one = pharox("log", "--pool", "one", "--json").objects
        assert [event["type"] for event in of_one] == [
            "PoolRegistered",
            "ProxyRegistered",
            "LeaseAcquired",
        ]
        types = ("--type", "LeaseAcquired", "--type", "AcquireMissed")
        assert [event["type"] for event in pharox("log", *types, "--json").objects] == [
            "LeaseAcquired",
            "LeaseAcquired",
            "AcquireMissed",
        ]
        assert "reason=unknown_pool" in pharox("log", "--pool", "typo").out

    def test_it_can_be_of_a_consumer_a_proxy_and_a_time(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Each option leaves out all others, together they are all of them; --last is the end."""
        clock = clock_of(storage)
        _, proxies = fill(storage, 3, name="p")
        manager = ProxyManager(storage)
        for number in range(12):
            clock.advance(10)
            lease = manager.acquire_proxy("p", f"c{number % 2}")
            if lease is not None and number % 3:
                manager.release_proxy(lease)
            storage.apply_health_check_result(checked(proxies[number % 3]))
        log = list(storage.events())
        moments = sorted({event.recorded_at for event in log})
        proxy, start, end = proxies[1], moments[3], moments[8]

        def is_of_proxy(event: Event) -> bool:
            return event.part_of(proxy.id) is not None

        conditions: list[tuple[tuple[object, ...], Callable[[Event], bool]]] = [
            (("--consumer", "c1"), lambda event: event.consumer == "c1"),
            (("--proxy", "10.0.0.1:8000"), is_of_proxy),
            (("--since", start.isoformat()), lambda event: event.recorded_at >= start),
            (("--until", end.isoformat()), lambda event: event.recorded_at <= end),
            (("--since", 7), lambda event: event.seq >= 7),
            (("--until", 9), lambda event: event.seq <= 9),
            (("--pool", "p"), lambda event: event.pool_id == proxy.pool_id),
            (("--type", "LeaseAcquired"), lambda event: event.type == "LeaseAcquired"),
        ]
        for (one, is_one), (other, is_other) in combinations_with_replacement(conditions, 2):
            if one[0] == other[0] and one != other:
                continue
            words = one if one == other else (*one, *other)
            expected = [event.seq for event in log if is_one(event) and is_other(event)]
            assert [each["seq"] for each in pharox("log", *words, "--json").objects] == expected
            last = pharox("log", *words, "--last", 2, "--json").objects
            assert [each["seq"] for each in last] == expected[-2:]

    def test_the_last_ones_and_then_what_comes(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """--follow with --last shows the end of the log first; it has no end of its own."""
        fill(storage, 5, name="p")
        shown = pharox("log", "--follow", "--last", 3, "--limit", 3, "--json").objects
        assert [event["seq"] for event in shown] == [4, 5, 6]
        assert pharox("log", "--follow", "--until", "now").status == 2
        assert "before the beginning" in pharox("log", "--since", 5, "--until", 3).err
        assert "there never was a consumer 'x'" in pharox("log", "--consumer", "x").err

    def test_a_name_counts_that_a_pool_had_then(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Also where the event that gave it the name is not among those that are shown."""
        pool, _ = fill(storage, 1, name="old")
        pharox("acquire", "old")
        storage.save_pool(pool.model_copy(update={"name": "new"}))
        pharox("acquire", "new")
        types = ("--type", "LeaseAcquired", "--type", "AcquireMissed", "--json")
        (lease,) = pharox("log", "--pool", "old", *types).objects
        (miss,) = pharox("log", "--pool", "new", *types).objects
        assert (lease["type"], miss["type"]) == ("LeaseAcquired", "AcquireMissed")
        assert pharox("log", "--pool", "old", *types, "--last", 1).objects == [lease]

    def test_a_pool_may_be_gone_but_not_unknown(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """The log of a removed pool is shown, by name and id; an unknown name is an error."""
        pool, _ = fill(storage, 1, name="one")
        storage.delete_pool(str(pool.id))
        by_name = pharox("log", "--pool", "one")
        assert (by_name.status, by_name.out.count("\n")) == (0, 4)
        assert pharox("log", "--pool", pool.id) == by_name
        expected = (1, "", "pharox: there never was a pool 'nope'\n")
        assert pharox("log", "--pool", "nope") == expected
        assert pharox("log", "--pool", "nope", "--follow") == expected

    def test_an_unknown_type_is_refused(self, pharox: Pharox) -> None:
        """The error for an unknown type lists the known ones."""
        outcome = pharox("log", "--type", "LeaseLost")
        assert outcome.status == 2
        assert "LeaseReleased" in outcome.err

    def test_following_shows_what_comes(
        self, pharox: Pharox, storage: PostgresStorage, database_url: str
    ) -> None:
        """With --follow an event is shown when it is committed, until Ctrl-C."""
        fill(storage, 1, name="p")
        code = "import sys; from pharox.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "log", "--follow", "--after", "0", "--json"]
        environment = {**os.environ, "PHAROX_DATABASE_URL": database_url}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            types = [json.loads(process.stdout.readline())["type"] for _ in range(2)]
            pharox("acquire", "p")
            types += [json.loads(process.stdout.readline())["type"] for _ in range(2)]
            process.send_signal(signal.SIGINT)
            assert process.wait() == 130
            assert process.stderr.read() == b""
        assert types == types_of(storage)

    def test_following_ends_at_the_limit(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """--limit ends a --follow too."""
        fill(storage, 3, name="p")
        outcome = pharox("log", "--follow", "--after", "0", "--limit", "3")
        assert (outcome.status, outcome.out.count("\n")) == (0, 3)


class TestPrune:
    def test_it_forgets_ended_leases_and_keeps_the_log(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """Leases that ended before the moment leave the read model; the log has LeasesPruned."""
        clock = clock_of(storage)
        fill(storage, 1, name="p")
        ended = []
        for _ in range(2):
            lease_id = pharox("acquire", "p").out.split()[0]
            pharox("release", lease_id)
            clock.advance(seconds=3600)
            ended.append(lease_id)
        before = types_of(storage)
        outcome = pharox("prune", "--ended-before", "2026-01-01T00:30Z")
        assert outcome == (0, "1 ended leases forgotten; their events stay in the log\n", "")
        assert [storage.get_lease(lease_id) is None for lease_id in ended] == [True, False]
        assert types_of(storage) == [*before, "LeasesPruned"]

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("30d", NOW - timedelta(days=30)),
            ("12h", NOW - timedelta(hours=12)),
            ("5m", NOW - timedelta(minutes=5)),
            ("90s", NOW - timedelta(seconds=90)),
            (" 2w ", NOW - timedelta(weeks=2)),
            ("now", NOW),
            ("2026-01-31T12:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
            ("2026-01-31T12:00:00+02:00", datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ],
    )
    def test_a_moment_is_a_date_or_a_span(self, text: str, moment: datetime) -> None:
        """ISO 8601 with a zone is that moment; a number and a unit is so long before now."""
        assert moment_before(text, NOW) == moment

    @pytest.mark.parametrize(
        "text", ["", "30", "d", "-3d", "1y", "tomorrow", "2026-13-01T00:00Z", "99999999999w"]
    )
    def test_what_is_neither_is_refused(self, text: str) -> None:
        """Anything else is no moment."""
        with pytest.raises(InvalidInputError, match="is not a moment"):
            moment_before(text, NOW)

    @pytest.mark.parametrize("text", ["2026-01-31", "2026-01-31T12:00"])
    def test_a_date_needs_a_zone(self, pharox: Pharox, text: str) -> None:
        """A moment without a time zone could be two, so it is refused."""
        outcome = pharox("prune", "--ended-before", text)
        assert (outcome.status, outcome.out) == (2, "")
        assert "has no time zone" in outcome.err


def test_a_mistyped_name_leaves_the_index_to_the_others() -> None:
    """A pool's events are found by its id, unless a miss had its name before it was there."""
    storage = InMemoryStorage()
    manager = ProxyManager(storage)
    manager.acquire_proxy("late", "w")
    for name in ("pool", "late"):
        storage.save_pool(ProxyPool(name=name))
    manager.acquire_proxy("pol", "w")
    (pool_id,) = (pool.id for pool in storage.list_pools() if pool.name == "pool")
    assert _only_pool(cast("Any", storage), "pool") == pool_id
    assert _only_pool(cast("Any", storage), "late") is None
