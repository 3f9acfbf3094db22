"""``pharox pools``, ``proxies`` and ``stats``."""

from __future__ import annotations

import sys
import time

import pytest

from pharox import ProxyPool, QueueStats, SelectorStrategy
from pharox.events import LeaseAcquired
from pharox.models import ProxyCredentials
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill

from .conftest import Pharox


class TestPools:
    def test_they_are_listed_by_name(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Every pool has a row with its whole id."""
        pools = [ProxyPool(name=name, description=f"{name}!") for name in ("b", "a")]
        for pool in pools:
            storage.save_pool(pool)
        assert pharox("pools") == pharox("pools", "list")
        header, *rows = pharox("pools").out.splitlines()
        rule = "base=30,factor=2,max=900,jitter=0.1,after=2"
        assert header.split()[:2] == ["pool", "id"]
        assert [row.split() for row in rows] == [
            [pool.name, str(pool.id), "no", "no", "any", "time", rule, *"----", pool.description]
            for pool in reversed(pools)
        ]
        assert [p["id"] for p in pharox("pools", "--json").objects] == [
            str(pool.id) for pool in reversed(pools)
        ]

    def test_one_can_be_added(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``pools add`` registers a pool with its options, and not twice."""
        outcome = pharox("pools", "add", "p", "--lease-slow", "--description", "for tests")
        pool = storage.get_pool(outcome.out.strip())
        assert (pool.name, pool.lease_slow, pool.description) == ("p", True, "for tests")
        again = pharox("pools", "add", "p")
        assert again == (1, "", "pharox: another pool is named 'p'\n")

    def test_its_proxies_may_rest(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``add`` and ``set`` take both rests; 0 is none, and what is not said stays."""
        name = "--rest-after-release"
        pool_id = pharox("pools", "add", "p", name, "2.5").out.strip()
        pharox("pools", "set", "p", "--rest-after-expiry", "60")
        pool = storage.get_pool(pool_id)
        assert (pool.rest_after_release_seconds, pool.rest_after_expiry_seconds) == (2.5, 60)
        assert "2.5 s, 60 s" in pharox("pools").out
        assert "a proxy rests for 1 min 0 s after an expiry" in pharox("audit", "pool", "p").out
        pharox("pools", "set", "p", name, "0")
        assert storage.get_pool(pool_id).rest_after_release_seconds is None
        assert pharox("pools", "set", "p", name, "-1").status != 0

    def test_it_may_bound_renewals(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``add`` and ``set`` take the bound; 0 is none, and what makes no sense is refused."""
        pool_id = pharox("pools", "add", "p", "--max-held", "90s").out.strip()
        assert storage.get_pool(pool_id).max_held_seconds == 90
        assert "90 s" in pharox("pools").out
        assert "a lease is held for 1 min 30 s at most" in pharox("audit", "pool", "p").out
        assert pharox("pools", "set", "p", "--max-held", "-1").status != 0
        pharox("pools", "set", "p", "--max-held", "0")
        assert storage.get_pool(pool_id).max_held_seconds is None

    def test_it_may_have_defaults(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``add`` and ``set`` take them, the list, the log and the audit show them."""
        pool_id = pharox("pools", "add", "p", "--selector", "round_robin").out.strip()
        options = ("--selector", "least_recently_used", "--lease", "60s", "--max-concurrency", "2")
        assert pharox("pools", "set", "p", *options).status == 0
        pool = storage.get_pool(pool_id)
        assert (pool.selector, pool.lease_seconds) == ("least_recently_used", 60)
        assert pool.max_concurrency == 2
        assert "least_recently_used, 60 s, 2 leases at once" in pharox("pools").out
        told = (
            "selector least_recently_used by default, a lease lasts 1 min 0 s by default, "
            "a proxy takes 2 leases at once by default"
        )
        assert told in pharox("audit", "pool", "p").out
        attributes = "selector=least_recently_used lease_seconds=60.0 max_concurrency=2"
        assert attributes in pharox("log").out
        none = ("--selector", "", "--lease", "0", "--max-concurrency", "unlimited")
        assert pharox("pools", "set", "p", *none).status == 0
        pool = storage.get_pool(pool_id)
        assert (pool.selector, pool.lease_seconds, pool.max_concurrency) == (None, None, None)
        refused = pharox("pools", "set", "p", "--selector", "least")
        assert refused.status == 2
        assert "one of first_available, least_used" in refused.err

    def test_commands_take_what_it_says(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """``acquire`` and ``run`` without a selector and a duration leave them to the pool."""
        fill(storage, 1, name="p")
        pharox("pools", "set", "p", "--selector", "round_robin", "--lease", "20")
        assert pharox("acquire", "p").status == 0
        (lease,) = storage.list_leases()
        assert (lease.expires_at - lease.acquired_at).total_seconds() == 20
        storage.release_lease(lease)
        assert pharox("run", "p", "--", sys.executable, "-c", "").status == 0
        granted = [e for e in storage.events() if isinstance(e, LeaseAcquired)]
        assert {event.selector for event in granted} == {SelectorStrategy.ROUND_ROBIN}
        assert (granted[-1].expires_at - granted[-1].recorded_at).total_seconds() == 20

    def test_a_miss_says_that_they_rest(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The reason is told, and is in the log beside the moment until when they rest."""
        fill(storage, 1, name="p")
        pharox("pools", "set", "p", "--rest-after-expiry", "600")
        lease_id = pharox("acquire", "p").out.split()[0]
        pharox("revoke", lease_id, "--reason", "why")
        missed = pharox("acquire", "p")
        assert (missed.status, missed.out) == (75, "")
        assert "rests after its last lease" in missed.err
        log = pharox("log").out
        assert "reason=resting" in log
        assert "rests_until=" in log

    @pytest.mark.parametrize("command", ["pools", "stats"])
    def test_none_is_no_failure(self, pharox: Pharox, command: str) -> None:
        """Without pools the result is empty, and a remark says what to do."""
        outcome = pharox(command)
        assert (outcome.status, outcome.out) == (0, "")
        assert "there are no pools yet" in outcome.err
        assert pharox(command, "--json") == (0, "", "")


class TestProxies:
    def test_each_has_a_row_without_credentials(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Proxies are listed without their credentials, so no key is needed."""
        credentials = ProxyCredentials(user="quentin", password="s3cret")
        _, proxies = fill(storage, 3, name="p", credentials=credentials, country="AR")
        monkeypatch.delenv("PHAROX_SECRET_KEY")
        plain, as_json = pharox("proxies", "p"), pharox("proxies", "p", "--json")
        ids = sorted(str(proxy.id) for proxy in proxies)
        assert [line.split()[0] for line in plain.out.splitlines()[1:]] == ids
        assert [proxy["id"] for proxy in as_json.objects] == ids
        assert "credentials" not in as_json.objects[0]
        assert "s3cret" not in plain.out + as_json.out
        assert "quentin" not in plain.out + as_json.out

    def test_nothing_is_cut(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """Into a pipe every row goes whole, without colours."""
        host, isp = ".".join(["h" * 50] * 4), "I" * 300
        _, proxies = fill(storage, 1, name="p", isp=isp, city="São Paulo 東京")
        storage.save_proxy(proxies[0].model_copy(update={"host": host}))
        out = pharox("proxies", "p").out
        assert f"http://{host}:8000" in out
        assert isp in out
        assert "São Paulo 東京" in out
        assert "\x1b" not in out

    def test_an_unknown_pool_fails(self, pharox: Pharox) -> None:
        """An unknown pool is an error."""
        assert pharox("proxies", "p") == (1, "", "pharox: no pool is named 'p'\n")


class TestStats:
    def test_every_pool_is_in_numbers(self, pharox: Pharox, storage: PostgresStorage) -> None:
        """The numbers are those of the storage."""
        fill(storage, 3, name="p")
        pharox("acquire", "p")
        assert pharox("stats").out.splitlines()[1].split()[:6] == ["p", "3", "3", "2", "1", "1"]
        (found,) = pharox("stats", "--json").objects
        stats = storage.get_pool_stats("p")
        assert stats is not None
        queue = QueueStats(pool_name="p")
        assert {**found, "collected_at": None} == {
            **stats.model_dump(mode="json"),
            **queue.model_dump(mode="json"),
            "collected_at": None,
        }

    def test_watching_goes_on_until_interrupted(
        self, pharox: Pharox, storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With --watch the numbers are printed again and again, and Ctrl-C ends it."""
        fill(storage, 1, name="p")
        pauses: list[float] = []

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", sleep)
        outcome = pharox("stats", "--watch", "--every", "7", "--json")
        assert (outcome.status, pauses, len(outcome.objects)) == (130, [7, 7, 7], 3)
