"""A ban may end by itself: the proxy is then what it was before, and the log says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyNotFoundError,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.events import BAN_OVER, ProxyChanged
from pharox.history import audit
from pharox.history.replay import Replay
from pharox.ledger.rebuild import rebuild
from pharox.models import ProxyPool
from pharox.storage.async_interface import IAsyncStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, fill, types_of
from tests.database.test_fencing import application
from tests.ledger.following import until

ACTIVE, SLOW, BANNED = ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.BANNED


def banned(storage: AnyStorage, proxy: Proxy, seconds: float = 60) -> Proxy:
    """Ban a proxy for a time."""
    return storage.set_status(proxy.id, BANNED, reason="429s", for_seconds=seconds)


def status_of(storage: AnyStorage, proxy: Proxy) -> ProxyStatus:
    return storage.get_proxy(str(proxy.id)).status


def last_change(storage: AnyStorage) -> ProxyChanged:
    *_, change = (event for event in storage.events() if isinstance(event, ProxyChanged))
    return change


ASKS: dict[str, Callable[[ProxyManager, Proxy], object]] = {
    "one": lambda manager, _: manager.acquire_proxy("pool"),
    "set": lambda manager, _: manager.acquire_proxies("pool", 1) or None,
    "filters": lambda manager, _: manager.acquire_proxy("pool", filters=ProxyFilters(country="AR")),
    "predicate": lambda manager, _: manager.acquire_proxy(
        "pool", filters=ProxyFilters(predicate=lambda proxy: proxy.status is ACTIVE)
    ),
    "given": lambda manager, proxy: manager.storage.create_lease(proxy, "worker", 60),
    "batch": lambda manager, _: getattr(
        manager.storage.run_batch([AcquireRequest("pool", "worker")])[0], "lease", None
    ),
    "target": lambda manager, _: manager.acquire_proxy("pool", target="shop.example"),
    "round_robin": lambda manager, _: manager.acquire_proxy(
        "pool", selector=SelectorStrategy.ROUND_ROBIN
    ),
}


@pytest.mark.parametrize("how", ASKS)
def test_who_asks_when_it_is_over_gets_the_proxy(any_storage: AnyStorage, how: str) -> None:
    """Not a moment before. The log has the end, dated when it was noticed, with its reason."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    _, (proxy,) = fill(any_storage, 1, country="AR")
    any_storage.ensure_consumer("worker")
    any_storage.ensure_consumer("default")
    found = banned(any_storage, proxy)
    assert found.banned_until == clock.now + timedelta(seconds=60)
    assert any_storage.get_proxy(str(proxy.id)) == found
    clock.advance(59.9)
    assert manager.acquire_proxy("pool") is None
    clock.advance(0.2)
    assert ASKS[how](manager, proxy) is not None
    over = last_change(any_storage)
    assert (over.before.status, over.after.status) == (BANNED, ACTIVE)
    assert (over.reason, over.until, over.recorded_at) == (BAN_OVER, None, clock.now)
    assert types_of(any_storage)[-2:] == ["ProxyChanged", "LeaseAcquired"]
    assert any_storage.get_proxy(str(proxy.id)).banned_until is None
    assert any_storage.verify() == []


def test_a_proxy_that_is_free_besides_is_not_preferred(any_storage: AnyStorage) -> None:
    """The end is noticed by whoever asks, also if something else is free."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    _, (first, second) = fill(any_storage, 2)
    manager.release_proxy(manager.acquire_proxies("pool", 1)[0])
    banned(any_storage, first)
    clock.advance(61)
    assert manager.acquire_proxy("pool", selector=SelectorStrategy.LEAST_USED) is not None
    assert {status_of(any_storage, each) for each in (first, second)} == {ACTIVE}


def test_clean_ups_and_keepers_notice_it(any_storage: AnyStorage) -> None:
    """They know when the next one is over, as they do of leases."""
    clock = clock_of(any_storage)
    _, (proxy, other) = fill(any_storage, 2)
    banned(any_storage, proxy, 60)
    banned(any_storage, other, 40)
    assert any_storage.seconds_to_next_expiry() == pytest.approx(40)
    assert any_storage.seconds_to_next_expiry("pool") == pytest.approx(40)
    clock.advance(50)
    assert any_storage.seconds_to_next_expiry() == 0
    assert any_storage.cleanup_expired_leases() == 0
    assert (status_of(any_storage, proxy), status_of(any_storage, other)) == (BANNED, ACTIVE)
    assert any_storage.seconds_to_next_expiry() == pytest.approx(10)
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert stats.available_proxies == 1


@pytest.mark.parametrize("wait", [0.4])
def test_who_waits_is_served_when_it_ends(any_storage: AnyStorage, wait: float) -> None:
    """By the end itself: nobody releases anything meanwhile."""
    manager = ProxyManager(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        banned(any_storage, proxy, wait)
        waiter = threads.submit(manager.acquire_proxy, "pool", wait_seconds=30)
        until(waiter.done, 20)
        lease = waiter.result()
    assert lease is not None
    assert lease.proxy_id == proxy.id
    assert wait <= time.monotonic() - begun < 10


@pytest.mark.parametrize("before", [SLOW, ProxyStatus.INACTIVE])
def test_it_returns_to_what_it_was(any_storage: AnyStorage, before: ProxyStatus) -> None:
    """Longer or shorter bans in between do not change that."""
    clock = clock_of(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    any_storage.set_status(proxy.id, before)
    for seconds in (60, 600, 5):
        assert banned(any_storage, proxy, seconds).banned_until == clock.now + timedelta(
            seconds=seconds
        )
        assert last_change(any_storage).returns_to is before
    clock.advance(6)
    any_storage.cleanup_expired_leases()
    assert status_of(any_storage, proxy) is before


def test_a_ban_without_an_end_gets_one(any_storage: AnyStorage) -> None:
    """Nobody knows what was before: it is ACTIVE then. An end can be taken away again."""
    clock = clock_of(any_storage)
    _, (proxy, other) = fill(any_storage, 2)
    for each in (proxy, other):
        any_storage.set_status(each.id, BANNED)
        banned(any_storage, each)
    assert any_storage.set_status(other.id, BANNED).banned_until is None
    clock.advance(3600)
    any_storage.cleanup_expired_leases()
    assert (status_of(any_storage, proxy), status_of(any_storage, other)) == (ACTIVE, BANNED)


def test_what_a_person_decides_in_between_holds(any_storage: AnyStorage) -> None:
    """A lift, another status or draining; another description leaves the end as it is."""
    clock = clock_of(any_storage)
    _, proxies = fill(any_storage, 4)
    held = any_storage.create_lease(proxies[2], "holder", 7200)
    for proxy in proxies:
        banned(any_storage, proxy)
    any_storage.set_status(proxies[0].id, ACTIVE)
    any_storage.set_status(proxies[1].id, ProxyStatus.INACTIVE)
    any_storage.drain_proxy(proxies[2].id)
    changed = any_storage.get_proxy(str(proxies[3].id)).model_copy(update={"country": "CL"})
    any_storage.save_proxy(changed)
    any_storage.change_proxy(changed.model_copy(update={"city": "Arica"}))
    banned_until = [any_storage.get_proxy(str(each.id)).banned_until for each in proxies]
    assert banned_until == [None, None, None, clock.now + timedelta(seconds=60)]
    before = len(types_of(any_storage))
    clock.advance(61)
    any_storage.cleanup_expired_leases()
    assert types_of(any_storage)[before:] == ["ProxyChanged"]
    assert status_of(any_storage, proxies[3]) is ACTIVE
    assert any_storage.get_proxy(str(proxies[3].id)).city == "Arica"
    any_storage.release_lease(held)
    with pytest.raises(ProxyNotFoundError):
        any_storage.get_proxy(str(proxies[2].id))
    assert any_storage.verify() == []


def test_no_check_lifts_or_ends_it(any_storage: AnyStorage) -> None:
    """Neither before nor after: the end is recorded by whoever leases or cleans up."""
    clock = clock_of(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    banned(any_storage, proxy)
    for _ in range(2):
        any_storage.apply_health_check_result(checked(proxy, checked_at=clock.now))
        assert status_of(any_storage, proxy) is BANNED
        clock.advance(61)
    any_storage.cleanup_expired_leases()
    assert status_of(any_storage, proxy) is ACTIVE


def test_its_credentials_stay(any_storage: AnyStorage) -> None:
    """The event has their id, as any change of the proxy has."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    secret = {"user": "u", "password": "p"}
    any_storage.save_proxy(Proxy(**{**proxy.model_dump(), "credentials": secret}))
    banned(any_storage, proxy)
    clock.advance(61)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    assert "u:p@" in lease.proxy.url


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12, "60", True])
def test_a_time_must_make_sense(any_storage: AnyStorage, seconds: object) -> None:
    """Nothing is recorded otherwise, nor for a status that does not end."""
    _, (proxy,) = fill(any_storage, 1)
    before = types_of(any_storage)
    with pytest.raises(InvalidInputError):
        any_storage.set_status(proxy.id, BANNED, for_seconds=seconds)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        any_storage.set_status(proxy.id, ACTIVE, for_seconds=5)
    with pytest.raises(ProxyNotFoundError):
        any_storage.set_status(uuid4(), BANNED, for_seconds=5)
    assert types_of(any_storage) == before


def test_several_end_at_once_in_several_pools(any_storage: AnyStorage) -> None:
    """Only in the pools that are asked; a clean-up ends all others."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    pools = [fill(any_storage, 3, name=name) for name in ("pool", "other")]
    for _, proxies in pools:
        for proxy in proxies:
            banned(any_storage, proxy)
    clock.advance(61)
    assert len(manager.acquire_proxies("pool", 3)) == 3
    assert {status_of(any_storage, each) for each in pools[0][1]} == {ACTIVE}
    assert {status_of(any_storage, each) for each in pools[1][1]} == {BANNED}
    any_storage.cleanup_expired_leases()
    assert {status_of(any_storage, each) for each in pools[1][1]} == {ACTIVE}
    assert any_storage.verify() == []


def test_rebuild_and_replay_know_the_end(postgres: PostgresStorage) -> None:
    """A moment in between shows the ban with its end; so does the story of the proxy."""
    clock = clock_of(postgres)
    _, (proxy,) = fill(postgres, 1)
    found = banned(postgres, proxy)
    in_between = postgres.seal()
    clock.advance(61)
    postgres.cleanup_expired_leases()
    assert rebuild(postgres).findings == ()
    (row,) = Replay.at(postgres, "pool", in_between).moment().proxies
    assert row.availability.banned_until == found.banned_until
    (row,) = Replay.at(postgres, "pool", postgres.seal()).moment().proxies
    assert (row.availability.status, row.availability.banned_until) == ("active", None)
    events = [entry.event for entry in audit.of_proxy(postgres, proxy.id).entries]
    assert [event.type for event in events][-2:] == ["ProxyChanged", "ProxyChanged"]


def test_a_miss_is_true_while_somebody_else_ends_it(
    postgres: PostgresStorage, database_url: str
) -> None:
    """Who has the proxy locked may be ending the ban: one waits, and is not told a miss."""
    clock, manager = clock_of(postgres), ProxyManager(postgres)
    _, (proxy,) = fill(postgres, 1)
    banned(postgres, proxy)
    clock.advance(61)
    with ThreadPoolExecutor(1) as threads, application(database_url) as other:
        other.execute("SELECT FROM pharox.available_proxies FOR UPDATE")
        waiter = threads.submit(manager.acquire_proxy, "pool")
        time.sleep(0.3)
        assert not waiter.done()
        other.rollback()
        assert waiter.result(10) is not None
    assert "AcquireMissed" not in types_of(postgres)


def test_tasks_ban_for_a_time_too() -> None:
    """``await`` makes no difference."""

    async def ban() -> None:
        storage = AsyncInMemoryStorage()
        pool = ProxyPool(name="pool")
        await storage.save_pool(pool)
        proxy = Proxy(host="h.example", port=1, protocol="http", pool_id=pool.id)
        await storage.save_proxy(proxy)
        found = await storage.set_status(proxy.id, BANNED, for_seconds=60)
        assert found.banned_until is not None

    asyncio.run(ban())


def test_other_storages_say_that_they_cannot() -> None:
    """A ban that would never end is not taken for one that does."""
    storage, changes = InMemoryStorage(), {"status": BANNED, "for_seconds": 60.0}
    _, (proxy,) = fill(storage, 1)
    with pytest.raises(InvalidInputError, match="cannot end a ban"):
        IStorage.set_status(storage, proxy.id, **changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="cannot end a ban"):
        asyncio.run(
            IAsyncStorage.set_status(AsyncInMemoryStorage(), proxy.id, **changes)  # type: ignore[arg-type]
        )
