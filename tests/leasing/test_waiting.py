"""A caller who waits gets what becomes free, in turn, and is told when its time is over."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest

import pharox
import pharox.storage.memory.waiting
import pharox.storage.postgres.batch
from pharox import (
    AcquireEventPayload,
    ExpireEventPayload,
    InvalidInputError,
    Lease,
    MissReason,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    QueueFullError,
)
from pharox.events import AcquireMissed, LeaseAcquired
from pharox.models import HealthCheckResult, ProxyPool, utc_now
from pharox.storage.interface import IStorage
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, Broken, fill, proxies_of
from tests.leasing.test_contention import most_holders_at_once
from tests.ledger.following import until

LONG = 60.0


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers who wait."""
    with ThreadPoolExecutor(30) as threads:
        yield threads


@pytest.fixture
def manager(any_storage: AnyStorage) -> ProxyManager:
    """A manager of each storage in turn."""
    return ProxyManager(any_storage)


@pytest.fixture
def wait(manager: ProxyManager, threads: ThreadPoolExecutor) -> Callable[..., Future[Lease | None]]:
    """Return what has a caller wait, after it has its place."""

    def begin(consumer: str = "waiter", **options: object) -> Future[Lease | None]:
        before = waiting(manager.storage)
        options = {"wait_seconds": LONG, **options}
        waiter = threads.submit(manager.acquire_proxy, "pool", consumer, **options)  # type: ignore[arg-type]
        until(lambda: waiting(manager.storage) > before or waiter.done(), 10)
        return waiter

    return begin


def waiting(storage: IStorage) -> int:
    """Return how many callers have a place in the queue of the pool."""
    return sum(stats.waiting for stats in storage.queue_stats())


def lease_all(manager: ProxyManager, count: int, duration_seconds: int = 300) -> list[Lease]:
    """Register a pool and lease all of it."""
    fill(manager.storage, count, country="AR")
    return manager.acquire_proxies("pool", count, "holder", duration_seconds)


def test_a_released_proxy_goes_to_who_waits_longest(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Each release serves the next one, and none of the waits is a miss."""
    (held,) = lease_all(manager, 1)
    waiters = [wait() for _ in range(3)]
    for waiter in waiters:
        manager.release_proxy(held)
        lease = waiter.result(10)
        assert lease is not None
        assert lease.proxy.url.startswith("http://")
        held = lease
    events = list(manager.storage.events())  # type: ignore[attr-defined]
    assert [type(each) for each in events].count(AcquireMissed) == 0
    waits = [each.waited_ms for each in events if isinstance(each, LeaseAcquired)]
    assert waits[0] is None
    assert all(each is not None and each >= 0 for each in waits[1:])


def test_consumers_take_turns(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Who has many waiters does not starve who has one."""
    (held,) = lease_all(manager, 1)
    many = [wait("many") for _ in range(4)]
    one = wait("one")
    manager.release_proxy(held)
    first = many[0].result(10)
    assert first is not None
    manager.release_proxy(first)
    second = one.result(10)
    assert second is not None
    for waiter in many[1:]:
        manager.release_proxy(second)
        second = waiter.result(10)
        assert second is not None


def test_who_does_not_wait_overtakes_nobody_whom_the_proxy_fits(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """What fits nobody in the queue is anybody's."""
    held = lease_all(manager, 1)
    waiter = wait(filters=ProxyFilters(country="AR"))
    pool = manager.storage.get_pool(str(held[0].pool_id))
    manager.storage.add_proxies_bulk(proxies_of(pool, 1, "10.1", country="CL"))
    lease = manager.acquire_proxy("pool", "quick")
    assert lease is not None
    assert not waiter.done()
    manager.release_proxies(held)
    assert manager.acquire_proxy("pool", "quick") is None
    assert waiter.result(10) is not None


def test_a_wait_whose_time_is_over_is_one_miss(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """It says for how long, and no place is left."""
    lease_all(manager, 1)
    waiter = wait(wait_seconds=0.3, filters=ProxyFilters(country="AR"))
    assert waiter.result(10) is None
    (miss,) = (
        each
        for each in manager.storage.events()  # type: ignore[attr-defined]
        if isinstance(each, AcquireMissed)
    )
    assert (miss.consumer, miss.reason) == ("waiter", MissReason.AT_CAPACITY)
    assert miss.filters == {"country": "AR"}
    assert miss.waited_ms is not None
    assert miss.waited_ms > 0  # Less than the caller's time: it begins with the place in the queue.
    assert waiting(manager.storage) == 0


@pytest.mark.parametrize(
    ("pool", "filters", "reason"),
    [
        ("unknown", None, MissReason.UNKNOWN_POOL),
        ("empty", None, MissReason.EMPTY_POOL),
        ("pool", ProxyFilters(country="CL"), MissReason.NO_MATCH),
        ("pool", ProxyFilters(predicate=lambda _: False), MissReason.NO_MATCH),
    ],
)
def test_what_waiting_cannot_help_is_a_miss_at_once(
    manager: ProxyManager, pool: str, filters: ProxyFilters | None, reason: MissReason
) -> None:
    """An unknown or an empty pool, and filters that nothing matches."""
    lease_all(manager, 1)
    fill(manager.storage, 0, name="empty")
    begun = time.monotonic()
    request = AcquireRequest(pool, "w", filters=filters, wait_seconds=LONG)
    assert manager.storage.acquire_lease(request).miss_reason is reason
    assert time.monotonic() - begun < LONG / 2


def test_a_set_that_can_never_be_had_is_a_miss_at_once(manager: ProxyManager) -> None:
    """More proxies than the pool has."""
    lease_all(manager, 2)
    assert manager.acquire_proxies("pool", 3, wait_seconds=LONG) == []
    assert waiting(manager.storage) == 0


def test_a_set_is_not_starved(
    manager: ProxyManager,
    threads: ThreadPoolExecutor,
    wait: Callable[..., Future[Lease | None]],
) -> None:
    """What becomes free is kept for a set in front until it has enough."""
    held = lease_all(manager, 2)
    pair = threads.submit(manager.acquire_proxies, "pool", 2, "pair", wait_seconds=LONG)
    until(lambda: waiting(manager.storage) == 1, 10)
    single = wait()
    manager.release_proxy(held[0])
    assert manager.acquire_proxy("pool", "quick") is None
    assert not single.done()
    manager.release_proxy(held[1])
    leases = pair.result(10)
    assert len(leases) == 2
    manager.release_proxies(leases)
    assert single.result(10) is not None


def _register(storage: IStorage, pool: ProxyPool, _: Proxy) -> None:
    storage.save_proxy(proxies_of(pool, 1, "10.9")[0])


def _register_many(storage: IStorage, pool: ProxyPool, _: Proxy) -> None:
    storage.add_proxies_bulk(proxies_of(pool, 2, "10.9"))


def _import(storage: IStorage, pool: ProxyPool, _: Proxy) -> None:
    storage.import_proxies(pool.id, proxies_of(pool, 1, "10.9"))  # type: ignore[attr-defined]


def _allow_more(storage: IStorage, _: ProxyPool, proxy: Proxy) -> None:
    storage.change_proxy(proxy.model_copy(update={"max_concurrency": 2}))  # type: ignore[attr-defined]


def _unban(storage: IStorage, _: ProxyPool, banned: Proxy) -> None:
    storage.set_status(banned.id, ProxyStatus.ACTIVE)


def _find_healthy(storage: IStorage, _: ProxyPool, proxy: Proxy) -> None:
    result = HealthCheckResult(
        proxy_id=proxy.id,
        status=ProxyStatus.ACTIVE,
        latency_ms=3,
        protocol=proxy.protocol,
        checked_at=utc_now() + timedelta(seconds=1),
    )
    storage.record_health_checks([result])


def _let_slow_ones_be_leased(storage: IStorage, pool: ProxyPool, _: Proxy) -> None:
    storage.save_pool(pool.model_copy(update={"lease_slow": True}))


@pytest.mark.parametrize(
    ("status", "free"),
    [
        (ProxyStatus.ACTIVE, _register),
        (ProxyStatus.ACTIVE, _register_many),
        (ProxyStatus.ACTIVE, _import),
        (ProxyStatus.ACTIVE, _allow_more),
        (ProxyStatus.BANNED, _unban),
        (ProxyStatus.INACTIVE, _find_healthy),
        (ProxyStatus.SLOW, _let_slow_ones_be_leased),
    ],
)
def test_whatever_makes_a_proxy_free_serves_the_queue(
    manager: ProxyManager,
    wait: Callable[..., Future[Lease | None]],
    status: ProxyStatus,
    free: Callable[[IStorage, ProxyPool, Proxy], None],
) -> None:
    """A new proxy, more room, the end of a ban, a good check, another rule of the pool."""
    pool, (proxy,) = fill(manager.storage, 1, status=status)
    if status is ProxyStatus.ACTIVE:
        assert manager.acquire_proxy("pool", "holder") is not None
    waiter = wait()
    assert not waiter.done()
    free(manager.storage, pool, proxy)
    assert waiter.result(10) is not None
    assert manager.storage.verify() == []  # type: ignore[attr-defined]


def test_an_expiry_is_noticed_where_nobody_else_acts(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Those who wait take back what ran out."""
    lease_all(manager, 1, duration_seconds=1)
    lease = wait().result(10)
    assert lease is not None
    events = list(manager.storage.events())  # type: ignore[attr-defined]
    assert [each.type for each in events[-2:]] == ["LeaseExpired", "LeaseAcquired"]


def test_a_predicate_is_asked_when_something_is_free(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """It is not granted what its predicate refuses, and keeps it from nobody."""
    held = lease_all(manager, 2)
    storage = manager.storage
    wanted = storage.get_proxy(str(held[1].proxy_id)).host
    waiter = wait(filters=ProxyFilters(predicate=lambda proxy: proxy.host == wanted))
    manager.release_proxy(held[0])
    lease = manager.acquire_proxy("pool", "quick")
    assert lease is not None
    assert not waiter.done()
    manager.release_proxy(held[1])
    found = waiter.result(10)
    assert found is not None
    assert found.proxy_id == held[1].proxy_id
    assert waiting(storage) == 0


def test_a_lease_that_was_waited_for_counts_from_its_grant(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Waiting takes nothing from its duration, and it can be kept alive."""
    (held,) = lease_all(manager, 1)
    waiter = wait(duration_seconds=2, keep_alive=True)
    time.sleep(2.2)
    manager.release_proxy(held)
    lease = waiter.result(10)
    assert lease is not None
    assert not lease.is_lost
    time.sleep(2.2)
    assert not lease.is_lost
    manager.release_proxy(lease)


def test_callbacks_are_told_of_what_was_waited_for(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """With the statistics after it, however it was granted."""
    (held,) = lease_all(manager, 1)
    told: list[AcquireEventPayload] = []
    manager.register_acquire_callback(told.append)
    waiter = wait()
    ProxyManager(manager.storage).release_proxy(held)
    lease = waiter.result(10)
    (payload,) = told
    assert payload.lease is lease
    assert payload.pool_stats is not None
    assert payload.pool_stats.leased_proxies == 1


def test_the_same_id_is_granted_once(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """A caller may choose the id of the lease that it waits for, and ask for it again."""
    (held,) = lease_all(manager, 1)
    chosen = pharox.new_lease_id()
    waiter = wait(lease_id=chosen)
    manager.release_proxy(held)
    lease = waiter.result(10)
    assert lease is not None
    assert lease.id == chosen
    again = manager.acquire_proxy("pool", "waiter", lease_id=chosen, wait_seconds=LONG)
    assert again == lease


def test_a_full_queue_says_so(
    manager: ProxyManager,
    wait: Callable[..., Future[Lease | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is recorded, and those in the queue go on."""
    for module in (pharox.storage.memory.waiting, pharox.storage.postgres.batch):
        monkeypatch.setattr(module, "MAX_WAITING", 1)
    (held,) = lease_all(manager, 1)
    waiter = wait()
    with pytest.raises(QueueFullError, match="wait for a proxy of pool 'pool'"):
        manager.acquire_proxy("pool", wait_seconds=LONG)
    manager.release_proxy(held)
    assert waiter.result(10) is not None


def test_a_set_that_takes_back_what_ran_out_waits_for_the_rest(
    manager: ProxyManager, threads: ThreadPoolExecutor
) -> None:
    """What it took back meanwhile is told to its manager's callbacks, once."""
    fill(manager.storage, 2)
    overdue = manager.acquire_proxy("pool", "late", 1)
    held = manager.acquire_proxy("pool", "holder")
    assert overdue is not None
    assert held is not None
    told: list[ExpireEventPayload] = []
    manager.register_expire_callback(told.append)
    time.sleep(1.1)
    pair = threads.submit(manager.acquire_proxies, "pool", 2, "pair", wait_seconds=LONG)
    until(lambda: waiting(manager.storage) == 1, 10)
    manager.release_proxy(held)
    assert len(pair.result(10)) == 2
    assert [payload.lease.id for payload in told] == [overdue.id]
    assert manager.storage.verify() == []  # type: ignore[attr-defined]


def test_two_who_wait_under_one_id_get_one_lease(
    manager: ProxyManager, threads: ThreadPoolExecutor
) -> None:
    """As two who ask under it do."""
    held = lease_all(manager, 2)
    chosen = pharox.new_lease_id()
    options = {"lease_id": chosen, "wait_seconds": LONG}
    waiters = [threads.submit(manager.acquire_proxy, "pool", "w", **options) for _ in range(2)]  # type: ignore[arg-type]
    until(lambda: waiting(manager.storage) > 0, 10)
    time.sleep(0.2)
    manager.release_proxies(held)
    leases = [waiter.result(15) for waiter in waiters]
    assert [lease and lease.id for lease in leases] == [chosen, chosen]
    grants = [e for e in manager.storage.events() if isinstance(e, LeaseAcquired)]  # type: ignore[attr-defined]
    assert len(grants) == 3
    assert manager.storage.verify() == []  # type: ignore[attr-defined]


def test_a_predicate_that_raises_is_told_to_its_caller_alone(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Nobody else's command fails because of it."""
    held = lease_all(manager, 1)
    raises = False

    def predicate(_: Proxy) -> bool:
        if raises:
            raise Broken
        return True

    broken = wait("broken", filters=ProxyFilters(predicate=predicate))
    raises = True
    other = wait("other")
    manager.release_proxies(held)
    with pytest.raises(Broken):
        broken.result(10)
    assert other.result(10) is not None
    assert waiting(manager.storage) == 0


def test_a_drained_proxy_leaves_while_somebody_waits(
    manager: ProxyManager, wait: Callable[..., Future[Lease | None]]
) -> None:
    """Whoever takes back its last lease."""
    lease_all(manager, 2, duration_seconds=1)
    pool = manager.storage.list_pools()[0]
    drained, kept = manager.storage.list_proxies(str(pool.id))
    manager.storage.drain_proxy(drained.id)
    lease = wait().result(10)
    assert lease is not None
    assert lease.proxy_id == kept.id
    assert [each.id for each in manager.storage.list_proxies(str(pool.id))] == [kept.id]
    assert manager.storage.verify() == []  # type: ignore[attr-defined]


def test_a_set_that_a_ban_keeps_from_enough_keeps_nothing(
    manager: ProxyManager, threads: ThreadPoolExecutor
) -> None:
    """It waits for the end of the ban, and others go on meanwhile."""
    _, proxies = fill(manager.storage, 3)
    manager.storage.set_status(proxies[0].id, ProxyStatus.BANNED)
    three = threads.submit(manager.acquire_proxies, "pool", 3, "three", wait_seconds=LONG)
    until(lambda: waiting(manager.storage) == 1, 10)
    lease = manager.acquire_proxy("pool", "quick")
    assert lease is not None
    manager.storage.set_status(proxies[0].id, ProxyStatus.ACTIVE)
    assert manager.acquire_proxy("pool", "quick") is None
    manager.release_proxy(lease)
    assert len(three.result(10)) == 3


@pytest.mark.parametrize("seconds", [-1, float("nan"), "1", True])
def test_a_wait_must_be_a_number_of_seconds(manager: ProxyManager, seconds: float) -> None:
    """Nothing else is taken, and the error names the option."""
    fill(manager.storage, 1)
    with pytest.raises(InvalidInputError, match="wait_seconds"):
        manager.acquire_proxy("pool", wait_seconds=seconds)


def test_a_command_of_a_batch_cannot_wait(any_storage: AnyStorage) -> None:
    """A batch is one commit."""
    with pytest.raises(InvalidInputError, match="cannot wait"):
        any_storage.run_batch([AcquireRequest("pool", "w", wait_seconds=1)])


def test_a_wait_for_nothing_does_not_wait(manager: ProxyManager) -> None:
    """Zero seconds are as none."""
    lease_all(manager, 1)
    assert manager.acquire_proxy("pool", wait_seconds=0) is None
    assert waiting(manager.storage) == 0


def test_workers_share_proxies_evenly(manager: ProxyManager) -> None:
    """While somebody waits nobody else has many turns; nobody misses; no proxy is held twice."""
    fill(manager.storage, 2)
    workers, turns = 8, 6
    start = threading.Barrier(workers)

    def work(name: str) -> None:
        start.wait()
        for _ in range(turns):
            lease = manager.acquire_proxy("pool", name, wait_seconds=LONG)
            assert lease is not None
            manager.release_proxy(lease)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, [f"w{n}" for n in range(workers)]))
    events = list(manager.storage.events())  # type: ignore[attr-defined]
    assert sum(isinstance(each, AcquireMissed) for each in events) == 0
    grants = [each for each in events if isinstance(each, LeaseAcquired)]
    assert len(grants) == workers * turns
    for grant in grants:
        came_at = grant.recorded_at - timedelta(milliseconds=grant.waited_ms or 0)
        meanwhile = Counter(
            each.consumer for each in grants if came_at < each.recorded_at < grant.recorded_at
        )
        assert max(meanwhile.values(), default=0) < turns / 2
    assert set(most_holders_at_once(events).values()) == {1}
    assert manager.storage.verify() == []  # type: ignore[attr-defined]


def test_a_storage_that_cannot_wait_says_so(any_storage: AnyStorage) -> None:
    """An adapter for 0.11.0 knows nothing of it."""

    class Older(type(any_storage)):  # type: ignore[misc]
        can_wait = False

    older = Older.__new__(Older)
    older.__dict__.update(any_storage.__dict__)
    with pytest.raises(InvalidInputError, match="Older cannot wait"):
        ProxyManager(older).acquire_proxy("pool", wait_seconds=1)
