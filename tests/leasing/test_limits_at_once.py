"""Limits hold for many processes at once: never one more, and nobody waits for ever."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import cast

import pytest

from pharox import (
    Lease,
    MissReason,
    Pace,
    PoolLimits,
    ProxyFilters,
    ProxyManager,
    SelectorStrategy,
    Sticky,
)
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, fill, open_engine, threads
from tests.ledger.following import until
from tests.properties.test_limits import exceeded
from tests.queueing import waiting, waiting_in

LIMITS = PoolLimits(
    leases_per_consumer=3,
    leases_per_target=4,
    paces=(
        Pace(starts=2, seconds=0.3),
        Pace(starts=1, seconds=0.2, per="pair"),
        Pace(starts=12, seconds=0.5, per="consumer"),
    ),
)
SITES = (None, "a.example", "b.example")


def lease_often(url: str, number: int, times: int) -> Counter[str]:
    """Lease in every way as fast as one process can; count what came of it."""
    storage = PostgresStorage(open_engine(url))
    rng, came = random.Random(number), Counter[str]()

    def work(_: int) -> None:
        for _ in range(times):
            consumer, site = f"w{rng.randrange(3)}", rng.choice(SITES)
            selector = rng.choice(list(SelectorStrategy))
            way = rng.randrange(6)
            if way == 0:
                asked = AcquireSetRequest("pool", consumer, 3, 1, at_least=2, target=site)
                held = storage.acquire_set(asked).leases
            else:
                one = storage.acquire_lease(
                    AcquireRequest(
                        "pool",
                        consumer,
                        rng.choice([0.05, 5]),
                        ProxyFilters(source="list") if way == 1 else None,
                        selector,
                        target=site,
                        sticky=Sticky(f"key {rng.randrange(4)}", seconds=1) if way == 2 else None,
                        wait_seconds=0.3 if way in (2, 3) else None,
                    )
                )
                came[one.miss_reason or "leased"] += 1
                held = [] if one.lease is None else [one.lease]
            for lease in held:
                if rng.random() < 0.8:
                    storage.return_lease(lease)

    threads(2, work)
    storage.close()
    return came


def test_eight_processes_exceed_nothing(database_url: str, postgres: PostgresStorage) -> None:
    """Singles, sets, sessions and waiters of eight processes, with leases that run out."""
    pool, _ = fill(postgres, 24, source="list", max_concurrency=2)
    postgres.save_pool(pool.model_copy(update={"limits": LIMITS}))
    context = multiprocessing.get_context("fork")  # Which starts them at once
    with ProcessPoolExecutor(8, mp_context=context) as processes:
        work = [processes.submit(lease_often, database_url, number, 12) for number in range(8)]
        came = sum((each.result() for each in work), Counter[str]())
    assert came["leased"]
    assert came[MissReason.LIMIT_REACHED]
    assert exceeded(postgres, pool.id, LIMITS) == []
    assert postgres.verify() == []


def test_four_threads_that_ask_at_once_get_one(any_storage: AnyStorage) -> None:
    """Who counts and then leases is alone with its consumer."""
    pool, _ = fill(any_storage, 8)
    any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
    for _ in range(10):
        barrier, held = threading.Barrier(4), list[Lease]()

        def ask(_: int, barrier: threading.Barrier = barrier, held: list[Lease] = held) -> None:
            barrier.wait()
            found = any_storage.acquire_lease(AcquireRequest("pool", "w"))
            if found.lease is not None:
                held.append(found.lease)

        threads(4, ask)
        assert len(held) == 1
        any_storage.return_lease(held[0])


class TestWaiting:
    """A limit is waited for, and whoever waits is served when it is freed."""

    @pytest.fixture
    def wait(self, any_storage: AnyStorage) -> Callable[..., float]:
        """Return the function that waits for a lease, and returns how many seconds it took."""

        def wait(consumer: str = "w", seconds: float = 10, **options: object) -> float:
            begun = time.monotonic()
            request = AcquireRequest("pool", consumer, 300, wait_seconds=seconds, **options)  # type: ignore[arg-type]
            found = any_storage.acquire_lease(request)
            assert found.lease is not None, found
            return time.monotonic() - begun

        return wait

    @pytest.mark.parametrize("sticky", [None, Sticky("key", shared=True)])
    def test_a_release_of_the_consumer_serves_it(
        self, any_storage: AnyStorage, wait: Callable[..., float], sticky: Sticky | None
    ) -> None:
        pool, _ = fill(any_storage, 4)
        any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
        manager = ProxyManager(any_storage)
        held = manager.acquire_proxy("pool", "w")
        assert held is not None
        waiter = threading.Thread(target=wait, kwargs={"sticky": sticky})
        waiter.start()
        while not any_storage.queue_stats():
            time.sleep(0.01)
        assert manager.acquire_proxy("pool", "other") is not None  # It is not kept from others.
        manager.release_proxy(held)
        waiter.join(10)
        assert not waiter.is_alive()
        assert len(any_storage.list_held_leases("pool")) == 2

    def test_time_serves_it(self, any_storage: AnyStorage, wait: Callable[..., float]) -> None:
        pool, _ = fill(any_storage, 1)
        limits = PoolLimits(paces=(Pace(starts=1, seconds=0.4),))
        any_storage.save_pool(pool.model_copy(update={"limits": limits}))
        manager = ProxyManager(any_storage)
        for _ in range(2):
            wait()
            for lease in any_storage.list_held_leases("pool"):
                manager.release_proxy(lease)
        assert exceeded(any_storage, pool.id, limits) == []

    def test_a_wait_that_is_over_names_the_limit(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 2)
        any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
        assert any_storage.acquire_lease(AcquireRequest("pool", "w")).lease is not None
        found = any_storage.acquire_lease(AcquireRequest("pool", "w", wait_seconds=0.2))
        assert found.miss_reason is MissReason.LIMIT_REACHED
        assert found.limit is not None
        assert found.waited_ms is not None

    def test_a_set_that_can_never_be_had_is_not_waited_for(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 5)
        any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=2)}))
        asked = AcquireSetRequest("pool", "w", 3, wait_seconds=30)
        found = any_storage.acquire_set(asked)
        assert (found.miss_reason, found.waited_ms) == (MissReason.LIMIT_REACHED, None)

    def test_a_set_that_waited_has_no_more(self, any_storage: AnyStorage) -> None:
        pool, _ = fill(any_storage, 1, max_concurrency=5)
        any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=3)}))
        manager = ProxyManager(any_storage)
        held = [manager.acquire_proxy("pool", "w") for _ in range(3)]
        asked = AcquireSetRequest("pool", "w", 4, at_least=2, distinct=False, wait_seconds=30)
        with ThreadPoolExecutor(1) as thread:
            granted = thread.submit(any_storage.acquire_set, asked)
            until(lambda: waiting_in(any_storage) == 1)
            for each in held[:2]:
                assert each is not None
                manager.release_proxy(each)
            assert len(granted.result().leases) == 2
        assert any_storage.verify() == []

    def test_limits_that_are_set_meanwhile_keep_nothing_from_others(
        self, any_storage: AnyStorage
    ) -> None:
        """Who waited before there were limits, and has reached one now, is passed over."""
        pool, _ = fill(any_storage, 3)
        manager = ProxyManager(any_storage)
        held = [manager.acquire_proxy("pool", "early") for _ in range(3)]
        limited = pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)})
        with waiting(manager, "w") as first, waiting(manager, "w") as second:
            any_storage.save_pool(limited)
            manager.release_proxy(cast("Lease", held[0]))
            until(lambda: waiting_in(any_storage) == 1)
            with waiting(manager, "late") as third:
                manager.release_proxy(cast("Lease", held[1]))
                assert third.result(30) is not None
            manager.release_proxy(cast("Lease", held[2]))
            until(lambda: manager.acquire_proxy("pool", "another") is not None)
            assert waiting_in(any_storage) == 1
            granted = next(as_completed((first, second)))
            manager.release_proxy(cast("Lease", granted.result()))
        assert first.result() is not None
        assert second.result() is not None
        assert any_storage.verify() == []

    def test_limits_that_are_taken_away_meanwhile_bind_nobody(
        self, any_storage: AnyStorage
    ) -> None:
        pool, _ = fill(any_storage, 2)
        any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
        manager = ProxyManager(any_storage)
        assert manager.acquire_proxy("pool", "w") is not None
        other = manager.acquire_proxy("pool", "other")
        with waiting(manager, "w") as granted:
            any_storage.save_pool(pool)
            manager.release_proxy(cast("Lease", other))
            assert granted.result(30) is not None
