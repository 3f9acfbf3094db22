"""A request with a fallback tries several pools in order, and gets one lease or one miss."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from pharox import (
    AsyncProxyManager,
    InvalidInputError,
    Lease,
    MissReason,
    Pace,
    PoolLimits,
    PoolMissed,
    PrometheusMetricsRecorder,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    Sticky,
    new_lease_id,
)
from pharox.errors import ConflictError
from pharox.events import AcquireMissed, LeaseAcquired
from pharox.history.describing import describe
from pharox.models import DefaultSeconds
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest, ReleaseRequest
from tests.conftest import AnyStorage, clock_of, fill, for_tasks, ledger, threads

FIRST, SECOND = "residential", "datacenter"


def two_pools(storage: AnyStorage, first: int = 1, second: int = 1) -> None:
    """Register both pools, with so many exclusive proxies."""
    fill(storage, first, name=FIRST)
    fill(storage, second, name=SECOND)


def acquired(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy of the first pool, else of the second."""
    asked = {"fallback": [SECOND], **options}
    lease = storage.acquire_lease(AcquireRequest(FIRST, "w", **asked)).lease
    assert lease is not None
    return lease


def asked_of(storage: AnyStorage) -> list[LeaseAcquired | AcquireMissed]:
    """Return the events of acquisitions."""
    kinds = LeaseAcquired | AcquireMissed
    return [event for event in storage.events() if isinstance(event, kinds)]


class TestOrder:
    def test_the_first_pool_that_has_one_grants_it(self, any_storage: AnyStorage) -> None:
        """Its event says why each pool before it had none, and no miss is recorded for those."""
        two_pools(any_storage)
        assert acquired(any_storage).pool_name == FIRST
        assert acquired(any_storage).pool_name == SECOND
        first, second = asked_of(any_storage)
        assert isinstance(first, LeaseAcquired)
        assert isinstance(second, LeaseAcquired)
        assert first.fallback_from == ()
        (missed,) = second.fallback_from
        assert missed.pool_id == first.pool_id
        assert (missed.pool_name, missed.reason) == (FIRST, MissReason.AT_CAPACITY)

    def test_one_miss_says_why_each_pool_had_none(self, any_storage: AnyStorage) -> None:
        """It is of the first pool; the error names all of them, and when a lease runs out."""
        two_pools(any_storage, second=0)
        acquired(any_storage)
        handle = ProxyManager(any_storage).pool(FIRST, fallback=[SECOND], wait_seconds=None)
        with (
            pytest.raises(
                ProxyUnavailableError, match=r"Pool 'datacenter' .*: empty_pool"
            ) as caught,
            handle.lease(),
        ):
            pass
        assert caught.value.reason == "at_capacity"
        assert caught.value.retry_after_seconds is not None
        _, miss = asked_of(any_storage)
        assert isinstance(miss, AcquireMissed)
        assert (miss.pool_name, miss.reason) == (FIRST, MissReason.AT_CAPACITY)
        assert [(each.pool_name, each.reason) for each in miss.fallback] == [
            (SECOND, MissReason.EMPTY_POOL)
        ]

    def test_any_reason_makes_it_try_the_next(self, any_storage: AnyStorage) -> None:
        """No proxy that fits, none that is healthy, one that rests for the target."""
        two_pools(any_storage)
        other = ProxyFilters(country="DE")
        storage = any_storage
        found = storage.acquire_lease(AcquireRequest(FIRST, "w", filters=other, fallback=[SECOND]))
        assert [each.reason for each in found.missed_in] == [MissReason.NO_MATCH] * 2
        (proxy,) = storage.list_proxies(str(storage.get_pool_by_name(FIRST).id))  # type: ignore[union-attr]
        storage.set_status(proxy.id, ProxyStatus.BANNED)
        found = storage.acquire_lease(AcquireRequest(FIRST, "w", fallback=[SECOND]))
        assert found.lease is not None
        assert found.lease.pool_name == SECOND
        assert [each.reason for each in found.missed_in] == [MissReason.NONE_HEALTHY]

    def test_defaults_are_of_the_pool_that_granted(self, any_storage: AnyStorage) -> None:
        """Its selector, and how long a lease of it lasts."""
        two_pools(any_storage, 0, 1)
        pool = any_storage.get_pool_by_name(SECOND)
        assert pool is not None
        defaults = {"selector": SelectorStrategy.LEAST_USED, "lease_seconds": 77}
        any_storage.save_pool(pool.model_copy(update=defaults))
        lease = acquired(any_storage, duration_seconds=DefaultSeconds(300))
        assert (lease.expires_at - lease.acquired_at).total_seconds() == 77
        assert asked_of(any_storage)[-1].selector is SelectorStrategy.LEAST_USED

    def test_a_set_is_of_one_pool(self, any_storage: AnyStorage) -> None:
        """The first that has enough; a few of each would be no set."""
        two_pools(any_storage, 1, 3)
        request = AcquireSetRequest(FIRST, "w", 3, at_least=2, fallback=[SECOND])
        found = any_storage.acquire_set(request)
        assert [lease.pool_name for lease in found.leases] == [SECOND] * 3
        assert [each.reason for each in found.missed_in] == [MissReason.TOO_FEW]
        missed = any_storage.acquire_set(request)
        assert missed.miss_reason is MissReason.TOO_FEW
        assert missed.free == 1

    def test_a_batch_may_have_some(self, any_storage: AnyStorage) -> None:
        """Releases come first; each request gets its own outcome."""
        two_pools(any_storage)
        held = acquired(any_storage)
        request = AcquireRequest(FIRST, "w", fallback=[SECOND])
        outcomes: Any = any_storage.run_batch([request, ReleaseRequest(held), request, request])
        names = [each.lease and each.lease.pool_name for each in (outcomes[0], *outcomes[2:])]
        assert names == [FIRST, SECOND, None]

    def test_an_id_of_ones_own_is_granted_once(self, any_storage: AnyStorage) -> None:
        """In whichever of the pools that was; another consumer does not get it."""
        two_pools(any_storage)
        blocking = acquired(any_storage)
        own = new_lease_id()
        first = acquired(any_storage, lease_id=own)
        any_storage.return_lease(blocking)
        again = any_storage.acquire_lease(
            AcquireRequest(FIRST, "w", lease_id=own, fallback=[SECOND])
        )
        assert again.lease is not None
        assert (again.lease.id, again.lease.pool_name, again.is_new) == (own, SECOND, False)
        assert first.proxy_id == again.lease.proxy_id
        with pytest.raises(ConflictError):
            any_storage.acquire_lease(AcquireRequest(FIRST, "x", lease_id=own, fallback=[SECOND]))

    def test_a_predicate_is_asked_in_each_pool(self, any_storage: AnyStorage) -> None:
        """The second pool grants what no proxy of the first fits, and its event says so."""
        two_pools(any_storage, 2, 2)
        wanted = any_storage.list_proxies(str(any_storage.get_pool_by_name(SECOND).id))[1]  # type: ignore[union-attr]
        fits = ProxyFilters(predicate=lambda proxy: proxy.id == wanted.id)
        assert acquired(any_storage, filters=fits).proxy_id == wanted.id
        missed = any_storage.acquire_lease(
            AcquireRequest(FIRST, "w", filters=fits, fallback=[SECOND])
        )
        granted, miss = asked_of(any_storage)
        assert isinstance(granted, LeaseAcquired)
        assert [each.reason for each in granted.fallback_from] == [MissReason.NO_MATCH]
        assert isinstance(miss, AcquireMissed)
        assert [each.reason for each in miss.fallback] == [MissReason.AT_CAPACITY]
        assert missed.miss_reason is miss.reason is MissReason.NO_MATCH


class TestInput:
    def test_an_unknown_pool_is_a_miss_of_its_own(self, any_storage: AnyStorage) -> None:
        """Wherever it is named, at once: a misspelled fallback would else be found too late."""
        two_pools(any_storage)
        manager = ProxyManager(any_storage)
        for first, others in ((FIRST, ["data-center"]), ("data-center", [FIRST])):
            handle = manager.pool(first, fallback=others, wait_seconds=5)
            with (
                pytest.raises(ProxyUnavailableError, match="no pool 'data-center'"),
                handle.lease(),
            ):
                pass
        assert [event.pool_name for event in asked_of(any_storage)] == ["data-center"] * 2

    @pytest.mark.parametrize(
        "fallback", [SECOND, [FIRST], [SECOND, SECOND], [""], [7], 7, [f"p{n}" for n in range(11)]]
    )
    def test_what_is_no_fallback_is_refused(self, storage: PostgresStorage, fallback: Any) -> None:
        """A name alone, a pool twice, no name at all, too many."""
        two_pools(storage)
        with pytest.raises(InvalidInputError):
            ProxyManager(storage).acquire_proxy(FIRST, fallback=fallback)
        with pytest.raises(InvalidInputError):
            ProxyManager(storage).pool(FIRST, fallback=fallback)
        assert asked_of(storage) == []

    def test_a_storage_that_cannot_says_so(self, any_storage: AnyStorage) -> None:
        """An adapter for 0.11.0's interface would else lease of the first pool only."""
        any_storage.can_fall_back = False  # type: ignore[misc]
        with pytest.raises(InvalidInputError, match="cannot fall back"):
            ProxyManager(any_storage).acquire_proxy(FIRST, fallback=[SECOND])


class TestSessions:
    def test_the_pool_of_a_binding_comes_first(self, any_storage: AnyStorage) -> None:
        """An account that was bound in the second pool stays there when the first has one again."""
        two_pools(any_storage)
        blocking = acquired(any_storage)
        bound = acquired(any_storage, sticky=Sticky("a"))
        any_storage.return_lease(bound)
        any_storage.return_lease(blocking)
        again = acquired(any_storage, sticky=Sticky("a"))
        assert (again.pool_name, again.proxy_id) == (SECOND, bound.proxy_id)

    def test_elsewhere_it_is_lent_and_not_bound(self, any_storage: AnyStorage) -> None:
        """While its proxy is leased; with "require" it gets none."""
        two_pools(any_storage)
        acquired(any_storage, sticky=Sticky("a"))
        required = Sticky("a", policy="require")
        request = AcquireRequest(FIRST, "w", sticky=required, fallback=[SECOND])
        assert any_storage.acquire_lease(request).miss_reason is MissReason.SESSION_BUSY
        assert acquired(any_storage, sticky=Sticky("a")).pool_name == SECOND
        assert [each.pool_name for each in any_storage.list_sessions()] == [FIRST]


class TestWaiting:
    @pytest.mark.parametrize("freed", [FIRST, SECOND])
    def test_what_becomes_free_in_any_pool_is_had(
        self, any_storage: AnyStorage, freed: str
    ) -> None:
        """At once, and as one lease; no ticket is left in any queue."""
        two_pools(any_storage)
        held = {lease.pool_name: lease for lease in (acquired(any_storage), acquired(any_storage))}

        def work(number: int) -> None:
            if number:
                assert acquired(any_storage, wait_seconds=30).pool_name == freed
                return
            _until_waited_for(any_storage)
            any_storage.return_lease(held[freed])

        begun = time.monotonic()
        threads(2, work)
        assert time.monotonic() - begun < 25
        assert any_storage.queue_stats() == []
        event = asked_of(any_storage)[-1]
        assert isinstance(event, LeaseAcquired)
        assert event.waited_ms is not None

    def test_both_at_once_are_one_lease(self, any_storage: AnyStorage) -> None:
        """The other stays free."""
        two_pools(any_storage)
        held = [acquired(any_storage), acquired(any_storage)]

        def work(number: int) -> None:
            if number:
                assert acquired(any_storage, wait_seconds=30).pool_name == FIRST
                return
            _until_waited_for(any_storage)
            any_storage.run_batch([ReleaseRequest(lease) for lease in held])

        threads(2, work)
        assert len(asked_of(any_storage)) == 3
        assert acquired(any_storage).pool_name == SECOND

    def test_a_wait_that_ends_is_one_miss(self, any_storage: AnyStorage) -> None:
        """With the reasons of all pools, and it leaves no ticket."""
        two_pools(any_storage, 1, 1)
        acquired(any_storage)
        acquired(any_storage)
        request = AcquireRequest(FIRST, "w", fallback=[SECOND], wait_seconds=0.1)
        missed = any_storage.acquire_lease(request)
        assert missed.waited_ms is not None
        assert [each.pool_name for each in missed.missed_in] == [FIRST, SECOND]
        assert any_storage.queue_stats() == []
        assert [event.type for event in asked_of(any_storage)][2:] == ["AcquireMissed"]

    def test_a_predicate_is_waited_for(self, any_storage: AnyStorage) -> None:
        """In all pools, too."""
        two_pools(any_storage)
        acquired(any_storage)
        held = acquired(any_storage)
        fits = ProxyFilters(predicate=lambda proxy: proxy.id == held.proxy_id)

        def work(number: int) -> None:
            if number:
                assert acquired(any_storage, filters=fits, wait_seconds=30).pool_name == SECOND
                return
            _until_waited_for(any_storage)
            any_storage.return_lease(held)

        threads(2, work)
        assert any_storage.queue_stats() == []

    def test_a_task_that_is_cancelled_gives_up_all_places(self, any_storage: AnyStorage) -> None:
        """And holds nothing."""
        two_pools(any_storage)
        acquired(any_storage)
        acquired(any_storage)

        async def main() -> None:
            storage = for_tasks(any_storage)
            manager = AsyncProxyManager(storage)
            asking = asyncio.create_task(
                manager.acquire_proxy(FIRST, "w", fallback=[SECOND], wait_seconds=30)
            )
            while len(await storage.queue_stats()) < 2:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert await storage.queue_stats() == []
            close = getattr(storage, "close", None)
            if close is not None:
                await close()

        asyncio.run(main())
        assert len(asked_of(any_storage)) == 2


def _until_waited_for(storage: AnyStorage) -> None:
    """Wait until somebody waits in both pools."""
    while {stats.pool_name for stats in storage.queue_stats()} != {FIRST, SECOND}:
        time.sleep(0.01)


def test_opposite_orders_never_wait_in_a_circle(
    storage: PostgresStorage, database_url: str
) -> None:
    """Under load: sets, round-robin, sessions, waits, leases that run out, in two processes' ways.

    No exclusive proxy is ever leased twice, and no request gets two leases.
    """
    two_pools(storage, 3, 3)
    held: Counter[Any] = Counter()
    lock = threading.Lock()
    with ledger(database_url) as other:
        managers = [ProxyManager(storage), ProxyManager(other)]

        def work(number: int) -> None:
            chance = random.Random(number)
            manager = managers[number % 2]
            first, second = (FIRST, SECOND) if number % 3 else (SECOND, FIRST)
            for _ in range(40):
                options: dict[str, Any] = {
                    "fallback": [second],
                    "selector": chance.choice([*SelectorStrategy][:5]),
                    "wait_seconds": chance.choice([None, None, 0.2]),
                    "duration_seconds": 30,
                }
                leases: list[Lease] = []
                if chance.random() < 0.3:
                    leases = manager.acquire_proxies(first, 2, f"w{number}", **options)
                else:
                    sticky = Sticky(chance.choice("abc")) if chance.random() < 0.3 else None
                    lease = manager.acquire_proxy(first, f"w{number}", sticky=sticky, **options)
                    leases = [lease] if lease is not None else []
                with lock:
                    held.update(lease.proxy_id for lease in leases)
                    assert not leases or max(held.values()) == 1
                time.sleep(chance.random() / 200)
                with lock:
                    held.subtract(lease.proxy_id for lease in leases)
                for lease in leases:
                    manager.release_proxy(lease)

        threads(8, work)
    assert storage.queue_stats() == []
    assert list(storage.list_held_leases()) == []
    assert storage.verify() == []


def test_several_pools_are_one_statement(storage: PostgresStorage) -> None:
    """However many are tried: the miss in one and the lease in another are one round trip."""
    two_pools(storage, 0, 1)
    storage.ensure_consumer("w")
    acquired(storage)
    ran: list[bytes] = []
    run = storage._driver.run

    def counting(program: Any, **options: Any) -> Any:
        def steps() -> Any:
            answer = None
            while True:
                try:
                    step = program.send(answer)
                except StopIteration as end:
                    return end.value
                ran.append(step)
                answer = yield step

        return run(steps(), **options)

    storage._driver.run = counting  # type: ignore[method-assign]
    storage.acquire_lease(AcquireRequest(FIRST, "w", fallback=[SECOND]))
    assert len(ran) == 1


def test_callbacks_and_metrics_say_what_was_fallen_back_from(any_storage: AnyStorage) -> None:
    """Counted by the pair of pools and the reason; the payload is of the pool that granted."""
    two_pools(any_storage, 0, 1)
    registry = CollectorRegistry()
    manager = ProxyManager(any_storage)
    told: list[Any] = []
    manager.register_acquire_callback(told.append)
    PrometheusMetricsRecorder(registry=registry).register(manager)
    manager.acquire_proxy(FIRST, fallback=[SECOND])
    manager.acquire_proxy(FIRST, fallback=[SECOND])
    granted, missed = told
    pool = any_storage.get_pool_by_name(FIRST)
    assert pool is not None
    assert granted.pool_name == SECOND
    assert granted.fallback_from == (
        PoolMissed(pool_id=pool.id, pool_name=FIRST, reason=MissReason.EMPTY_POOL),
    )
    assert (missed.pool_name, missed.fallback_from) == (FIRST, ())
    labels = {"pool": SECOND, "fallback_from": FIRST, "reason": "empty_pool"}
    assert registry.get_sample_value("pharox_fallbacks_total", labels) == 1


def test_what_ran_out_in_any_of_the_pools_is_taken_back(any_storage: AnyStorage) -> None:
    """So the first pool is not passed over for a lease that is over."""
    two_pools(any_storage)
    clock = clock_of(any_storage)
    acquired(any_storage, duration_seconds=30)
    clock.advance(31)
    found = any_storage.acquire_lease(AcquireRequest(FIRST, "w", fallback=[SECOND]))
    assert found.lease is not None
    assert found.lease.pool_name == FIRST
    assert len(found.expired) == 1


def test_a_limit_is_a_reason_like_any_other(any_storage: AnyStorage) -> None:
    """The next pool is tried; if there is none, the miss names the limit."""
    two_pools(any_storage, 3, 1)
    pool = any_storage.get_pool_by_name(FIRST)
    assert pool is not None
    limits = PoolLimits(leases_per_consumer=1)
    any_storage.save_pool(pool.model_copy(update={"limits": limits}))
    assert acquired(any_storage).pool_name == FIRST
    found = any_storage.acquire_lease(AcquireRequest(FIRST, "w", fallback=[SECOND]))
    assert found.lease is not None
    assert found.lease.pool_name == SECOND
    assert [each.reason for each in found.missed_in] == [MissReason.LIMIT_REACHED]
    missed = any_storage.acquire_lease(AcquireRequest(FIRST, "w", fallback=[SECOND]))
    assert missed.miss_reason is MissReason.LIMIT_REACHED
    assert asked_of(any_storage)[-1].limit is not None  # type: ignore[union-attr]


def test_a_miss_names_the_limit_of_each_pool(any_storage: AnyStorage) -> None:
    """It is worth asking again when time frees the first of them, whichever pool that is of."""
    clock_of(any_storage)
    for name, seconds in ((FIRST, 300), (SECOND, 60), ("third", 200)):
        pool, _ = fill(any_storage, 2, name=name)
        limits = PoolLimits(paces=(Pace(starts=1, seconds=seconds, per="consumer"),))
        any_storage.save_pool(pool.model_copy(update={"limits": limits}))
    asked: dict[str, Any] = {"fallback": [SECOND, "third"]}
    for _ in range(3):
        lease = any_storage.acquire_lease(AcquireRequest(FIRST, "w", **asked))
        assert lease.lease is not None
    last = asked_of(any_storage)[-1]
    assert isinstance(last, LeaseAcquired)
    assert [each.retry_after_seconds for each in last.fallback_from] == [300, 60]
    assert [each.retry_after_seconds for each in lease.missed_in] == [None, None]
    odd = ProxyFilters(predicate=lambda proxy: proxy.port > 0)
    for filters in (None, odd):
        missed = any_storage.acquire_lease(AcquireRequest(FIRST, "w", filters=filters, **asked))
        assert missed.retry_after_seconds == 60
        assert [each.retry_after_seconds for each in missed.missed_in] == [300, 60, 200]
        miss = asked_of(any_storage)[-1]
        assert isinstance(miss, AcquireMissed)
        assert miss.retry_after_seconds == 300
        assert miss.fallback == missed.missed_in[1:]
        assert [each.limit and each.limit.seconds for each in miss.fallback] == [60, 200]
        story = describe(miss, pool=FIRST, address=None).sentence
        assert all(f"frees one in {s}" in story for s in ("5 min 0 s", "1 min 0 s", "3 min 20 s"))
