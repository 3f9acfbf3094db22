"""What a person on call sees: stories and lists that fit the terminal, and are drawn again."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

import pharox as px
from pharox.errors import DatabaseUnavailableError
from pharox.storage.postgres import PostgresStorage
from tests.conftest import clock_of, fill

from .conftest import Pharox
from .terminal import drawn, on_terminal, widest


@pytest.fixture
def shortage(storage: PostgresStorage) -> PostgresStorage:
    """A pool of three: two are held by one, and two workers miss in turns before one is free."""
    clock = clock_of(storage)
    fill(storage, 3, name="residential")
    manager = px.ProxyManager(storage)
    held = [manager.acquire_proxy("residential", name) for name in ("bulk", "bulk", "other")]
    for number in range(6):
        clock.advance(2)
        manager.acquire_proxy("residential", f"crawler-{number % 2}")
    assert held[2] is not None
    manager.release_proxy(held[2])
    manager.acquire_proxy("residential", "crawler-0")
    manager.acquire_proxy("residential", "crawler-0")
    return storage


class TestStory:
    def test_misses_that_follow_each_other_are_one(
        self, pharox: Pharox, shortage: PostgresStorage
    ) -> None:
        """How many, from when until when, who missed, and who held what; JSON has each."""
        out = pharox("audit", "pool", "residential").out
        (run,) = (line for line in out.splitlines() if "had nothing" in line)
        assert "had nothing 6 times between 00:00:02.000 and 00:00:12.000" in run
        assert run.endswith("every healthy matching proxy was leased to its limit")
        assert "missed by crawler-0 (3), crawler-1 (3)\n" in out
        assert out.count("held by bulk (2), other (1)\n") == 1
        assert out.count("held by bulk (2), crawler-0 (1)\n") == 1  # the single miss after it
        objects = pharox("audit", "pool", "residential", "--json").objects
        missed = [each for each in objects if each["type"] == "AcquireMissed"]
        assert len(missed) == 7
        assert missed[0]["held_by"] == [
            {"consumer": "bulk", "leases": 2},
            {"consumer": "other", "leases": 1},
        ]
        own = pharox("audit", "consumer", "crawler-1").out
        assert "crawler-1 got nothing from pool residential 3 times between " in own

    @pytest.mark.parametrize("columns", [40, 80, 140])
    def test_it_fits(
        self,
        pharox: Pharox,
        shortage: PostgresStorage,
        monkeypatch: pytest.MonkeyPatch,
        columns: int,
    ) -> None:
        """Nothing is wider than the terminal, no word is lost, and what went wrong is red."""
        plain = pharox("audit", "pool", "residential").out
        on_terminal(monkeypatch, columns)
        shown = pharox("audit", "pool", "residential", "--no-pager").out
        assert widest(shown) <= columns
        assert "".join("".join(drawn(shown)).split()) == "".join(plain.split())
        assert "\x1b[31m" in shown

    def test_a_long_one_goes_to_the_pager(
        self,
        pharox: Pharox,
        shortage: PostgresStorage,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """All of it, without colours for a pager that may not know them; a short one does not."""
        page = tmp_path / "page"
        monkeypatch.setenv("PAGER", f"tee {page}")
        on_terminal(monkeypatch, 100, 500)
        whole = drawn(pharox("audit", "pool", "residential").out)
        assert not page.exists()
        on_terminal(monkeypatch, 100, 10)
        assert pharox("audit", "pool", "residential").status == 0
        assert page.read_text().splitlines() == whole

    def test_a_pager_that_ends_early_or_is_missing(
        self,
        pharox: Pharox,
        shortage: PostgresStorage,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The command ends well with it, or prints by itself."""
        on_terminal(monkeypatch, 100, 10)
        monkeypatch.setenv("PAGER", "true")
        assert pharox("audit", "pool", "residential")[::2] == (0, "")
        monkeypatch.setenv("PAGER", "/nowhere/less")
        assert len(drawn(pharox("audit", "pool", "residential").out)) > 10


class TestLists:
    def test_leases_have_a_line_each(
        self, pharox: Pharox, shortage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A narrow terminal shows beginnings of ids, which `revoke` takes, and says what lacks."""
        on_terminal(monkeypatch, 80)
        outcome = pharox("leases")
        _, *rows = drawn(outcome.out)
        assert len(rows) == 3
        assert widest(outcome.out) <= 80
        assert Counter(row.split()[2] for row in rows) == {"bulk": 2, "crawler-0": 1}
        assert "--wide shows all" in outcome.err
        beginning = next(row.split()[0] for row in rows if "crawler-0" in row)
        assert len(beginning) == 18
        assert pharox("revoke", beginning, "--reason", "stuck").status == 0
        assert len(drawn(pharox("leases").out)) == 3

    def test_a_long_name_leaves_a_row_its_line(
        self, pharox: Pharox, shortage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is shortened where rows would become records; a pipe and --wide have all of it."""
        name = "crawler-of-a-team-with-a-long-name-7"
        shortage.release_lease(shortage.list_held_leases("residential")[0])
        assert px.ProxyManager(shortage).acquire_proxy("residential", name) is not None
        assert name in pharox("leases").out
        on_terminal(monkeypatch, 80)
        outcome = pharox("leases")
        assert len(drawn(outcome.out)) == 4
        assert widest(outcome.out) <= 80
        assert "crawler-of-a-te…" in outcome.out
        assert name in pharox("leases", "--wide").out
        outcome = pharox("proxies", "residential")
        assert len(drawn(outcome.out)) == 4
        assert "crawler-of-a-te…" in outcome.out

    def test_proxies_say_who_holds_them(
        self, pharox: Pharox, shortage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With their last check and what they rest for: joined by proxy, over any page."""
        proxies = shortage.list_proxies(str(shortage.list_pools()[0].id))
        checked, cooled = sorted(proxies, key=lambda proxy: proxy.id)[:2]
        shortage.apply_health_check_result(
            px.HealthCheckResult(
                proxy_id=checked.id,
                status=px.ProxyStatus.SLOW,
                latency_ms=2500,
                protocol=px.ProxyProtocol.HTTP,
                checked_at=shortage.list_held_leases("residential")[0].acquired_at,
            )
        )
        assert pharox("cooldown", cooled.id, "--target", "shop.example", "--for", "1h").status == 0
        monkeypatch.setattr("pharox.cli.proxy_table.PAGE", 2)
        rows = {each["id"]: each for each in pharox("proxies", "residential", "--json").objects}
        for lease in shortage.list_held_leases("residential"):
            held = rows[str(lease.proxy_id)]["held_by"]
            assert held == [{"consumer": lease.consumer_name, "lease_id": str(lease.id)}]
        assert (rows[str(checked.id)]["latency_ms"], len(rows)) == (2500, 3)
        (rest,) = rows[str(cooled.id)]["cools_down_for"]
        assert rest["target"] == "shop.example"
        on_terminal(monkeypatch, 80)
        outcome = pharox("proxies", "residential")
        assert len(drawn(outcome.out)) == 4
        assert widest(outcome.out) <= 80
        assert "shop.example (" in outcome.out
        assert "2500" in pharox("proxies", "residential", "--wide").out


class TestWatch:
    def test_it_is_drawn_again(
        self, pharox: Pharox, shortage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What changed is shown; a lost connection too, until it is back; Ctrl-C ends it well."""
        on_terminal(monkeypatch, 100)
        (lease,) = shortage.list_held_leases("residential", consumer_name="crawler-0")
        read, pauses = PostgresStorage.list_held_leases, list[float]()

        def away(*_: object, **__: object) -> None:
            raise DatabaseUnavailableError("no connection\x1b[2J")

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 1:
                shortage.return_lease(lease)
                monkeypatch.setattr(PostgresStorage, "list_held_leases", away)
            elif len(pauses) == 2:
                monkeypatch.setattr(PostgresStorage, "list_held_leases", read)
            else:
                raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", sleep)
        outcome = pharox("leases", "--watch", "5", "--pool", "residential")
        assert (outcome.status, pauses) == (0, [5, 5, 5])
        shown = drawn(outcome.out)
        assert sum("crawler-0" in line for line in shown) == 2  # at first, and while it was away
        (lost,) = (line for line in shown if "trying again" in line)
        assert lost.endswith("no connection\\x1b[2J")
        assert "every 5 s" in shown[-1]

    @pytest.mark.parametrize("words", [("leases",), ("pools",), ("proxies", "residential")])
    def test_every_list_has_it(
        self,
        pharox: Pharox,
        shortage: PostgresStorage,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[str, ...],
    ) -> None:
        """With its interval or without; only on a terminal, and only as a table."""
        refused = pharox(*words, "--watch")
        assert (refused.status, refused.out) == (2, "")
        assert "--watch redraws a table on a terminal" in refused.err
        on_terminal(monkeypatch)
        monkeypatch.setattr(time, "sleep", _interrupted)
        for interval in ((), ("5",), ("500ms",)):
            assert pharox(*words, "--watch", *interval).status == 0
        assert pharox(*words, "--watch=never").status == 2
        for zero in (("--watch=0",), ("--watch", "0")):
            refused = pharox(*words, *zero)
            assert (refused.status, "0 is no interval" in refused.err) == (2, True)
        assert pharox(*words, "--watch", "--json").status == 2

    def test_a_command_that_lists_nothing_lacks_it(self, pharox: Pharox) -> None:
        """Its group would take it otherwise."""
        assert pharox("pools", "--watch", "remove", "x").status == 2
        assert pharox("release", "--watch", "x").status == 2


def _interrupted(_: float) -> None:
    raise KeyboardInterrupt
