"""``pharox usage``, and prices and budgets of pools and proxies."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest

from pharox import Outcome, PoolLimits, ProxyManager
from pharox.cli.checking import budgets_of
from pharox.models.budgets import shown_budgets
from pharox.storage.postgres import PostgresStorage
from tests.conftest import DatabaseClock, fill

from .conftest import Pharox


def used(storage: PostgresStorage, pharox: Pharox) -> None:
    """Use two proxies of two providers: the dearer one for what is refused."""
    _, (cheap, dear) = fill(storage, 2, name="p")
    pharox("pools", "set", "p", "--cost-per-gb", "2")
    pharox("proxies", "set", str(cheap.id), "--source", "acme")
    pharox("proxies", "set", str(dear.id), "--source", "emca", "--cost-per-gb", "8")
    manager = ProxyManager(storage)
    for lease in manager.acquire_proxies("p", 2, "crawler"):
        is_dear = lease.proxy_id == dear.id
        refused = Outcome.blocked("shop.example", bytes=1_000_000)
        good = Outcome.ok("shop.example", bytes=1_000_000, count=2)
        manager.report(lease, good)
        manager.release_proxy(lease, refused if is_dear else good)


class TestUsage:
    def test_the_dearest_for_a_good_page_comes_first(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """With --per ok each row says what a good page cost."""
        used(storage, pharox)
        header, dear, cheap = pharox("usage", "--by", "source", "--per", "ok").out.splitlines()
        columns = ["source", "leases", "requests", "ok", "bytes", "money", "money", "per", "ok"]
        assert header.split() == columns
        assert dear.split() == ["emca", "1", "3", "2", "2000000", "0.016", "0.008"]
        assert cheap.split() == ["acme", "1", "4", "4", "2000000", "0.004", "0.001"]

    def test_it_is_read_by_programs(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """As JSON and as CSV, with money that is exact."""
        used(storage, pharox)
        (row,) = pharox("usage", "--json", "--pool", "p").objects
        sums = {"leases": 2, "requests": 7, "ok": 6, "bytes": 4_000_000, "money": "0.02"}
        assert row == {"pool": "p", **sums}
        text = pharox("usage", "--csv", "--by", "target,consumer", "--from", "1h").out
        targets = {row["target"]: row for row in csv.DictReader(io.StringIO(text))}
        assert targets["shop.example"]["money"] == "0.02"
        assert (targets[""]["consumer"], targets[""]["leases"]) == ("crawler", "2")

    def test_an_unknown_pool_is_named(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """One that was removed had its usage, and is none."""
        nowhere = pharox("usage", "--pool", "nowhere")
        assert nowhere == (1, "", "pharox: no pool is named 'nowhere'\n")
        assert pharox("targets", "--pool", "nowhere").err == nowhere.err
        used(storage, pharox)
        pharox("pools", "remove", "p", "--force")
        assert "p" in pharox("usage", "--pool", "p").out

    def test_nothing_is_said_to_be_nothing(self, pharox: Pharox) -> None:
        """Without use there is a sentence; what cannot be asked is an error."""
        found = pharox("usage")
        assert (found.status, found.out) == (0, "")
        assert "nothing was used" in found.err
        for wrong in (
            ("--by", "proxy"),
            ("--per", "gb"),
            ("--from", "tomorrow"),
            ("--json", "--csv"),
            ("--limit", "0"),
        ):
            refused = pharox("usage", *wrong)
            assert refused.status == 2, wrong
            assert refused.err.startswith("pharox: ")

    def test_more_rows_are_said_to_be_there(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A limit that is reached is said."""
        used(storage, pharox)
        found = pharox("usage", "--by", "source", "--limit", "1")
        assert len(found.out.splitlines()) == 2
        assert "--limit" in found.err


class TestPricesAndBudgets:
    def test_a_pool_has_them(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``add`` and ``set`` take them, list, log and audit show them; '' and 0 are none."""
        pool_id = pharox("pools", "add", "p", "--cost-per-gb", "3.50").out.strip()
        budget = ("--budget", "money=25,consumer-bytes=1.5GB")
        assert pharox("pools", "set", "p", "--cost-per-lease", "0.002", *budget).status == 0
        pool = storage.get_pool(pool_id)
        assert (pool.cost_per_gb, pool.cost_per_lease) == (Decimal("3.5"), Decimal("0.002"))
        limits = PoolLimits(money_per_day=25, consumer_bytes_per_day=1_500_000_000)
        assert pool.limits == limits
        listed = pharox("pools").out
        assert "money=25,consumer-bytes=1.5GB" in listed
        assert "3.5 a GB, 0.002 a lease" in listed
        told = "money=25,consumer-bytes=1.5GB a day, a GB costs 3.5, a lease costs 0.002"
        assert told in pharox("audit", "pool", "p").out
        assert "cost_per_gb=3.5 cost_per_lease=0.002" in pharox("log").out
        none = ("--cost-per-gb", "", "--budget", "money=0,consumer-bytes=0")
        assert pharox("pools", "set", "p", *none).status == 0
        pool = storage.get_pool(pool_id)
        assert (pool.cost_per_gb, pool.limits) == (None, None)

    def test_a_miss_says_which_budget_was_used_up(
        self, pharox: Pharox, storage: PostgresStorage
    ) -> None:
        """In one sentence: to who asks, and in the audit."""
        fill(storage, 1, name="p", max_concurrency=None)
        DatabaseClock(storage).advance(3600)
        pharox("pools", "set", "p", "--cost-per-lease", "2000.5", "--budget", "money=2000")
        assert pharox("acquire", "p", "--consumer", "crawler").status == 0
        missed = pharox("acquire", "p", "--consumer", "crawler")
        assert (missed.status, missed.out) == (75, "")
        assert (
            "a limit of pool 'p' is reached: the pool has spent 2,000.5 today, and may spend 2,000 "
            "a day; the next day begins in 23 h 0 min, at midnight UTC"
        ) in missed.err
        story = pharox("audit", "consumer", "crawler").out
        assert (
            "crawler got nothing from pool p: pool p had used 2,000.5 of its 2,000 money of the "
            "day; the next begins in 23 h 0 min, at midnight UTC"
        ) in story
        assert ", at a cost of 2000.5" in story

    def test_what_is_none_is_refused(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """With a sentence that says what one looks like; nothing is changed."""
        pharox("pools", "add", "p")
        for wrong in (
            ("--cost-per-gb", "-1"),
            ("--cost-per-lease", "free"),
            ("--budget", "money"),
            ("--budget", "money=1,money=2"),
            ("--budget", "bytes=many"),
            ("--budget", "money=-1"),
        ):
            refused = pharox("pools", "set", "p", *wrong)
            assert (refused.status, refused.out) == (2, ""), wrong
        assert storage.list_pools()[0].cost_per_gb is None
        assert storage.list_pools()[0].limits is None

    def test_a_list_has_prices(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """A column says the price of an entry, an option that of those without one."""
        text = "host,port,protocol,cost_per_gb\n192.0.2.1,80,http,7\n192.0.2.2,80,http,\n"
        options = ("--pool", "p", "--cost-per-gb", "2.5", "--cost-per-lease", "1")
        assert pharox("import", "-", *options, stdin=text).status == 0
        found = {str(p.host): p for p in storage.list_proxies(str(storage.list_pools()[0].id))}
        assert found["192.0.2.1"].cost_per_gb == 7
        assert found["192.0.2.2"].cost_per_gb == Decimal("2.5")
        assert {proxy.cost_per_lease for proxy in found.values()} == {1}
        assert "7 a GB, 1 a lease" in pharox("proxies", "p").out
        bad = "host,port,protocol,cost_per_gb\n192.0.2.3,80,http,-7\n"
        refused = pharox("import", "-", "--pool", "p", stdin=bad)
        assert refused.status != 0
        assert "cost_per_gb" in refused.err


@pytest.mark.parametrize("text", ["5GB", "1.5kB", "3TB", "1234567890", "999", "9007199254740991"])
def test_a_size_is_shown_as_it_can_be_typed(text: str) -> None:
    """In the greatest unit with at most three decimal places, else in bytes."""
    fields = budgets_of(f"bytes={text}")
    assert shown_budgets(PoolLimits(**fields)) == f"bytes={text}"
