"""What a pool says for who does not: a selector, how long a lease lasts, how many a proxy takes."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from pharox import (
    AcquireEventPayload,
    AsyncInMemoryStorage,
    AsyncProxyManager,
    DefaultSeconds,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    SelectorStrategy,
)
from pharox.events import AcquireMissed, LeaseAcquired, PoolChanged
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import SECRET_KEY, AnyStorage, fill, open_async_engine

LRU = SelectorStrategy.LEAST_RECENTLY_USED
RR = SelectorStrategy.ROUND_ROBIN


def filled(storage: AnyStorage, count: int = 3, **defaults: Any) -> tuple[ProxyPool, list[Proxy]]:
    """Register a pool with these defaults, and proxies that were checked at one moment."""
    pool, proxies = fill(storage, count)
    pool = ProxyPool(**{**pool.model_dump(), **defaults})
    storage.save_pool(pool)
    return pool, sorted(proxies, key=lambda proxy: proxy.id)


def seconds_of(lease: Lease | None) -> float:
    """Return how long a lease was granted for."""
    assert lease is not None
    return (lease.expires_at - lease.acquired_at).total_seconds()


def acquired(storage: AnyStorage) -> list[LeaseAcquired]:
    """Return what was granted, in order."""
    return [event for event in storage.events() if isinstance(event, LeaseAcquired)]


@pytest.mark.parametrize("selector", [LRU, RR])
def test_the_selector_of_a_pool_is_used(any_storage: AnyStorage, selector: Any) -> None:
    """One lease, a set, a batch and a predicate take it, and each event says so."""
    pool, proxies = filled(any_storage, selector=selector)
    manager = ProxyManager(any_storage)
    ids = [proxy.id for proxy in proxies]
    found: list[UUID] = []
    for _ in range(2):
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        found.append(lease.proxy_id)
        manager.release_proxy(lease)
    manager.release_proxies(leases := manager.acquire_proxies("pool", 2))
    found += [lease.proxy_id for lease in leases]
    every = ProxyFilters(predicate=lambda proxy: True)
    with manager.with_lease("pool", filters=every) as chosen:
        assert chosen is not None
        found.append(chosen.proxy_id)
    requests = [AcquireRequest("pool", "w"), AcquireRequest("pool", "w", 60)]
    for outcome in any_storage.run_batch(requests):
        assert not isinstance(outcome, Exception)
        assert outcome.selector is selector  # type: ignore[union-attr]
        found.append(outcome.lease.proxy_id)  # type: ignore[union-attr]
    # What was leased in one commit was leased at one moment, and is offered in the order of ids.
    assert found == [*ids, ids[0], ids[1], *((ids[2], ids[0]) if selector is RR else ids[::2])]
    assert {event.selector for event in acquired(any_storage)} == {selector}
    assert manager.acquire_proxies("pool", 9) == []
    *_, miss = any_storage.events()
    assert isinstance(miss, AcquireMissed)
    assert miss.selector is selector
    (changed,) = (e for e in any_storage.events() if isinstance(e, PoolChanged))
    assert changed.selector is selector
    assert any_storage.get_pool(str(pool.id)) == pool


def test_what_is_asked_for_is_used(any_storage: AnyStorage) -> None:
    """Who says a selector or a duration gets it."""
    _, proxies = filled(any_storage, selector=LRU, lease_seconds=20)
    manager = ProxyManager(any_storage)
    first = SelectorStrategy.FIRST_AVAILABLE
    for _ in range(2):
        with manager.with_lease("pool", "w", 300, selector=first) as lease:
            assert seconds_of(lease) == 300
    (leased,) = {event.proxy_id for event in acquired(any_storage)}
    never = next(proxy.id for proxy in proxies if proxy.id != leased)
    offered = [any_storage.find_available_proxy("pool", None, each) for each in (None, first)]
    assert [proxy and proxy.id for proxy in offered] == [never, leased]


def test_a_lease_lasts_as_long_as_its_pool_says(any_storage: AnyStorage) -> None:
    """Also of a handle, and in place of what they say themselves without such a pool."""
    _, _ = filled(any_storage, lease_seconds=20)
    fill(any_storage, 3, name="other")
    manager = ProxyManager(any_storage)
    for name, expected in (("pool", (20, 20, 20)), ("other", (300, 60, 300))):
        with (
            manager.with_lease(name) as lease,
            manager.pool(name).lease() as other,
            manager.with_leases(name, 1) as several,
        ):
            assert (seconds_of(lease), seconds_of(other), seconds_of(several[0])) == expected
        with manager.with_lease(name, keep_alive=True, duration_seconds=90) as lease:
            assert seconds_of(lease) == 90


@pytest.mark.parametrize("selector", [LRU, RR])
def test_a_lease_for_a_target_takes_it_too(any_storage: AnyStorage, selector: Any) -> None:
    """One, by an unknown consumer or a known one, a set, and one where the pool is unknown."""
    filled(any_storage, 4, selector=selector, lease_seconds=20)
    manager = ProxyManager(any_storage)
    for _ in range(2):
        lease = manager.acquire_proxy("pool", "worker", target="shop.example")
        assert seconds_of(lease) == 20
    leases = manager.acquire_proxies("pool", 2, "worker", target="shop.example")
    assert [seconds_of(lease) for lease in leases] == [20, 20]
    granted = acquired(any_storage)
    assert {event.selector for event in granted} == {selector}
    assert [event.proxy_id for event in granted] == sorted(event.proxy_id for event in granted)
    assert manager.acquire_proxy("pool", "worker", target="shop.example") is None
    assert manager.acquire_proxy("nowhere", "worker", target="shop.example") is None
    misses = [event for event in any_storage.events() if isinstance(event, AcquireMissed)]
    assert [miss.selector for miss in misses] == [selector, SelectorStrategy.FIRST_AVAILABLE]


def test_each_of_a_batch_lasts_as_long_as_its_own_pool_says(any_storage: AnyStorage) -> None:
    """Requests for several pools, with and without a duration, are not mixed up."""
    filled(any_storage, 4, lease_seconds=20, selector=RR)
    fill(any_storage, 4, name="other")
    asked = [("pool", DefaultSeconds(7)), ("other", DefaultSeconds(7)), ("pool", 9), ("other", 9)]
    requests = [AcquireRequest(name, "w", seconds) for name, seconds in (*asked, *asked)]
    sets = [
        AcquireSetRequest("other", "w", 2, DefaultSeconds(8)),
        AcquireSetRequest("pool", "w", 1),
    ]
    outcomes = any_storage.run_batch([*requests[:4], sets[0], *requests[4:], sets[1]])
    leases = [lease for each in outcomes for lease in getattr(each, "leases", [None])]
    assert all(not isinstance(each, Exception) for each in outcomes)
    granted = acquired(any_storage)
    told = sorted(
        (event.pool_name, event.selector, (event.expires_at - event.recorded_at).total_seconds())
        for event in granted
    )
    first = SelectorStrategy.FIRST_AVAILABLE
    assert told == sorted(
        [
            *[("pool", RR, 20), ("pool", RR, 9)] * 2,
            *[("other", first, 7), ("other", first, 9)],
            *[("other", first, 8)] * 2,
        ]
    )
    assert len(leases) >= len(outcomes)


def test_a_proxy_that_does_not_say_it_has_the_limit_of_its_pool(any_storage: AnyStorage) -> None:
    """Registered or imported; who says None means it, and what is there stays as it is."""
    pool = ProxyPool(name="pool")
    any_storage.save_pool(pool)
    facts: dict[str, Any] = {"port": 80, "protocol": "http", "pool_id": pool.id}
    before = Proxy(host="before.example", **facts)
    any_storage.save_proxy(before)
    any_storage.save_pool(pool.model_copy(update={"max_concurrency": 2}))
    unsaid = Proxy(host="unsaid.example", **facts)
    said = Proxy(host="said.example", max_concurrency=None, **facts)
    any_storage.add_proxies_bulk([unsaid, said])
    listed = Proxy(host="listed.example", **facts)
    any_storage.import_proxies(pool.id, [listed])
    limits = {
        str(proxy.host).split(".")[0]: proxy.max_concurrency
        for proxy in any_storage.list_proxies(str(pool.id))
    }
    assert limits == {"before": None, "unsaid": 2, "said": None, "listed": 2}
    count = len(list(any_storage.events()))
    any_storage.save_proxy(unsaid)
    assert len(list(any_storage.events())) == count
    read = any_storage.get_proxy(str(before.id)).model_copy(update={"country": "AR"})
    any_storage.save_proxy(read)
    assert any_storage.get_proxy(str(before.id)).max_concurrency is None


def test_who_waits_gets_what_the_pool_says(any_storage: AnyStorage) -> None:
    """A ticket has the pool's selector and duration, also one that takes turns."""
    filled(any_storage, 1, selector=RR, lease_seconds=20)
    manager = ProxyManager(any_storage)
    held = manager.acquire_proxy("pool")
    assert held is not None
    threading.Timer(0.3, manager.release_proxy, [held]).start()
    lease = manager.acquire_proxy("pool", "waiter", wait_seconds=20)
    assert seconds_of(lease) == 20
    assert [event.selector for event in acquired(any_storage)] == [RR, RR]


def test_callers_that_share_a_commit_get_what_their_pool_says(any_storage: AnyStorage) -> None:
    """Of many threads at once, each proxy is leased once before any is leased again."""
    filled(any_storage, 8, selector=LRU, lease_seconds=20)
    manager = ProxyManager(any_storage)
    for _ in range(3):
        with ThreadPoolExecutor(8) as threads:
            leases = [*threads.map(lambda _: manager.acquire_proxy("pool"), range(8))]
        assert {seconds_of(lease) for lease in leases} == {20}
        manager.release_proxies([lease for lease in leases if lease is not None])
    found = [event.proxy_id for event in acquired(any_storage)]
    assert all(len(set(found[start : start + 8])) == 8 for start in (0, 8, 16))


def test_callbacks_are_told_what_was_used(any_storage: AnyStorage) -> None:
    """The payload has the pool's selector, of a lease and of a miss."""
    filled(any_storage, 1, selector=LRU)
    manager = ProxyManager(any_storage)
    told: list[AcquireEventPayload] = []
    manager.register_acquire_callback(told.append)
    manager.acquire_proxy("pool")
    manager.acquire_proxy("pool")
    manager.acquire_proxies("pool", 1)
    manager.acquire_proxy("pool", selector=RR)
    manager.acquire_proxy("nowhere")
    first = SelectorStrategy.FIRST_AVAILABLE
    assert [payload.selector for payload in told] == [LRU, LRU, LRU, RR, first]


async def lease_of(storage: Any) -> Lease:
    """Lease as a worker of asyncio would, from a pool that says a selector and a duration."""
    pool = ProxyPool(name="pool", selector=RR, lease_seconds=20, max_concurrency=1)
    await storage.save_pool(pool)
    facts: dict[str, Any] = {"port": 80, "protocol": "http", "pool_id": pool.id}
    await storage.save_proxy(Proxy(host="h.example", status="active", **facts))
    manager = AsyncProxyManager(storage)
    async with manager.pool("pool", consumer="w").lease() as lease:
        assert await manager.acquire_proxy("pool") is None
    assert await storage.find_available_proxy("pool") is not None
    return lease


def test_asyncio_in_memory() -> None:
    """The same for tasks."""
    assert seconds_of(asyncio.run(lease_of(AsyncInMemoryStorage()))) == 20


def test_asyncio_in_postgres(database_url: str) -> None:
    """The same for tasks, in PostgreSQL."""

    async def work() -> Lease:
        engine = open_async_engine(database_url)
        storage = AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY])
        try:
            return await lease_of(storage)
        finally:
            await storage.close()

    assert seconds_of(asyncio.run(work())) == 20


@pytest.mark.parametrize("selector", ["least", "", 5])
def test_a_selector_that_there_is_not(any_storage: AnyStorage, selector: Any) -> None:
    """It is refused wherever one is given, and the error lists those that there are."""
    filled(any_storage)
    manager = ProxyManager(any_storage)
    calls = (
        lambda: manager.acquire_proxy("pool", selector=selector),
        lambda: manager.acquire_proxies("pool", 2, selector=selector),
        lambda: manager.pool("pool", selector=selector),
        lambda: any_storage.find_available_proxy("pool", None, selector),
        lambda: AcquireRequest("pool", "w", selector=selector),
    )
    for call in calls:
        with pytest.raises(InvalidInputError, match=r"one of first_available, .*weighted, not"):
            call()


def test_a_duration_of_the_default_class_is_a_number() -> None:
    """So that what was written for 0.11.0 can take it as one."""
    assert DefaultSeconds(300) == 300
    request = AcquireRequest("pool", "w")
    assert timedelta(seconds=request.duration_seconds) == timedelta(minutes=5)


@pytest.mark.parametrize("wrong", [{"lease_seconds": 0}, {"max_concurrency": 0}, {"selector": "x"}])
def test_a_pool_takes_no_default_that_makes_no_sense(wrong: dict[str, Any]) -> None:
    """It is refused before it is stored."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ProxyPool(name="pool", **wrong)
    storage = InMemoryStorage()
    pool = ProxyPool(name="pool")
    with pytest.raises(InvalidInputError):
        storage.save_pool(pool.model_copy(update=wrong))
