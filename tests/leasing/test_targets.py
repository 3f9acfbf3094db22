"""A proxy that a target refused rests for that target, and for no other."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from pharox import (
    CoolDown,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    MissReason,
    Outcome,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyUnavailableError,
    SelectorStrategy,
)
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import CoolDownRequest, Reported, ReportRequest
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, clock_of, fill, proxies_of, threads, types_of

SHOP = "shop.example"


def report(storage: AnyStorage, lease: Lease, outcome: Outcome) -> Reported:
    """Report an outcome of a lease, and return it as recorded."""
    (reported,) = storage.report_outcomes([ReportRequest(lease, outcome)])
    assert isinstance(reported, Reported)
    return reported


def acquired(storage: AnyStorage, target: str | None = SHOP, **options: Any) -> Lease:
    """Lease a proxy for a target."""
    lease = ProxyManager(storage).acquire_proxy("pool", "w", target=target, **options)
    assert lease is not None
    return lease


def miss(storage: AnyStorage, target: str | None = SHOP, **options: Any) -> MissReason | None:
    """Return why nothing can be had for a target."""
    acquisition = storage.acquire_lease(AcquireRequest("pool", "w", target=target, **options))
    assert acquisition.lease is None
    return acquisition.miss_reason


def rest(storage: AnyStorage, lease: Lease, seconds: float | None = 60, target: str = SHOP) -> None:
    """Have the proxy of a lease rest, as a person does, and give it back."""
    storage.set_cool_down(CoolDownRequest(lease.proxy_id, target, seconds))
    storage.release_lease(lease)


class TestPassingOver:
    """What rests for the target is not leased for it."""

    def test_a_refused_pair_rests_for_its_target_only(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        fill(any_storage, 2)
        lease = acquired(any_storage, "https://Shop.Example:443/cart")
        assert lease.target == SHOP
        assert report(any_storage, lease, Outcome.blocked(status=429)).cools_until is not None
        any_storage.release_lease(lease)
        other = acquired(any_storage)
        assert other.proxy_id != lease.proxy_id
        assert miss(any_storage) is MissReason.COOLING_DOWN
        assert acquired(any_storage, "else.example").proxy_id == lease.proxy_id

    def test_it_comes_back_when_its_rest_is_over(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 1)
        lease = acquired(any_storage)
        report(any_storage, lease, Outcome.blocked(status=403, retry_after=20))
        any_storage.release_lease(lease)
        with pytest.raises(ProxyUnavailableError) as missed:
            ProxyManager(any_storage).pool("pool", wait_seconds=None).lease(target=SHOP).__enter__()
        assert missed.value.reason == MissReason.COOLING_DOWN
        assert missed.value.retry_after_seconds == 20
        clock.advance(20)
        assert acquired(any_storage).proxy_id == lease.proxy_id

    def test_one_lease_tries_a_proxy_whose_rest_is_over(self, any_storage: AnyStorage) -> None:
        """Then it is leased as often as it may, once that has succeeded."""
        clock = clock_of(any_storage)
        fill(any_storage, 1, max_concurrency=3)
        lease = acquired(any_storage)
        rest(any_storage, lease)
        clock.advance(60)
        tries = acquired(any_storage)
        assert miss(any_storage) is MissReason.COOLING_DOWN
        assert acquired(any_storage, "else.example")
        report(any_storage, tries, Outcome.ok())
        assert acquired(any_storage)

    @pytest.mark.parametrize("selector", SelectorStrategy)
    def test_with_each_selector(self, any_storage: AnyStorage, selector: SelectorStrategy) -> None:
        clock_of(any_storage)
        fill(any_storage, 3)
        for _ in range(2):
            rest(any_storage, acquired(any_storage, selector=selector))
        left = acquired(any_storage, selector=selector)
        assert miss(any_storage, selector=selector) is MissReason.COOLING_DOWN
        any_storage.release_lease(left)
        assert acquired(any_storage, selector=selector).proxy_id == left.proxy_id

    def test_with_filters(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        fill(any_storage, 2, country="AR")
        filters = ProxyFilters(country="AR")
        rest(any_storage, acquired(any_storage, filters=filters))
        acquired(any_storage, filters=filters)
        assert miss(any_storage, filters=filters) is MissReason.COOLING_DOWN
        assert miss(any_storage, filters=ProxyFilters(country="BR")) is MissReason.NO_MATCH

    def test_with_a_predicate(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        fill(any_storage, 2)
        filters = ProxyFilters(predicate=lambda _: True)
        rest(any_storage, acquired(any_storage, filters=filters))
        acquired(any_storage, filters=filters)
        assert miss(any_storage, filters=filters) is MissReason.COOLING_DOWN

    def test_a_set(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        fill(any_storage, 5)
        for _ in range(2):
            rest(any_storage, acquired(any_storage))
        whole = any_storage.acquire_set(AcquireSetRequest("pool", "w", 4, target=SHOP))
        assert (whole.acquisitions, whole.free) == ((), 3)
        assert whole.miss_reason is MissReason.TOO_FEW
        part = any_storage.acquire_set(AcquireSetRequest("pool", "w", 4, at_least=1, target=SHOP))
        assert len(part.acquisitions) == 3
        assert {lease.target for lease in part.leases} == {SHOP}

    def test_the_only_one_left_is_found_behind_many_that_rest(
        self, any_storage: AnyStorage
    ) -> None:
        """More rest in front of the order than are looked at."""
        clock_of(any_storage)
        fill(any_storage, 60)
        resting = [acquired(any_storage) for _ in range(59)]
        left = acquired(any_storage)
        any_storage.release_lease(left)
        for lease in resting:
            rest(any_storage, lease)
        assert acquired(any_storage).proxy_id == left.proxy_id
        assert miss(any_storage) is MissReason.COOLING_DOWN

    def test_memory_and_postgresql_take_the_same_of_the_others(
        self, postgres: PostgresStorage
    ) -> None:
        """What is in front of the order rests, so the order is that of ids from some id on."""
        pool = ProxyPool(name="pool")
        proxies = proxies_of(pool, 60)
        taken: list[list[UUID]] = []
        for storage in (postgres, InMemoryStorage()):
            clock = clock_of(storage)
            storage.save_pool(pool)
            storage.add_proxies_bulk(proxies)
            for lease in [acquired(storage) for _ in range(30)]:
                rest(storage, lease)
            clock.advance(0.5)
            taken.append([acquired(storage).proxy_id for _ in range(20)])
            clock.advance(1)
            taken[-1] += [acquired(storage).proxy_id for _ in range(10)]
        assert taken[0] == taken[1]

    def test_other_reasons_for_a_miss_are_told(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        assert miss(any_storage) is MissReason.UNKNOWN_POOL
        fill(any_storage, 1)
        acquired(any_storage)
        assert miss(any_storage) is MissReason.AT_CAPACITY

    @pytest.mark.parametrize("target", ["", " ", "https://", "a b", "x" * 501, "a\x00b", 5])
    def test_what_is_no_target(self, any_storage: AnyStorage, target: Any) -> None:
        fill(any_storage, 1)
        with pytest.raises(InvalidInputError):
            acquired(any_storage, target)
        assert "LeaseAcquired" not in types_of(any_storage)


class TestWaiting:
    """A request for a target waits for the end of a rest."""

    def test_it_is_served_when_a_rest_is_over(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1)
        lease = acquired(any_storage)
        rest(any_storage, lease, 0.3)
        assert acquired(any_storage, wait_seconds=20).proxy_id == lease.proxy_id

    def test_it_is_served_when_a_person_ends_the_rest(self, any_storage: AnyStorage) -> None:
        fill(any_storage, 1)
        lease = acquired(any_storage)
        rest(any_storage, lease, 600)
        got: list[Lease] = []

        def work(number: int) -> None:
            if number == 0:
                got.append(acquired(any_storage, wait_seconds=20))
            else:
                while not any_storage.queue_stats("pool"):
                    pass
                any_storage.set_cool_down(CoolDownRequest(lease.proxy_id, SHOP, None))

        threads(2, work)
        assert got[0].proxy_id == lease.proxy_id


class TestTrouble:
    """A target that fails for most proxies is to blame itself."""

    def test_nothing_rests_and_one_lease_tries_until_one_succeeds(
        self, any_storage: AnyStorage
    ) -> None:
        clock = clock_of(any_storage)
        pool, _ = fill(any_storage, 11)
        any_storage.save_pool(pool.model_copy(update={"cool_down": CoolDown(after=2)}))
        leases = [acquired(any_storage) for _ in range(11)]
        for lease in leases[:10]:
            report(any_storage, lease, Outcome.unclear())
        assert types_of(any_storage).count("TargetTroubled") == 1
        for lease in leases:
            refused = report(any_storage, lease, Outcome.blocked(status=429))
            assert refused.cools_until is None
            any_storage.release_lease(lease)
        clock.advance(1)
        tries = acquired(any_storage)
        assert miss(any_storage) is MissReason.TARGET_TROUBLED
        assert acquired(any_storage, "else.example")
        any_storage.release_lease(tries)
        tries = acquired(any_storage)
        report(any_storage, tries, Outcome.ok())
        assert types_of(any_storage).count("TargetRecovered") == 1
        assert acquired(any_storage)

    def test_a_target_that_refuses_is_not_in_trouble(self, any_storage: AnyStorage) -> None:
        clock_of(any_storage)
        fill(any_storage, 12)
        for _ in range(12):
            report(any_storage, acquired(any_storage), Outcome.blocked(status=403))
        assert "TargetTroubled" not in types_of(any_storage)

    def test_failures_long_ago_do_not_count(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 12)
        for _ in range(12):
            report(any_storage, acquired(any_storage), Outcome.target_failed(status=500))
            clock.advance(7)
        assert "TargetTroubled" not in types_of(any_storage)

    def test_what_is_asked_for_together_is_granted_once(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        self._fail(any_storage)
        clock.advance(1)
        asked = [AcquireRequest("pool", "w", target=SHOP) for _ in range(6)]
        outcomes = any_storage.run_batch(asked)
        assert [getattr(each, "lease", None) is not None for each in outcomes].count(True) == 1
        whole = any_storage.acquire_set(AcquireSetRequest("pool", "w", 3, target=SHOP))
        assert whole.miss_reason is MissReason.TARGET_TROUBLED

    def test_another_proxy_tries_it_each_second(self, any_storage: AnyStorage) -> None:
        """So one proxy that always fails there does not keep the target in trouble.

        Each second begins at a place among random ids: in sixty, three proxies of twelve
        alone would have to lie beside gaps that are all of the range.
        """
        clock = clock_of(any_storage)
        self._fail(any_storage)
        tried = set()
        for _ in range(60):
            clock.advance(1)
            lease = acquired(any_storage)
            tried.add(lease.proxy_id)
            report(any_storage, lease, Outcome.blocked(status=403))
            any_storage.release_lease(lease)
        assert len(tried) > 3

    def test_it_is_over_when_nobody_says_more(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        self._fail(any_storage)
        clock.advance(15 * 60)
        assert acquired(any_storage)
        assert acquired(any_storage)

    def test_with_a_predicate_the_reason_is_told(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        self._fail(any_storage)
        clock.advance(1)
        filters = ProxyFilters(predicate=lambda _: True)
        acquired(any_storage, filters=filters)
        assert miss(any_storage, filters=filters) is MissReason.TARGET_TROUBLED

    def test_rests_set_by_hand_hide_no_failure(self, any_storage: AnyStorage) -> None:
        clock = clock_of(any_storage)
        fill(any_storage, 13)
        first = acquired(any_storage)
        report(any_storage, first, Outcome.ok())
        clock.advance(300)
        for _ in range(10):
            any_storage.set_cool_down(CoolDownRequest(first.proxy_id, SHOP, 60))
            report(any_storage, acquired(any_storage), Outcome.unclear())
        assert types_of(any_storage).count("TargetTroubled") == 1

    @staticmethod
    def _fail(storage: AnyStorage) -> None:
        """Have a target fail for all proxies of a new pool."""
        fill(storage, 12)
        leases = [acquired(storage) for _ in range(12)]
        for lease in leases:
            report(storage, lease, Outcome.unclear())
            storage.release_lease(lease)
        assert types_of(storage).count("TargetTroubled") == 1
