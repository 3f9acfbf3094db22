"""What leases and bytes cost, what was used, and budgets of a day."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    InvalidInputError,
    MissReason,
    Outcome,
    PoolLimits,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    Sticky,
    Usage,
)
from pharox.events import AcquireMissed, LeaseAcquired, OutcomeReported
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, clock_of, fill

SHOP = "shop.example"
GB = 10**9


def priced(storage: AnyStorage, count: int = 1, **facts: Any) -> tuple[ProxyPool, list[Proxy]]:
    """Register a pool with these prices or limits, and proxies that any number may share."""
    pool, proxies = fill(storage, count, max_concurrency=None)
    pool = ProxyPool(**{**pool.model_dump(), **facts})
    storage.save_pool(pool)
    return pool, proxies


def costs(storage: AnyStorage) -> list[Decimal | None]:
    """Return what each lease and outcome in the log has cost."""
    found = (LeaseAcquired, OutcomeReported)
    return [event.cost for event in storage.events() if isinstance(event, found)]


def last_miss(storage: AnyStorage) -> AcquireMissed:
    """Return the last miss in the log."""
    return [event for event in storage.events() if isinstance(event, AcquireMissed)][-1]


class TestPrices:
    def test_a_price_of_the_proxy_comes_first(self, any_storage: AnyStorage) -> None:
        """Each price for itself; 0 is a price, and costs nothing."""
        pool, (proxy,) = priced(any_storage, cost_per_gb="2", cost_per_lease="0.5")
        manager = ProxyManager(any_storage)

        def use() -> None:
            lease = manager.acquire_proxy("pool")
            assert lease is not None
            manager.release_proxy(lease, Outcome.blocked(SHOP, bytes=GB // 2))

        use()
        any_storage.change_proxy(proxy.model_copy(update={"cost_per_gb": Decimal("7.5")}))
        use()
        any_storage.change_proxy(proxy.model_copy(update={"cost_per_lease": Decimal(0)}))
        use()
        any_storage.save_pool(pool.model_copy(update={"cost_per_gb": None, "cost_per_lease": None}))
        use()
        any_storage.change_proxy(proxy)
        use()
        paid = [Decimal(x) if x else None for x in ("0.5", "1", "0.5", "3.75", "", "1", "", "")]
        assert costs(any_storage) == [*paid, None, None]
        assert any_storage.verify() == []

    def test_without_prices_nothing_is_written(self, any_storage: AnyStorage) -> None:
        """An event without a cost has no such field, and no row is kept for the day."""
        priced(any_storage)
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease, Outcome.ok(SHOP))
        assert costs(any_storage) == [None, None]
        if isinstance(any_storage, InMemoryStorage):
            assert any_storage._state.rows["spending"] == {}
            return
        assert any_storage.live_states()["spending"] == {}
        with any_storage._driver.connection() as connection:
            query = "SELECT count(*) FROM pharox.events WHERE data ? 'cost'"
            assert connection.execute(query).fetchone() == (0,)

    def test_the_end_of_a_ban_keeps_the_prices(self, any_storage: AnyStorage) -> None:
        """It is recorded by SQL of its own, which describes the proxy anew."""
        clock = clock_of(any_storage)
        _, (proxy,) = priced(any_storage)
        prices = {"cost_per_gb": Decimal("1.25"), "cost_per_lease": Decimal("0.001")}
        any_storage.change_proxy(proxy.model_copy(update=prices))
        any_storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=60)
        clock.advance(61)
        assert ProxyManager(any_storage).acquire_proxy("pool") is not None
        (known,) = any_storage.list_proxies(str(proxy.pool_id))
        assert (known.cost_per_gb, known.cost_per_lease) == tuple(prices.values())

    def test_successes_that_are_counted_together_keep_their_bytes(
        self, any_storage: AnyStorage
    ) -> None:
        """They are one event, with the bytes of all and what these cost."""
        priced(any_storage, cost_per_gb="1")
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool", target=SHOP)
        assert lease is not None
        for size in (1, 20, None, 300):
            manager.report(lease, Outcome.ok(status=200, bytes=size))
        manager.release_proxy(lease)
        assert costs(any_storage) == [None, Decimal("0.000000321")]
        assert any_storage.usage() == [
            Usage(pool="pool", leases=1, requests=4, ok=4, bytes=321, money=Decimal("0.000000321"))
        ]

    @pytest.mark.parametrize("price", [-1, "x", "NaN", "Infinity", True, "0.0000000001", 10**15])
    def test_what_is_no_price_is_refused(self, any_storage: AnyStorage, price: Any) -> None:
        """By the model, and by the storage if it was assigned later; nothing is saved."""
        pool, (proxy,) = priced(any_storage)
        for model in (pool, proxy):
            with pytest.raises(ValueError, match=r"cost_per_gb|cost_per_lease"):
                type(model)(**{**model.model_dump(), "cost_per_lease": price})
        before = len(list(any_storage.events()))
        for change in (any_storage.save_pool, any_storage.change_proxy):
            model = pool if change == any_storage.save_pool else proxy
            with pytest.raises(InvalidInputError, match="cost_per_gb"):
                change(model.model_copy(update={"cost_per_gb": price}))  # type: ignore[arg-type]
        assert len(list(any_storage.events())) == before


class TestUsage:
    def test_days_are_of_utc(self, any_storage: AnyStorage) -> None:
        """The last moment of a day is of it, the first of the next is not, nor is ``until``."""
        clock = clock_of(any_storage)
        priced(any_storage, cost_per_gb="1")
        midnight = datetime(2026, 1, 2, tzinfo=UTC)
        clock.advance((midnight - clock.now).total_seconds() - 0.000001)
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool", duration_seconds=1000)
        assert lease is not None
        manager.report(lease, Outcome.blocked(SHOP, bytes=1))
        clock.advance(0.000001)
        manager.report(lease, Outcome.blocked(SHOP, bytes=2))
        found = {used.day: used.bytes for used in any_storage.usage(["day"])}
        assert found == {midnight.date() - timedelta(days=1): 1, midnight.date(): 2}
        (before,) = any_storage.usage([], until=midnight)
        (after,) = any_storage.usage([], since=midnight)
        assert (before.bytes, after.bytes, after.leases) == (1, 2, 0)
        assert any_storage.usage([], since=midnight + timedelta(days=1)) == []

    def test_what_cost_most_comes_first(self, any_storage: AnyStorage) -> None:
        """Then what has the most bytes; a limit keeps the first."""
        priced(any_storage, cost_per_lease="1")
        manager = ProxyManager(any_storage)
        for consumer, leases, size in (("a", 1, 0), ("b", 2, 0), ("c", 1, 5)):
            for lease in manager.acquire_proxies("pool", leases, consumer, distinct=False):
                manager.report(lease, Outcome.blocked(SHOP, bytes=size))
        assert [used.consumer for used in any_storage.usage(["consumer"])] == ["b", "c", "a"]
        assert [used.consumer for used in any_storage.usage(["consumer"], limit=1)] == ["b"]
        (whole,) = any_storage.usage([])
        assert (whole.money, whole.money_per_lease) == (Decimal(4), Decimal(1))
        assert whole.money_per_ok is None

    @pytest.mark.parametrize(
        "asked",
        [
            {"by": "pool"},
            {"by": ["proxy"]},
            {"by": ["pool", "pool"]},
            {"since": datetime(2026, 1, 1)},
            {"since": datetime(2026, 1, 2, tzinfo=UTC), "until": datetime(2026, 1, 1, tzinfo=UTC)},
            {"limit": 0},
            {"pool_name": ""},
        ],
    )
    def test_what_cannot_be_asked_is_refused(
        self, any_storage: AnyStorage, asked: dict[str, Any]
    ) -> None:
        """With an error that says what can."""
        with pytest.raises(InvalidInputError):
            any_storage.usage(**asked)

    def test_tasks_ask_as_threads_do(self) -> None:
        """The storage of an event loop has the same method."""
        storage = AsyncInMemoryStorage()
        priced(storage.memory, cost_per_lease="0.5")
        ProxyManager(storage.memory).acquire_proxy("pool", "c")
        (used,) = asyncio.run(storage.usage(["consumer"]))
        assert used == Usage(consumer="c", leases=1, money=Decimal("0.5"))


class TestBudgets:
    @pytest.mark.parametrize(
        ("name", "per", "most"),
        [
            ("bytes_per_day", "pool", 100),
            ("consumer_bytes_per_day", "consumer", 100),
            ("money_per_day", "pool", Decimal("0.5")),
            ("consumer_money_per_day", "consumer", Decimal("0.5")),
        ],
    )
    def test_a_used_up_budget_ends_leasing_for_the_day(
        self, any_storage: AnyStorage, name: str, per: str, most: Any
    ) -> None:
        """The miss names it and when the day ends; the next day it is whole again."""
        clock = clock_of(any_storage)
        limits = PoolLimits(**{name: most})
        priced(any_storage, cost_per_gb=5_000_000, limits=limits)
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool", "a", duration_seconds=100_000)
        assert lease is not None
        manager.report(lease, Outcome.blocked(SHOP, bytes=99))
        assert manager.acquire_proxy("pool", "a", duration_seconds=100_000) is not None
        manager.report(lease, Outcome.blocked(SHOP, bytes=1))
        for asked in ({}, {"target": SHOP}, {"sticky": Sticky("key")}, {"wait_seconds": 0.01}):
            assert manager.acquire_proxy("pool", "a", **asked) is None
            miss = last_miss(any_storage)
            assert (miss.reason, miss.retry_after_seconds) == (MissReason.LIMIT_REACHED, 86_400)
            assert miss.limit is not None
            assert (miss.limit.name, miss.limit.per) == (name, per)
            assert (miss.limit.used, miss.limit.most) == (float(most), float(most))
            told = f"the {per} has spent {most} today, and may spend {most} a day"
            if "bytes" in name:
                told = f"the {per} has used {most} bytes today, and may use {most} a day"
            assert str(miss.limit) == told
        assert manager.acquire_proxies("pool", 2, "a", at_least=1) == []
        assert (manager.acquire_proxy("pool", "b") is None) == (per == "pool")
        clock.advance(86_400)
        assert manager.acquire_proxy("pool", "a") is not None
        assert any_storage.verify() == []

    def test_pruned_leases_are_not_forgotten(self, any_storage: AnyStorage) -> None:
        """A budget counts what they used; days before that of the prune are deleted."""
        clock = clock_of(any_storage)
        priced(any_storage, cost_per_lease=1, limits=PoolLimits(money_per_day=2))
        manager = ProxyManager(any_storage)
        for _ in range(2):
            with manager.with_lease("pool"):
                pass
        clock.advance(3600)
        assert any_storage.prune_leases(clock.now - timedelta(minutes=30)) == 2
        assert manager.acquire_proxy("pool") is None
        clock.advance(86_400)
        with manager.with_lease("pool"):
            pass
        clock.advance(3600)
        any_storage.prune_leases(clock.now - timedelta(minutes=30))
        assert any_storage.verify() == []
        (whole,) = any_storage.usage([])
        assert (whole.leases, whole.money) == (3, Decimal(3))

    def test_a_higher_budget_holds_at_once(self, any_storage: AnyStorage) -> None:
        """So does none; what was used before counts."""
        pool, _ = priced(any_storage, cost_per_lease=1, limits=PoolLimits(money_per_day=1))
        manager = ProxyManager(any_storage)
        assert manager.acquire_proxy("pool") is not None
        assert manager.acquire_proxy("pool") is None
        limits = PoolLimits(money_per_day=Decimal("1.5"))
        any_storage.save_pool(pool.model_copy(update={"limits": limits}))
        assert manager.acquire_proxy("pool") is not None
        assert manager.acquire_proxy("pool") is None
        any_storage.save_pool(pool.model_copy(update={"limits": None}))
        assert manager.acquire_proxy("pool") is not None

    def test_a_set_of_several_is_not_too_many_for_a_small_budget(
        self, any_storage: AnyStorage
    ) -> None:
        """A budget bounds money and bytes, not how many leases there may be at once."""
        priced(any_storage, 3, cost_per_lease=1, limits=PoolLimits(consumer_money_per_day=1))
        assert len(ProxyManager(any_storage).acquire_proxies("pool", 3)) == 3
        missed = any_storage.acquire_lease(AcquireRequest("pool", "anonymous"))
        assert missed.miss_reason in (MissReason.LIMIT_REACHED, None)

    @pytest.mark.parametrize(
        "budget", [{"bytes_per_day": 0}, {"money_per_day": -1}, {"money_per_day": "x"}]
    )
    def test_what_is_no_budget_is_refused(self, budget: dict[str, Any]) -> None:
        """A budget of nothing would be a pool that is switched off."""
        with pytest.raises(ValueError, match="per_day"):
            PoolLimits(**budget)
