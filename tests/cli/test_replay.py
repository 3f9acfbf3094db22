"""``pharox replay``."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pharox as px
from pharox.cli.replay import paced
from pharox.cli.showing import in_utc
from pharox.history.replay import changes, pool_at
from pharox.history.sealed_log import last_seq
from pharox.models.moments import end_of, start_of
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill

from .conftest import Pharox


@pytest.fixture
def lived(storage: PostgresStorage) -> PostgresStorage:
    """A ledger: a pool of two (events 1 to 3), a lease (5) ten seconds later, its end (6)."""
    clock = clock_of(storage)
    fill(storage, 2, name="a pool", country="AR")
    clock.advance(10)
    manager = px.ProxyManager(storage)
    lease = manager.acquire_proxy(
        "a pool",
        consumer_name="crawler 7",
        duration_seconds=60,
        selector=px.SelectorStrategy.ROUND_ROBIN,
    )
    assert lease is not None
    clock.advance(5)
    manager.release_proxy(lease)
    assert last_seq(storage) == 6
    return storage


class TestAt:
    @pytest.mark.parametrize("at", ["5", "2026-01-01T00:00:12Z", "2026-01-01T02:00:14.999+02:00"])
    def test_a_pool_is_shown_as_it_was(
        self, pharox: Pharox, lived: PostgresStorage, at: str
    ) -> None:
        """Statistics, whose turn it was, and each proxy with who held it until when."""
        moment = pool_at(lived, "a pool", 5)
        (held,) = (proxy for proxy in moment.proxies if proxy.holders)
        outcome = pharox("replay", "--pool", "a pool", "--at", at)
        lines = outcome.out.splitlines()
        assert lines[:3] == [
            f"pool a pool ({moment.pool.id}) after event 5, recorded at 2026-01-01T00:00:10.000Z",
            "the pool had 2 proxies: 2 active, 1 available, 1 leased (1 lease)",
            f"round_robin: the last turn went to {held.address}",
        ]
        (row,) = (line for line in lines if str(held.proxy.id) in line)
        assert row.endswith("crawler 7 until 2026-01-01T00:01:10.000Z")
        assert len(lines) == 7

    @given(moment=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
    def test_a_time_that_was_printed_names_what_it_was_printed_for(self, moment: datetime) -> None:
        """To the millisecond or the second, its end is at or after the moment, and so near."""
        later = datetime(2030, 1, 2, tzinfo=UTC)
        for shown, length in ((in_utc(moment), 0.001), (f"{moment:%Y-%m-%dT%H:%M:%SZ}", 1)):
            start, end = start_of(shown, later), end_of(shown, later)
            assert isinstance(start, datetime)
            assert isinstance(end, datetime)
            assert start <= moment <= end < start + timedelta(seconds=length)
            assert end_of(shown, moment) == moment

    def test_a_time_that_is_exact_is_not_stretched(self) -> None:
        """Neither one to the minute nor a seq, nor now."""
        now = datetime(2026, 2, 1, tzinfo=UTC)
        assert end_of("2026-01-31T12:00Z", now) == datetime(2026, 1, 31, 12, tzinfo=UTC)
        assert (end_of("17", now), end_of("now", now)) == (17, now)

    def test_a_printed_time_shows_the_pool_after_its_event(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """By the database's clock, in microseconds, and cut off where they are shown."""
        fill(storage, 1)
        pharox("acquire", "pool", "--consumer", "late")
        *_, line = pharox("log").out.splitlines()
        seq, shown, *_ = line.split()
        (found,) = pharox("replay", "--pool", "pool", "--at", shown, "--json").objects
        assert (found["seq"], found["counts"]["total_leases"]) == (int(seq), 1)
        window = ("--from", "0", "--to", shown, "--json")
        assert pharox("replay", "--pool", "pool", *window).objects[-1]["seq"] == int(seq)
        story = pharox("audit", "pool", "pool", "--to", shown, "--json").objects
        assert story[-1]["seq"] == int(seq)

    def test_json_is_the_whole_moment(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """One object has all data of the library."""
        (found,) = pharox("replay", "--pool", "a pool", "--at", "5", "--json").objects
        moment = pool_at(lived, "a pool", 5)
        assert (found["seq"], found["pool"]["name"]) == (5, "a pool")
        assert found["counts"]["total_leases"] == 1
        assert [proxy["proxy"]["id"] for proxy in found["proxies"]] == [
            str(proxy.proxy.id) for proxy in moment.proxies
        ]
        holders = [held["id"] for proxy in found["proxies"] for held in proxy["holders"]]
        assert holders == [str(lease_id) for lease_id in moment.leases]

    @pytest.mark.parametrize(
        ("at", "status", "told"),
        [
            ("0", 1, "it was registered later, by event 1"),
            ("1999-01-01T00:00Z", 1, "it was registered later, by event 1"),
            ("7", 2, "the log has no event 7 yet: it ends at 6"),
            (
                "99999999999999999999999",
                2,
                "is not a moment: give a time with its zone such as 2026-01-31T12:00Z, "
                "a span before now such as 30m, now, or a seq",
            ),
            ("2999-01-01T00:00Z", 2, "is in the future"),
            ("2026-01-01", 2, "has no time zone"),
            ("-1", 2, "is not a moment"),
        ],
    )
    def test_a_moment_that_cannot_be_shown_is_told(
        self, pharox: Pharox, lived: PostgresStorage, at: str, status: int, told: str
    ) -> None:
        """Before the pool, after the log and in the future there is nothing, and it says so."""
        outcome = pharox("replay", "--pool", "a pool", "--at", at)
        assert (outcome.status, outcome.out) == (status, "")
        assert told in outcome.err
        assert outcome.err.count("\n") == 1

    def test_a_removed_pool_is_told_to_be(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """After its removal a pool is shown no more, but still for the time before."""
        (pool,) = lived.list_pools()
        lived.delete_pool(str(pool.id))
        outcome = pharox("replay", "--pool", "a pool", "--at", last_seq(lived))
        assert outcome.status == 1
        assert "it had been removed, by event 9" in outcome.err
        assert pharox("replay", "--pool", "a pool", "--at", "6").status == 0

    def test_an_unknown_pool_is_told(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """A name that no pool ever had."""
        expected = (1, "", "pharox: there never was a pool 'nowhere'\n")
        assert pharox("replay", "--pool", "nowhere", "--at", "5") == expected


class Time:
    """A time that passes where somebody sleeps."""

    now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class TestPlay:
    def test_each_change_is_a_line_with_statistics(
        self, pharox: Pharox, lived: PostgresStorage
    ) -> None:
        """The changes between the two moments, and the pool after them, are printed."""
        joined, leased, _ = (step.address for step in changes(lived, "a pool", 2, 6))
        assert pharox("replay", "--pool", "a pool", "--from", "2").out.splitlines() == [
            "  time              seq    available  leases  what happened",
            "Thursday 2026-01-01 UTC",
            f"  00:00:00.000        3       2 of 2       0  {joined} joined pool "
            "'a pool': active, up to 1 lease at once",
            f"  00:00:10.000        5       1 of 2       1  'crawler 7' got {leased} of pool "
            "'a pool' for 1 min 0 s",
            f"  00:00:15.000        6       2 of 2       0  'crawler 7' gave {leased} back after "
            "5 s",
        ]

    def test_it_can_end_earlier(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """--to is the last moment; the output says so if nothing happened."""
        window = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T00:00:10Z")
        objects = pharox("replay", "--pool", "a pool", *window, "--json").objects
        assert [(o["seq"], o["pool_has"]["total_leases"]) for o in objects] == [(5, 1)]
        outcome = pharox("replay", "--pool", "a pool", "--from", "3", "--to", "4")
        assert outcome.out.splitlines()[-1] == "nothing happened in this time"

    def test_the_end_cannot_lie_before_the_beginning(
        self, pharox: Pharox, lived: PostgresStorage
    ) -> None:
        """That is a wrong use of the command."""
        outcome = pharox("replay", "--pool", "a pool", "--from", "5", "--to", "3")
        assert (outcome.status, outcome.out) == (2, "")
        assert "before the beginning" in outcome.err

    def test_speed_keeps_the_pace(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """Changes come as far apart as they were, so many times faster."""
        time, due = Time(), []
        for _ in paced(changes(lived, "a pool", 0, 6), 2, clock=time.clock, sleep=time.sleep):
            due.append(time.now)
            time.sleep(0.5)
        assert due == pytest.approx([100, 100.5, 101, 105, 107.5])
        play = ("replay", "--pool", "a pool", "--from", "0")
        assert pharox(*play, "--speed", "1e9") == pharox(*play)

    @pytest.mark.parametrize("end", [b"\x04", b"q\n"])
    def test_step_waits_for_enter(
        self, lived: PostgresStorage, database_url: str, end: bytes
    ) -> None:
        """On a terminal it asks before each change: Enter shows it, q or the end of input ends."""
        code = "import sys; from pharox.cli import main; sys.exit(main())"
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", code, "replay", "--pool", "a pool", "--from", "0"]
        with subprocess.Popen(
            [*command, "--step", "--json"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PHAROX_DATABASE_URL": database_url},
        ) as process:
            os.close(theirs)
            assert process.stdout is not None
            assert process.stderr is not None
            shown = []
            for _ in range(2):
                os.write(ours, b"\n")
                shown.append(process.stdout.readline())
            os.write(ours, end)
            assert process.stdout.read() == b""
            assert process.stderr.read() == b"Enter: the next one, q: end " * 3
            assert process.wait() == 0
        os.close(ours)
        assert [b'"PoolRegistered"' in shown[0], b'"ProxyRegistered"' in shown[1]] == [True, True]

    def test_step_needs_a_terminal(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """There is no Enter in a pipe."""
        outcome = pharox("replay", "--pool", "a pool", "--from", "0", "--step", stdin="\n")
        assert outcome.status == 2
        assert "needs a terminal" in outcome.err


class TestDiff:
    def test_it_shows_what_changed(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """Proxies added (+), removed (-) and changed (~), leases, statistics."""
        leased = pool_at(lived, "a pool", 5)
        (lease,) = leased.leases.values()
        gone = next(p for p in leased.proxies if not p.holders)
        lived.delete_proxy(str(gone.proxy.id))
        banned = lived.get_proxy(str(lease.proxy_id)).model_copy(update={"status": "banned"})
        lived.save_proxy(banned)
        new = banned.model_copy(update={"id": UUID(int=7), "host": "10.9.9.9", "status": "slow"})
        lived.save_proxy(new)
        out = pharox("replay", "--pool", "a pool", "--diff", "5", last_seq(lived)).out
        for line in (
            "statistics: active proxies 2 -> 0",
            "statistics: total leases 1 -> 0",
            f"+ http://10.9.9.9:8000 ({UUID(int=7)}) slow",
            f"- {gone.address} ({gone.proxy.id}) active",
            f"~ {banned.url} ({banned.id}) status active -> banned, current leases 1 -> 0",
            f"- lease {lease.id}: crawler 7 on {banned.url}",
        ):
            assert f"  {line}\n" in out

    def test_a_begun_lease_and_a_turn_are_shown(
        self, pharox: Pharox, lived: PostgresStorage
    ) -> None:
        """What is held at the second moment and was not at the first."""
        out = pharox("replay", "--pool", "a pool", "--diff", "4", "5").out
        (lease,) = pool_at(lived, "a pool", 5).leases
        assert f"+ lease {lease}: crawler 7 on http://10.0.0." in out
        assert "  round_robin: - -> http://10.0.0." in out

    def test_nothing_is_said_to_be_nothing(self, pharox: Pharox, lived: PostgresStorage) -> None:
        """The same moment twice."""
        outcome = pharox("replay", "--pool", "a pool", "--diff", "5", "5")
        assert outcome.out.splitlines()[-1] == "there is no difference"

    def test_json_has_both_values_of_each_change(
        self, pharox: Pharox, lived: PostgresStorage
    ) -> None:
        """One object."""
        (found,) = pharox("replay", "--pool", "a pool", "--diff", "3", "5", "--json").objects
        assert (found["from_seq"], found["to_seq"]) == (3, 5)
        assert found["statistics"]["available_proxies"] == [2, 1]
        assert (len(found["begun"]), found["ended"]) == (1, [])


class TestUse:
    @pytest.mark.parametrize(
        "options",
        [
            (),
            ("--at", "5", "--from", "3"),
            ("--at", "5", "--diff", "3", "5"),
            ("--at", "5", "--to", "6"),
            ("--at", "5", "--speed", "2"),
            ("--diff", "3", "5", "--step"),
            ("--from", "1", "--speed", "0"),
        ],
    )
    def test_options_that_do_not_go_together_are_refused(
        self, pharox: Pharox, lived: PostgresStorage, options: tuple[str, ...]
    ) -> None:
        """One question at a time."""
        outcome = pharox("replay", "--pool", "a pool", *options)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.count("\n") == 1

    def test_a_span_counts_from_now(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A time may be given as a span before now."""
        fill(storage, 1)
        assert pharox("replay", "--pool", "pool", "--at", "0s").status == 0
        assert pharox("replay", "--pool", "pool", "--at", "1h").status == 1
        assert next(storage.events()).recorded_at > datetime.now(UTC) - timedelta(hours=1)
