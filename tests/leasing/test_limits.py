"""Limits of a pool bound how many leases there are at once, and how many begin in a window."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from pharox import (
    AsyncProxyManager,
    Lease,
    LimitReached,
    MissReason,
    Pace,
    PoolLimits,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    Sticky,
    new_lease_id,
)
from pharox.events import AcquireMissed, LeaseAcquired
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest, Acquisition, RenewRequest
from tests.conftest import AnyStorage, Clock, clock_of, fill, for_tasks

SHOP = "shop.example"


def limited(storage: AnyStorage, count: int, **limits: Any) -> tuple[ProxyPool, Clock]:
    """Return a pool of exclusive proxies, with limits, and a clock that stands still."""
    clock = clock_of(storage)
    pool, _ = fill(storage, count)
    limit(storage, pool, **limits)
    return pool, clock


def limit(storage: AnyStorage, pool: ProxyPool, **limits: Any) -> None:
    """Set the limits of a pool."""
    storage.save_pool(pool.model_copy(update={"limits": PoolLimits(**limits)}))


def ask(storage: AnyStorage, consumer: str = "w", **options: Any) -> Acquisition:
    """Ask for a lease."""
    return storage.acquire_lease(AcquireRequest("pool", consumer, 300, **options))


def lease(storage: AnyStorage, consumer: str = "w", **options: Any) -> Lease:
    """Lease a proxy."""
    found = ask(storage, consumer, **options)
    assert found.lease is not None, found
    return found.lease


def missed(storage: AnyStorage, consumer: str = "w", **options: Any) -> Acquisition:
    """Ask for a lease that a limit refuses."""
    found = ask(storage, consumer, **options)
    assert found.miss_reason is MissReason.LIMIT_REACHED, found
    *_, event = storage.events()
    assert isinstance(event, AcquireMissed)
    assert (event.limit, event.retry_after_seconds) == (found.limit, found.retry_after_seconds)
    return found


ASKED: list[dict[str, Any]] = [
    {},
    {"selector": SelectorStrategy.ROUND_ROBIN},
    {"selector": SelectorStrategy.LEAST_USED},
    {"target": SHOP},
    {"target": SHOP, "selector": SelectorStrategy.ROUND_ROBIN},
    {"filters": ProxyFilters(source="list")},
    {"filters": ProxyFilters(predicate=lambda proxy: True)},
    {"sticky": Sticky("key", shared=True)},
]


class TestAtOnce:
    """How many leases a consumer holds, and how many are held for a target."""

    @pytest.mark.parametrize("options", ASKED)
    def test_a_consumer_holds_no_more(
        self, any_storage: AnyStorage, options: dict[str, Any]
    ) -> None:
        pool, _ = limited(any_storage, 4, leases_per_consumer=2)
        for proxy in any_storage.list_proxies(str(pool.id)):
            any_storage.save_proxy(proxy.model_copy(update={"source": "list"}))
        first, second = (lease(any_storage, **options) for _ in range(2))
        found = missed(any_storage, **options)
        assert found.limit == LimitReached(
            name="leases_per_consumer", per="consumer", most=2, used=2
        )
        assert found.retry_after_seconds == 300
        lease(any_storage, "other")
        any_storage.return_lease(first)
        lease(any_storage, **options)
        missed(any_storage, **options)
        any_storage.return_lease(second)
        assert any_storage.verify() == []

    def test_a_target_is_leased_for_no_more(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 4, leases_per_target=2)
        held = [lease(any_storage, name, target=SHOP) for name in ("a", "b")]
        found = missed(any_storage, "c", target=SHOP)
        assert found.limit == LimitReached(name="leases_per_target", per="target", most=2, used=2)
        lease(any_storage, "c", target="else.example")
        lease(any_storage, "c")
        any_storage.return_lease(held[0])
        lease(any_storage, "c", target=SHOP)

    def test_what_runs_out_counts_no_more(self, any_storage: AnyStorage) -> None:
        _, clock = limited(any_storage, 2, leases_per_consumer=1)
        lease(any_storage)
        clock.advance(100)
        assert missed(any_storage).retry_after_seconds == 200
        clock.advance(200)
        lease(any_storage)
        assert any_storage.verify() == []

    def test_a_renewal_is_not_refused(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 2, leases_per_consumer=1, paces=[Pace(starts=1, seconds=600)])
        held = lease(any_storage)
        any_storage.renew_leases([RenewRequest(held, 400)])
        assert missed(any_storage).retry_after_seconds == 400

    def test_commands_of_one_batch_count(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 5, leases_per_consumer=2)
        asked = [AcquireRequest("pool", name) for name in ("a", "b", "a", "a", "b", "b")]
        found = [each.lease is not None for each in any_storage.run_batch(asked)]  # type: ignore[union-attr]
        assert found == [True, True, True, False, True, False]
        assert any_storage.verify() == []

    def test_what_was_leased_before_does_not_count(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 4)
        lease(any_storage)
        limit(any_storage, pool, leases_per_consumer=1)
        lease(any_storage)
        missed(any_storage)
        any_storage.save_pool(pool)
        lease(any_storage)

    def test_an_id_of_ones_own_is_told_what_it_was_granted(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 2, leases_per_consumer=1)
        own = new_lease_id()
        first = lease(any_storage, lease_id=own)
        assert lease(any_storage, lease_id=own).id == first.id
        missed(any_storage, lease_id=new_lease_id())

    def test_a_given_proxy_is_refused(self, any_storage: AnyStorage) -> None:
        pool, _ = limited(any_storage, 2, leases_per_consumer=1)
        first, second = any_storage.list_proxies(str(pool.id))
        any_storage.create_lease(first, "w", 60)
        with pytest.raises(ProxyUnavailableError, match="limit"):
            any_storage.create_lease(second, "w", 60)
        any_storage.create_lease(second, "other", 60)


class TestSets:
    """A set counts within itself."""

    def test_as_many_as_there_is_room_for(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 6, leases_per_consumer=3)
        lease(any_storage)
        asked = AcquireSetRequest("pool", "w", 4, at_least=2)
        found = any_storage.acquire_set(asked)
        assert len(found.leases) == 2
        again = any_storage.acquire_set(asked)
        assert (again.miss_reason, again.leases) == (MissReason.LIMIT_REACHED, [])
        assert again.limit is not None
        assert (again.limit.used, again.limit.most) == (3, 3)
        assert any_storage.verify() == []

    def test_all_or_none(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 6, leases_per_consumer=3)
        lease(any_storage)
        found = any_storage.acquire_set(AcquireSetRequest("pool", "w", 3))
        assert (found.miss_reason, found.free) == (MissReason.LIMIT_REACHED, 0)

    def test_a_paced_proxy_is_once_in_a_set(self, any_storage: AnyStorage) -> None:
        pool, _ = limited(any_storage, 1, paces=[Pace(starts=2, seconds=60)])
        (proxy,) = any_storage.list_proxies(str(pool.id))
        any_storage.save_proxy(proxy.model_copy(update={"max_concurrency": 5}))
        asked = AcquireSetRequest("pool", "w", 3, at_least=1, distinct=False)
        assert [len(any_storage.acquire_set(asked).leases) for _ in range(3)] == [1, 1, 0]

    @pytest.mark.parametrize("fallback", [(), ("other",)])
    @pytest.mark.parametrize("selector", ["first_available", "round_robin", "least_used"])
    def test_a_proxy_with_room_for_several_has_no_more(
        self, any_storage: AnyStorage, selector: SelectorStrategy, fallback: tuple[str, ...]
    ) -> None:
        pool, _ = fill(any_storage, 2, max_concurrency=5)
        fill(any_storage, 2, name="other")
        limit(any_storage, pool, leases_per_consumer=2)
        options: dict[str, Any] = {"selector": selector, "fallback": fallback, "distinct": False}
        asked = AcquireSetRequest("pool", "w", 5, at_least=1, **options)
        assert len(any_storage.acquire_set(asked).leases) == 2
        found = any_storage.acquire_set(AcquireSetRequest("pool", "w", 5, distinct=False))
        assert found.miss_reason is MissReason.LIMIT_REACHED
        *_, event = any_storage.events()
        assert isinstance(event, AcquireMissed)
        assert event.count == 5
        assert any_storage.verify() == []

    def test_round_robin_begins_anew_with_no_more(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 4, max_concurrency=2)
        turn = SelectorStrategy.ROUND_ROBIN
        for _ in range(3):
            lease(any_storage, selector=turn)
        limit(any_storage, pool, leases_per_consumer=1)
        asked = AcquireSetRequest("pool", "w", 3, at_least=1, selector=turn)
        assert len(any_storage.acquire_set(asked).leases) == 1

    def test_slow_proxies_add_no_more(self, any_storage: AnyStorage) -> None:
        pool, proxies = fill(any_storage, 2, lease_slow=True)
        any_storage.save_proxy(proxies[0].model_copy(update={"status": ProxyStatus.SLOW}))
        limit(any_storage, pool, leases_per_consumer=1)
        turn = SelectorStrategy.ROUND_ROBIN
        asked = AcquireSetRequest("pool", "w", 2, at_least=1, selector=turn)
        assert len(any_storage.acquire_set(asked).leases) == 1

    def test_filters_of_python_add_no_more(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 2, max_concurrency=5)
        limit(any_storage, pool, leases_per_consumer=2)
        filters = ProxyFilters(predicate=lambda proxy: True)
        asked = AcquireSetRequest("pool", "w", 5, at_least=1, distinct=False, filters=filters)
        assert len(any_storage.acquire_set(asked).leases) == 2

    def test_ids_of_ones_own_are_told_all_they_were_granted(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 2, max_concurrency=5)
        limit(any_storage, pool, leases_per_consumer=3)
        own = tuple(new_lease_id() for _ in range(5))
        asked = AcquireSetRequest("pool", "w", 5, at_least=1, distinct=False, lease_ids=own)
        first, second = (any_storage.acquire_set(asked) for _ in range(2))
        assert len(first.leases) == 3
        assert {each.id for each in first.leases} == {each.id for each in second.leases}


class TestPaces:
    """How many leases begin in a window of time that slides."""

    @pytest.mark.parametrize("options", ASKED)
    def test_a_proxy_is_passed_over(self, any_storage: AnyStorage, options: dict[str, Any]) -> None:
        pool, clock = limited(any_storage, 2, paces=[Pace(starts=2, seconds=60)])
        for proxy in any_storage.list_proxies(str(pool.id)):
            any_storage.save_proxy(proxy.model_copy(update={"source": "list"}))
        began: dict[UUID, int] = {}
        for _ in range(4):
            clock.advance(10)
            held = lease(any_storage, **options)
            began[held.proxy_id] = began.get(held.proxy_id, 0) + 1
            any_storage.return_lease(held)
        assert sorted(began.values()) == [2, 2]
        clock.advance(1)
        found = missed(any_storage, **options)
        assert found.limit == LimitReached(name="pace", per="proxy", most=2, used=2, seconds=60)
        assert found.retry_after_seconds is not None
        clock.advance(found.retry_after_seconds - 0.001)
        missed(any_storage, **options)
        clock.advance(0.001)
        any_storage.return_lease(lease(any_storage, **options))
        missed(any_storage, **options)
        assert any_storage.verify() == []

    def test_what_is_shown_is_not_bounded(self, any_storage: AnyStorage) -> None:
        """What a selector offers next is shown whether or not a lease may begin."""
        limited(any_storage, 1, leases_per_consumer=1, paces=[Pace(starts=1, seconds=60)])
        any_storage.return_lease(held := lease(any_storage))
        missed(any_storage)
        shown = any_storage.find_available_proxy("pool")
        assert shown is not None
        assert shown.id == held.proxy_id

    def test_a_pair_is_passed_over(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 2, paces=[Pace(starts=1, seconds=60, per="pair")])
        for _ in range(2):
            any_storage.return_lease(lease(any_storage, target=SHOP))
        found = missed(any_storage, target=SHOP)
        assert found.limit == LimitReached(name="pace", per="pair", most=1, used=1, seconds=60)
        assert found.retry_after_seconds == 60
        for _ in range(3):
            any_storage.return_lease(lease(any_storage))
        any_storage.return_lease(lease(any_storage, target="else.example"))

    def test_a_consumer_waits_for_its_window(self, any_storage: AnyStorage) -> None:
        _, clock = limited(any_storage, 5, paces=[Pace(starts=3, seconds=60, per="consumer")])
        for _ in range(3):
            any_storage.return_lease(lease(any_storage))
            clock.advance(20)
        any_storage.return_lease(lease(any_storage))
        assert missed(any_storage).retry_after_seconds == 20
        lease(any_storage, "other")
        clock.advance(20)
        lease(any_storage)
        assert any_storage.verify() == []

    def test_the_bound_that_is_freed_last_is_named(self, any_storage: AnyStorage) -> None:
        short, long = (Pace(starts=1, seconds=s, per="consumer") for s in (10, 90))
        limited(any_storage, 5, leases_per_consumer=1, paces=[short, long])
        held = lease(any_storage)
        found = missed(any_storage)
        assert found.limit is not None
        assert (found.limit.name, found.retry_after_seconds) == ("leases_per_consumer", 300)
        any_storage.return_lease(held)
        found = missed(any_storage)
        assert found.limit is not None
        assert (found.limit.seconds, found.retry_after_seconds) == (90, 90)

    def test_a_start_outlives_its_lease(self, any_storage: AnyStorage) -> None:
        _, clock = limited(any_storage, 1, paces=[Pace(starts=1, seconds=600)])
        any_storage.return_lease(lease(any_storage))
        clock.advance(100)
        any_storage.prune_leases(clock.now)
        missed(any_storage)
        clock.advance(500)
        any_storage.return_lease(lease(any_storage))
        clock.advance(601)
        any_storage.prune_leases(clock.now)
        assert any_storage.verify() == []

    def test_a_clock_that_goes_back_does_not_close_a_pool(self, any_storage: AnyStorage) -> None:
        _, clock = limited(any_storage, 1, paces=[Pace(starts=1, seconds=60)])
        any_storage.return_lease(lease(any_storage))
        clock.advance(-3600)
        any_storage.return_lease(lease(any_storage))
        missed(any_storage)


class TestHints:
    """Of a pace of proxies, the time is that of one which the request could have."""

    def paced(self, storage: AnyStorage) -> UUID:
        """Have a proxy in FR be free in 10 s, and one in DE in 100 s. Return that in FR."""
        pool, clock = limited(storage, 2, paces=[Pace(starts=1, seconds=100)])
        first, second = storage.list_proxies(str(pool.id))
        for proxy, country in ((first, "FR"), (second, "DE")):
            storage.save_proxy(proxy.model_copy(update={"country": country}))
        storage.return_lease(lease(storage, filters=ProxyFilters(country="FR")))
        clock.advance(90)
        storage.return_lease(lease(storage, filters=ProxyFilters(country="DE")))
        return first.id

    @pytest.mark.parametrize("policy", ["prefer", "require"])
    @pytest.mark.parametrize("waits", [None, 0.01])
    def test_filters_count(self, any_storage: AnyStorage, policy: Any, waits: float | None) -> None:
        self.paced(any_storage)
        for filters in (
            ProxyFilters(country="DE"),
            ProxyFilters(predicate=lambda proxy: proxy.country == "DE"),
        ):
            for sticky in (None, Sticky("key", policy=policy)):
                if sticky is None or filters.predicate is None:
                    options: dict[str, Any] = {
                        "filters": filters,
                        "sticky": sticky,
                        "wait_seconds": waits,
                    }
                    found = missed(any_storage, **options)
                    assert found.retry_after_seconds == 100
        assert missed(any_storage).retry_after_seconds == 10

    def test_a_set_counts_filters(self, any_storage: AnyStorage) -> None:
        self.paced(any_storage)
        fill(any_storage, 0, name="other")
        for fallback in ((), ("other",)):
            filters = ProxyFilters(country="DE")
            asked = AcquireSetRequest("pool", "w", 1, filters=filters, fallback=fallback)
            assert any_storage.acquire_set(asked).retry_after_seconds == 100

    @pytest.mark.parametrize("status", [ProxyStatus.BANNED, ProxyStatus.INACTIVE])
    def test_what_is_banned_does_not_count(
        self, any_storage: AnyStorage, status: ProxyStatus
    ) -> None:
        any_storage.set_status(self.paced(any_storage), status)
        assert missed(any_storage).retry_after_seconds == 100

    @pytest.mark.parametrize("lease_slow", [True, False])
    def test_what_is_slow_counts_where_it_is_leased(
        self, any_storage: AnyStorage, *, lease_slow: bool
    ) -> None:
        first = self.paced(any_storage)
        (pool,) = any_storage.list_pools()
        any_storage.save_pool(pool.model_copy(update={"lease_slow": lease_slow}))
        any_storage.set_status(first, ProxyStatus.SLOW)
        assert missed(any_storage).retry_after_seconds == (10 if lease_slow else 100)

    @pytest.mark.parametrize("target", [None, SHOP])
    def test_a_session_that_requires_its_proxy(
        self, any_storage: AnyStorage, target: str | None
    ) -> None:
        """It is told when its own proxy may begin again, if that is all that it lacks."""
        pace = Pace(starts=1, seconds=100, per="proxy" if target is None else "pair")
        _, clock = limited(any_storage, 2, paces=[pace])
        any_storage.return_lease(lease(any_storage, target=target))
        clock.advance(60)
        options: dict[str, Any] = {"sticky": Sticky("key", policy="require"), "target": target}
        held = lease(any_storage, **options)
        busy = ask(any_storage, **options)
        assert busy.miss_reason is MissReason.SESSION_BUSY
        any_storage.return_lease(held)
        found = missed(any_storage, **options)
        assert found.retry_after_seconds == 100
        assert found.limit is not None
        assert found.limit.per == pace.per
        clock.advance(100)
        lease(any_storage, **options)
        assert any_storage.verify() == []


class TestTelling:
    """The error, the event and the audit name the limit."""

    def test_the_error_names_it(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 3, leases_per_consumer=1)
        workers = ProxyManager(any_storage).pool("pool", consumer="w", wait_seconds=None)
        with (
            workers.lease(duration_seconds=300),
            pytest.raises(ProxyUnavailableError) as refused,
            workers.lease(),
        ):
            pass
        error = refused.value
        assert (error.reason, error.limit) == (
            "limit_reached",
            LimitReached(name="leases_per_consumer", per="consumer", most=1, used=1),
        )
        assert error.retry_after_seconds == 300
        assert "1 of at most 1" in str(error)

    def test_tasks_are_told_the_same(self, any_storage: AnyStorage) -> None:
        limited(any_storage, 3, leases_per_consumer=1)

        async def ask() -> ProxyUnavailableError:
            storage = for_tasks(any_storage)
            workers = AsyncProxyManager(storage).pool("pool", consumer="w", wait_seconds=None)
            async with workers.lease():
                with pytest.raises(ProxyUnavailableError) as refused:
                    async with workers.lease():
                        pass
            if isinstance(storage, AsyncPostgresStorage):
                await storage.close()
            return refused.value

        refused = asyncio.run(ask())
        assert refused.limit is not None
        assert refused.retry_after_seconds is not None

    def test_events_say_what_was_limited(self, any_storage: AnyStorage) -> None:
        pool, _ = limited(any_storage, 3, leases_per_consumer=1, paces=[Pace(starts=9, seconds=60)])
        any_storage.return_lease(lease(any_storage))
        any_storage.save_pool(pool)
        lease(any_storage)
        said = [
            (event.limited, event.paced_seconds)
            for event in any_storage.events()
            if isinstance(event, LeaseAcquired)
        ]
        assert said == [(True, 60), (False, None)]

    def test_a_pool_without_proxies_says_so(self, any_storage: AnyStorage) -> None:
        pool, _ = limited(any_storage, 1, leases_per_consumer=1)
        lease(any_storage)
        found = ask(any_storage, filters=ProxyFilters(country="XX"))
        assert found.miss_reason is MissReason.NO_MATCH
        any_storage.save_pool(ProxyPool(name="empty", limits=pool.limits))
        empty = any_storage.acquire_lease(AcquireRequest("empty", "w"))
        assert empty.miss_reason is MissReason.EMPTY_POOL
