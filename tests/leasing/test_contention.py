"""Many processes and threads at once: nobody is refused wrongly, nothing is held twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from uuid import UUID

import psycopg
import pytest

from pharox import (
    LeaseStatus,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.events import Event, LeaseAcquired, LeaseExpired, LeaseReleased
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, DatabaseClock, fill, open_engine, threads, types_of

STRESS_S = float(os.environ.get("PHAROX_STRESS_SECONDS", "30"))


def lease_for(url: str, seconds: float, selector: SelectorStrategy) -> tuple[int, int]:
    """Lease and release as fast as one process can; return the hits and the misses."""
    storage = PostgresStorage(open_engine(url))
    manager, hits, misses = ProxyManager(storage), 0, 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with manager.with_lease("pool", f"worker-{os.getpid()}", selector=selector) as lease:
            hits, misses = hits + (lease is not None), misses + (lease is None)
    storage.close()
    return hits, misses


def most_holders_at_once(events: list[Event]) -> Counter[UUID]:
    """Return for each proxy how many leases it had at most, by the order of the log."""
    held, most = Counter[UUID](), Counter[UUID]()
    for event in events:
        if isinstance(event, LeaseAcquired):
            held[event.proxy_id] += 1
            most[event.proxy_id] = max(most[event.proxy_id], held[event.proxy_id])
        elif isinstance(event, LeaseReleased | LeaseExpired):
            held[event.proxy_id] -= 1
    return most


def overlaps(events: list[Event]) -> int:
    """Count the leases that began before the one before on the same proxy was over."""
    free_since: dict[UUID, datetime] = {}
    count = 0
    for event in events:
        if isinstance(event, LeaseAcquired):
            began = free_since.get(event.proxy_id)
            # Not by time: a statement that waited for a proxy has the time it began at.
            count += began is not None and event.before.leases != 0
        elif isinstance(event, LeaseReleased | LeaseExpired):
            free_since[event.proxy_id] = event.recorded_at
    return count


@pytest.mark.stress
def test_eight_processes_share_eight_exclusive_proxies(
    database_url: str, postgres: PostgresStorage
) -> None:
    """Half a minute of ``with_lease``: no exception, no miss, never two holders, no drift."""
    fill(postgres, 8)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(8, mp_context=context) as pool:
        work = [
            pool.submit(lease_for, database_url, STRESS_S, SelectorStrategy.FIRST_AVAILABLE)
            for _ in range(8)
        ]
        counts = [done.result() for done in work]
    hits, misses = (sum(column) for column in zip(*counts, strict=True))
    events = list(postgres.events())
    assert misses == 0
    assert hits == sum(1 for event in events if isinstance(event, LeaseAcquired)) > 8
    assert set(most_holders_at_once(events).values()) == {1}
    assert overlaps(events) == 0
    assert postgres.verify() == []


@pytest.mark.parametrize("selector", list(SelectorStrategy))
def test_every_selector_serves_as_many_as_there_are(
    any_storage: AnyStorage, selector: SelectorStrategy
) -> None:
    """Four threads on four exclusive proxies: with any selector nobody misses."""
    fill(any_storage, 4)
    manager = ProxyManager(any_storage)

    def work(_: int) -> None:
        for _ in range(50):
            with manager.with_lease("pool", selector=selector) as lease:
                assert lease is not None

    threads(4, work)
    assert set(most_holders_at_once(list(any_storage.events())).values()) == {1}
    assert any_storage.verify() == []


def test_one_unlimited_proxy_serves_everybody(any_storage: AnyStorage) -> None:
    """Sixteen threads on one unlimited proxy: being locked is not being taken, so no miss."""
    fill(any_storage, 1, max_concurrency=None)
    manager = ProxyManager(any_storage)

    def work(_: int) -> None:
        for _ in range(25):
            lease = manager.acquire_proxy("pool")
            assert lease is not None
            manager.release_proxy(lease)

    threads(16, work)
    assert types_of(any_storage).count("LeaseAcquired") == 400
    assert any_storage.verify() == []


def test_forced_expiry_does_not_deadlock(postgres: PostgresStorage) -> None:
    """Twelve threads whose leases keep running out under them: no deadlock, no drift."""
    fill(postgres, 6, max_concurrency=2)
    clock = DatabaseClock(postgres)
    manager, over = ProxyManager(postgres), threading.Event()

    def run_out() -> None:
        while not over.is_set():
            clock.advance(2)

    ticking = threading.Thread(target=run_out)
    ticking.start()

    def work(number: int) -> None:
        for turn in range(40):
            lease = manager.acquire_proxy("pool", duration_seconds=1)
            if turn % 3 == number % 3:
                manager.cleanup_expired_leases()
            if lease is not None:
                manager.release_proxy(lease)

    try:
        threads(12, work)
    finally:
        over.set()
        ticking.join()
    assert types_of(postgres).count("LeaseExpired") > 0
    assert postgres.verify() == []


@pytest.mark.parametrize(
    "lock", ["pharox.leases", "pharox.available_proxies"], ids=["lease", "proxy"]
)
def test_a_locked_expired_lease_blocks_nobody(
    postgres: PostgresStorage, database_url: str, lock: str
) -> None:
    """While somebody keeps an expired lease locked, the other proxies are leased as ever."""
    fill(postgres, 2)
    manager = ProxyManager(postgres)
    clock = DatabaseClock(postgres)
    expired = manager.acquire_proxy("pool", duration_seconds=1)
    assert expired is not None
    clock.advance(2)
    url = database_url.replace("+psycopg", "")
    with psycopg.connect(url) as other:
        column = "id" if lock.endswith("leases") else "proxy_id"
        uuid = expired.id if column == "id" else expired.proxy_id
        other.execute(f"SELECT FROM {lock} WHERE {column} = %s FOR UPDATE", [uuid])
        postgres.engine.pool.dispose()
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        assert lease.proxy_id != expired.proxy_id
    assert manager.cleanup_expired_leases() == 1


@pytest.mark.parametrize("count", [8, 200])
def test_what_ran_out_is_there_for_everybody(postgres: PostgresStorage, count: int) -> None:
    """Eight threads at once on a pool whose leases have all run out: each gets a proxy."""
    fill(postgres, count)
    clock = DatabaseClock(postgres)
    manager = ProxyManager(postgres)
    for _ in range(10):
        for _ in range(count):
            assert manager.acquire_proxy("pool", duration_seconds=1) is not None
        clock.advance(2)
        at_once = threading.Barrier(8)

        def work(number: int, at_once: threading.Barrier = at_once) -> None:
            at_once.wait()
            assert manager.acquire_proxy("pool", f"c{number}") is not None

        threads(8, work)
        clock.advance(1000)
        manager.cleanup_expired_leases()
    assert postgres.verify() == []


@pytest.mark.parametrize("selector", list(SelectorStrategy))
def test_a_pool_removed_while_it_is_leased_leaves_nothing(
    any_storage: AnyStorage, selector: SelectorStrategy
) -> None:
    """Pools made and removed under leasing threads: no deadlock, no orphan lease, no drift."""
    manager, over = ProxyManager(any_storage), threading.Event()

    def lease(_: int) -> None:
        while not over.is_set():
            lease = manager.acquire_proxy("pool", selector=selector)
            any_storage.find_available_proxy("pool", None, selector)
            if lease is not None:
                manager.release_proxy(lease)

    def remove(_: int) -> None:
        try:
            for _ in range(12):
                pool, proxies = fill(any_storage, 6)
                any_storage.delete_proxy(str(proxies[0].id))
                any_storage.delete_pool(str(pool.id))
        finally:
            over.set()

    threads(4, lambda number: (lease if number else remove)(number))
    active = [x for x in any_storage.list_leases() if x.status is LeaseStatus.ACTIVE]
    assert active == []
    assert any_storage.verify() == []


def test_statistics_are_never_impossible(any_storage: AnyStorage) -> None:
    """Twelve threads on one proxy: every payload's counts are ones that a pool can have."""
    fill(any_storage, 1, max_concurrency=None)
    manager, told = ProxyManager(any_storage), list[PoolStatsSnapshot | None]()
    manager.register_acquire_callback(lambda payload: told.append(payload.pool_stats))
    manager.register_release_callback(lambda payload: told.append(payload.pool_stats))

    def work(_: int) -> None:
        for _ in range(20):
            with manager.with_lease("pool"):
                pass

    threads(12, work)
    assert len(told) == 480
    for stats in told:
        assert stats is not None
        assert (stats.total_proxies, stats.active_proxies, stats.available_proxies) == (1, 1, 1)
        assert 0 <= stats.total_leases <= 12
        assert stats.leased_proxies == int(stats.total_leases > 0)


def test_round_robin_is_fair_to_threads(any_storage: AnyStorage) -> None:
    """Eight threads on four unlimited proxies: each proxy is leased equally often."""
    fill(any_storage, 4, max_concurrency=None)
    manager, taken = ProxyManager(any_storage), Counter[UUID]()
    lock = threading.Lock()

    def work(_: int) -> None:
        for _ in range(40):
            lease = manager.acquire_proxy("pool", selector=SelectorStrategy.ROUND_ROBIN)
            assert lease is not None
            with lock:
                taken[lease.proxy_id] += 1
            manager.release_proxy(lease)

    threads(8, work)
    assert set(taken.values()) == {80}


def test_mixed_selectors_do_not_deadlock(any_storage: AnyStorage) -> None:
    """Ten threads with all selectors, predicates and expiry on six proxies: no deadlock."""
    fill(any_storage, 6)
    manager = ProxyManager(any_storage)
    anything = ProxyFilters(predicate=lambda _: True)

    def work(number: int) -> None:
        choose = random.Random(number)
        for _ in range(60):
            lease = manager.acquire_proxy(
                "pool",
                selector=choose.choice(list(SelectorStrategy)),
                filters=choose.choice([None, None, anything]),
            )
            if choose.random() < 0.1:
                any_storage.find_available_proxy("pool", None, SelectorStrategy.ROUND_ROBIN)
            if lease is not None:
                manager.release_proxy(lease)

    threads(10, work)
    assert any_storage.verify() == []


def test_registering_the_same_at_once_registers_it_once(any_storage: AnyStorage) -> None:
    """The same consumers, pools and proxies from eight threads: one event each, no error."""
    pool, _ = fill(any_storage, 0)
    _, proxies = fill(any_storage, 20, name="other")

    def work(_: int) -> None:
        any_storage.ensure_consumer("shared")
        any_storage.save_pool(pool)
        any_storage.add_proxies_bulk(proxies)
        any_storage.import_proxies(pool.id, proxies)
        any_storage.save_proxy(proxies[0].model_copy(update={"country": "AR"}))

    threads(8, work)
    kinds = Counter(types_of(any_storage))
    assert kinds["ConsumerRegistered"] == 1
    assert kinds["PoolRegistered"] == 2
    assert kinds["ProxyRegistered"] == 40
    assert kinds["ProxyChanged"] == 1
    assert any_storage.verify() == []


def test_removing_while_leasing_leaves_a_clean_ledger(any_storage: AnyStorage) -> None:
    """Proxies banned, removed and leased at once: errors are ours, and nothing drifts."""
    _, proxies = fill(any_storage, 30)
    manager = ProxyManager(any_storage)

    def lease(_: int) -> None:
        for _ in range(40):
            with manager.with_lease("pool"):
                pass

    def remove() -> None:
        for number, proxy in enumerate(proxies):
            if number % 2:
                any_storage.delete_proxy(str(proxy.id))
            else:
                banned = proxy.model_copy(update={"status": ProxyStatus.BANNED})
                any_storage.save_proxy(banned)

    work: list[Callable[[int], None]] = [lease, lease, lease, lambda _: remove()]
    threads(4, lambda number: work[number](number))
    assert any_storage.verify() == []
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert (stats.total_proxies, stats.total_leases) == (15, 0)
