"""The contract of a storage adapter, as tests to run with your own adapter."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from ..errors import (
    ConflictError,
    InvalidInputError,
    InvalidLeaseError,
    LeaseEndedError,
    PharoxError,
    PoolNotFoundError,
    ProxyNotFoundError,
    ProxyUnavailableError,
)
from ..models import (
    HealthCheckResult,
    HeldLease,
    Lease,
    LeaseStatus,
    MissReason,
    Proxy,
    ProxyFilters,
    ProxyHealthRecord,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
    utc_now,
)
from ..storage.interface import IStorage
from ..storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
)
from .fallback_contract import FallbackContract
from .gateways_contract import GatewaysContract
from .making import PassTime, lease_from, make_pool, make_proxy
from .outcomes_contract import OutcomesContract
from .sticky_contract import StickyContract


class StorageContract(FallbackContract, GatewaysContract, OutcomesContract, StickyContract):
    """What every storage must do. Subclass it and give it a ``storage`` fixture."""

    @pytest.fixture
    def storage(self) -> IStorage:
        """Return a fresh, empty storage; override this."""
        raise NotImplementedError("override the fixture `storage`")

    @pytest.fixture
    def pass_time(self) -> PassTime:
        """Return a function that advances the storage's clock by so many seconds."""
        return time.sleep

    # Pools, proxies, consumers

    def test_a_pool_is_read_back_as_saved(self, storage: IStorage) -> None:
        """A pool is read back as saved, and a change of it as well."""
        pool = make_pool(storage, description="bought")
        assert storage.get_pool(str(pool.id)) == pool
        changed = pool.model_copy(update={"name": "other", "lease_slow": True})
        storage.save_pool(changed)
        assert list(storage.list_pools()) == [changed]

    def test_unknown_ids_are_told_apart(self, storage: IStorage) -> None:
        """An unknown object raises the error of its kind, also if its id is not a UUID."""
        for text in (str(uuid4()), "no uuid"):
            for of_pools in (storage.get_pool, storage.delete_pool, storage.list_proxies):
                with pytest.raises(PoolNotFoundError):
                    of_pools(text)
            for of_proxies in (storage.get_proxy, storage.delete_proxy):
                with pytest.raises(ProxyNotFoundError):
                    of_proxies(text)
            assert storage.get_lease(text) is None
            assert list(storage.list_leases(text)) == []

    def test_a_proxy_is_read_back_as_saved(self, storage: IStorage) -> None:
        """A proxy is read back with every field, whatever the values."""
        pool = make_pool(storage)
        proxy = make_proxy(
            storage,
            pool,
            host="2001:db8::1",
            protocol=ProxyProtocol.SOCKS5,
            status=ProxyStatus.SLOW,
            source="ünïcode 'quoted' \"twice\" \\ %s",
            country="a country with a name longer than eight letters",
            city="São Paulo",
            latitude=-23.55,
            longitude=-46.63,
            isp="isp",
            asn=2**32 - 1,
            max_concurrency=None,
        )
        assert storage.get_proxy(str(proxy.id)) == proxy

    def test_a_proxy_needs_its_pool(self, storage: IStorage) -> None:
        """A proxy of an unknown pool is refused, together with the rest of its batch."""
        pool = make_pool(storage)
        fields: dict[str, Any] = {"host": "192.0.2.1", "port": 80, "protocol": ProxyProtocol.HTTP}
        good = Proxy(pool_id=pool.id, **fields)
        stray = Proxy(pool_id=uuid4(), **fields)
        with pytest.raises(PoolNotFoundError):
            storage.save_proxy(stray)
        with pytest.raises(PoolNotFoundError):
            storage.add_proxies_bulk([good, stray])
        assert list(storage.list_proxies(str(pool.id))) == []

    def test_bulk_registration_counts_what_is_new(self, storage: IStorage) -> None:
        """Bulk registration leaves known proxies as they are and counts the new ones."""
        pool = make_pool(storage)
        known = make_proxy(storage, pool, country="AR")
        fields: dict[str, Any] = {"host": "192.0.2.1", "protocol": ProxyProtocol.HTTP}
        new = [Proxy(pool_id=pool.id, port=port, **fields) for port in range(1, 5001)]
        again = known.model_copy(update={"country": "CL"})
        assert storage.add_proxies_bulk([again, *new]) == 5000
        assert storage.add_proxies_bulk(new) == 0
        assert storage.add_proxies_bulk([]) == 0
        assert storage.get_proxy(str(known.id)).country == "AR"
        stats = storage.get_pool_stats(pool.name)
        assert stats is not None
        assert stats.total_proxies == 5001

    def test_editing_a_leased_proxy_keeps_its_leases(self, storage: IStorage) -> None:
        """Saving a leased proxy changes its description and not its lease count."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        lease_from(storage, pool)
        storage.save_proxy(proxy.model_copy(update={"country": "AR", "current_leases": 0}))
        edited = storage.get_proxy(str(proxy.id))
        assert (edited.country, edited.current_leases) == ("AR", 1)

    def test_a_leased_proxy_can_be_removed(self, storage: IStorage) -> None:
        """Removing a leased proxy ends its lease; a formerly leased proxy can be removed too."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool, max_concurrency=2)
        ended, held = lease_from(storage, pool), lease_from(storage, pool)
        storage.release_lease(ended)
        storage.delete_proxy(str(proxy.id))
        recorded = storage.get_lease(str(held.id))
        assert recorded is not None
        assert recorded.status is LeaseStatus.RELEASED
        assert list(storage.list_proxies(str(pool.id))) == []

    def test_removing_a_pool_removes_what_is_in_it(self, storage: IStorage) -> None:
        """A removed pool is unknown, its leases are ended, and its name is free again."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        held = lease_from(storage, pool)
        storage.delete_pool(str(pool.id))
        recorded = storage.get_lease(str(held.id))
        assert recorded is not None
        assert recorded.status is LeaseStatus.RELEASED
        with pytest.raises(ProxyNotFoundError):
            storage.get_proxy(str(proxy.id))
        assert storage.get_pool_stats(pool.name) is None
        make_pool(storage, pool.name)

    def test_a_consumer_keeps_its_id(self, storage: IStorage) -> None:
        """A consumer is registered on first use and keeps its id."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        lease = storage.create_lease(proxy, "never seen before", 60)
        assert storage.ensure_consumer("never seen before") == lease.consumer_id
        assert [x.id for x in storage.list_leases(str(lease.consumer_id))] == [lease.id]

    # Selecting

    def test_first_available_prefers_the_newest_check(self, storage: IStorage) -> None:
        """FIRST_AVAILABLE offers the proxy that was checked last, then the smallest id."""
        pool, now = make_pool(storage), utc_now()
        ages = {UUID(int=1): 3, UUID(int=2): 1, UUID(int=3): 1, UUID(int=4): 2}
        for uuid, age in ages.items():
            make_proxy(storage, pool, id=uuid, checked_at=now - timedelta(hours=age))
        order = [lease_from(storage, pool).proxy_id.int for _ in ages]
        assert order == [2, 3, 4, 1]

    def test_least_used_prefers_the_fewest_leases(self, storage: IStorage) -> None:
        """LEAST_USED offers the fewest leases, then the oldest check, then the smallest id."""
        pool, now = make_pool(storage), utc_now()
        for number in (1, 2, 3):
            checked_at = now - timedelta(hours=number)
            make_proxy(storage, pool, id=UUID(int=number), checked_at=checked_at, max_concurrency=2)
        asked = {"selector": SelectorStrategy.LEAST_USED}
        order = [lease_from(storage, pool, **asked).proxy_id.int for _ in range(6)]
        assert order == [3, 2, 1, 3, 2, 1]

    def test_round_robin_takes_turns(self, storage: IStorage) -> None:
        """ROUND_ROBIN continues by id after the last turn, skips held proxies and wraps around."""
        pool = make_pool(storage)
        for number in (1, 2, 3, 4):
            make_proxy(storage, pool, id=UUID(int=number))
        asked = {"selector": SelectorStrategy.ROUND_ROBIN}
        leases = [lease_from(storage, pool, **asked) for _ in range(3)]
        storage.release_lease(leases[0])
        storage.release_lease(leases[2])
        assert [x.proxy_id.int for x in leases] == [1, 2, 3]
        assert [lease_from(storage, pool, **asked).proxy_id.int for _ in range(3)] == [4, 1, 3]

    def test_looking_for_a_proxy_takes_its_turn(self, storage: IStorage) -> None:
        """``find_available_proxy`` alone moves round-robin's cursor."""
        pool = make_pool(storage)
        for number in (1, 2):
            make_proxy(storage, pool, id=UUID(int=number))
        asked = (pool.name, None, SelectorStrategy.ROUND_ROBIN)
        found = [storage.find_available_proxy(*asked) for _ in range(3)]
        assert [proxy and proxy.id.int for proxy in found] == [1, 2, 1]

    def test_lowest_latency_prefers_the_quickest(self, storage: IStorage) -> None:
        """LOWEST_LATENCY offers the lowest last latency; an unmeasured proxy comes last."""
        pool = make_pool(storage)
        for number, latency_ms in ((1, None), (2, 90), (3, 20), (4, 20)):
            proxy = make_proxy(storage, pool, id=UUID(int=number))
            if latency_ms is not None:
                storage.apply_health_check_result(checked(proxy, latency_ms=latency_ms))
        asked = {"selector": SelectorStrategy.LOWEST_LATENCY}
        order = [lease_from(storage, pool, **asked).proxy_id.int for _ in range(4)]
        assert order == [3, 4, 2, 1]

    def test_least_recently_used_prefers_the_longest_unused(self, storage: IStorage) -> None:
        """LEAST_RECENTLY_USED offers what was never leased, then what was leased longest ago."""
        pool = make_pool(storage)
        for number in (1, 2, 3):
            make_proxy(storage, pool, id=UUID(int=number), checked_at=utc_now())
        asked = {"selector": SelectorStrategy.LEAST_RECENTLY_USED}
        order = []
        for _ in range(5):
            lease = lease_from(storage, pool, **asked)
            storage.release_lease(lease)
            order.append(lease.proxy_id.int)
        assert order == [1, 2, 3, 1, 2]
        make_proxy(storage, pool, id=UUID(int=9))
        leases = [lease_from(storage, pool, **asked) for _ in range(4)]
        assert [lease.proxy_id.int for lease in leases] == [9, 3, 1, 2]

    @pytest.mark.parametrize("selector", list(SelectorStrategy))
    def test_slow_proxies_follow_where_the_pool_says_so(
        self, storage: IStorage, selector: SelectorStrategy
    ) -> None:
        """SLOW proxies are leased only in a pool with ``lease_slow``, after all ACTIVE ones."""
        strict, lenient = make_pool(storage, "strict"), make_pool(storage, "b", lease_slow=True)
        make_proxy(storage, strict, status=ProxyStatus.SLOW)
        assert storage.find_available_proxy(strict.name, None, selector) is None
        slow = make_proxy(storage, lenient, id=UUID(int=1), status=ProxyStatus.SLOW)
        active = make_proxy(storage, lenient, id=UUID(int=2))
        make_proxy(storage, lenient, id=UUID(int=3), status=ProxyStatus.BANNED)
        order = [lease_from(storage, lenient, selector=selector).proxy_id for _ in range(2)]
        assert order == [active.id, slow.id]
        assert storage.acquire_lease(AcquireRequest(lenient.name, "w")).lease is None

    def test_filters_mean_what_matches_means(self, storage: IStorage) -> None:
        """A composite filter offers what ``ProxyFilters.matches`` accepts, NULLs and all."""
        pool = make_pool(storage)
        make_proxy(storage, pool, country="AR", source="latam")
        wanted = make_proxy(storage, pool, source="andina")
        make_proxy(storage, pool, country="CL", city="closed")
        filters = ProxyFilters(
            any_of=[ProxyFilters(source="andina"), ProxyFilters(predicate=lambda p: p.port == 0)],
            none_of=[ProxyFilters(country="AR"), ProxyFilters(city="closed")],
        )
        assert lease_from(storage, pool, filters=filters).proxy_id == wanted.id

    # Leasing

    def test_capacity_is_kept(self, storage: IStorage) -> None:
        """No proxy has more leases than ``max_concurrency``; None sets no limit."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool, max_concurrency=2)
        for _ in range(2):
            lease_from(storage, pool)
        assert storage.acquire_lease(AcquireRequest(pool.name, "w")).lease is None
        with pytest.raises(ProxyUnavailableError):
            storage.create_lease(proxy, "w", 60)
        free = make_proxy(storage, pool, max_concurrency=None)
        assert {lease_from(storage, pool).proxy_id for _ in range(20)} == {free.id}

    @pytest.mark.parametrize("status", [ProxyStatus.BANNED, ProxyStatus.INACTIVE])
    def test_an_unhealthy_proxy_is_not_leased(self, storage: IStorage, status: ProxyStatus) -> None:
        """A proxy banned between being found and being leased is not leased."""
        pool = make_pool(storage)
        found = make_proxy(storage, pool)
        storage.save_proxy(found.model_copy(update={"status": status}))
        with pytest.raises(ProxyUnavailableError):
            storage.create_lease(found, "w", 60)

    def test_an_id_is_leased_once(self, storage: IStorage) -> None:
        """At most one lease is granted under a caller's id, or ids are refused."""
        pool = make_pool(storage)
        make_proxy(storage, pool, max_concurrency=2)
        request = AcquireRequest(pool.name, "w", lease_id=uuid4())
        try:
            first = storage.acquire_lease(request)
        except InvalidInputError:
            assert lease_from(storage, pool)
            return
        again = storage.acquire_lease(request)
        assert first.lease is not None
        assert first.lease.id == request.lease_id
        assert again.lease == first.lease
        assert (first.is_new, again.is_new) == (True, False)
        with pytest.raises(ConflictError):
            storage.acquire_lease(AcquireRequest(pool.name, "x", lease_id=request.lease_id))
        storage.release_lease(first.lease)
        with pytest.raises(LeaseEndedError):
            storage.acquire_lease(request)
        assert lease_from(storage, pool).id != request.lease_id

    # Sets and batches

    def test_a_set_is_granted_as_a_whole(self, storage: IStorage) -> None:
        """A set has as many leases as requested, on different proxies, each with its statistics."""
        pool = make_pool(storage)
        for _ in range(3):
            make_proxy(storage, pool, max_concurrency=2)
        found = storage.acquire_set(AcquireSetRequest(pool.name, "w", 3, with_stats=True))
        leases = [each.lease for each in found.acquisitions if each.lease is not None]
        assert len({lease.proxy_id for lease in leases}) == len(leases) == 3
        assert {lease.consumer_name for lease in leases} <= {"w", None}
        stats = [each.stats for each in found.acquisitions]
        assert [each and each.total_leases for each in stats] == [1, 2, 3]
        assert (found.miss_reason, found.free) == (None, 0)
        assert counts(storage, pool) == (3, 3, 3, 3, 3)

    def test_a_set_that_cannot_be_had_leaves_nothing_leased(self, storage: IStorage) -> None:
        """A miss of a set says how many proxies were free, or why none was."""
        pool = make_pool(storage)
        for _ in range(2):
            make_proxy(storage, pool)
        found = storage.acquire_set(AcquireSetRequest(pool.name, "w", 3, with_stats=True))
        assert found.acquisitions == ()
        assert (found.miss_reason, found.free) == (MissReason.TOO_FEW, 2)
        assert found.stats is not None
        assert found.stats.total_leases == 0
        assert counts(storage, pool) == (2, 2, 2, 0, 0)
        nowhere = storage.acquire_set(AcquireSetRequest("nowhere", "w", 3))
        assert (nowhere.acquisitions, nowhere.free) == ((), 0)

    def test_a_set_may_be_smaller(self, storage: IStorage) -> None:
        """With ``at_least``, all free proxies are leased if there are at least that many."""
        pool = make_pool(storage)
        for _ in range(3):
            make_proxy(storage, pool)
        assert storage.acquire_set(AcquireSetRequest(pool.name, "w", 9, at_least=4)).free == 3
        found = storage.acquire_set(AcquireSetRequest(pool.name, "w", 9, at_least=2))
        assert len(found.acquisitions) == 3
        assert counts(storage, pool) == (3, 3, 0, 3, 3)

    @pytest.mark.parametrize(
        ("selector", "order"),
        [
            (SelectorStrategy.FIRST_AVAILABLE, [1, 1, 2, 2]),
            (SelectorStrategy.LOWEST_LATENCY, [1, 1, 2, 2]),
            (SelectorStrategy.LEAST_USED, [2, 1, 2, 1]),
            (SelectorStrategy.ROUND_ROBIN, [1, 2, 1, 2]),
            (SelectorStrategy.LEAST_RECENTLY_USED, [1, 2, 1, 2]),
        ],
    )
    def test_a_set_follows_its_selector(
        self, storage: IStorage, selector: SelectorStrategy, order: list[int]
    ) -> None:
        """A set uses shared proxies in the same way as single acquisitions would."""
        pool, now = make_pool(storage), utc_now()
        for number in (1, 2):
            checked_at = now - timedelta(hours=number)
            make_proxy(storage, pool, id=UUID(int=number), checked_at=checked_at, max_concurrency=2)
        request = AcquireSetRequest(pool.name, "w", 4, selector=selector, distinct=False)
        found = storage.acquire_set(request)
        assert [each.lease and each.lease.proxy_id.int for each in found.acquisitions] == order

    def test_distinct_proxies_match_the_filters(self, storage: IStorage) -> None:
        """A set of distinct proxies has each matching proxy once."""
        pool = make_pool(storage)
        wanted = {make_proxy(storage, pool, country="AR", max_concurrency=5).id for _ in range(2)}
        make_proxy(storage, pool, country="CL", max_concurrency=5)
        request = AcquireSetRequest(
            pool.name, "w", 5, filters=ProxyFilters(country="AR"), at_least=1
        )
        found = storage.acquire_set(request)
        assert len(found.acquisitions) == 2
        assert {each.lease and each.lease.proxy_id for each in found.acquisitions} == wanted

    def test_a_set_is_leased_once_under_its_ids(self, storage: IStorage) -> None:
        """At most one set is granted under a caller's ids, or ids are refused."""
        pool = make_pool(storage)
        for _ in range(4):
            make_proxy(storage, pool)
        ids = (uuid4(), uuid4())
        request = AcquireSetRequest(pool.name, "w", 2, lease_ids=ids)
        try:
            first = storage.acquire_set(request)
        except InvalidInputError:
            assert counts(storage, pool) == (4, 4, 4, 0, 0)
            return
        again = storage.acquire_set(request)
        assert [each.lease and each.lease.id for each in first.acquisitions] == list(ids)
        assert [each.lease for each in again.acquisitions] == [x.lease for x in first.acquisitions]
        assert [each.is_new for each in again.acquisitions] == [False, False]
        assert counts(storage, pool) == (4, 4, 2, 2, 2)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"count": 0},
            {"count": 1001},
            {"count": True},
            {"count": 1.5},
            {"at_least": 0},
            {"at_least": 3},
            {"lease_ids": (UUID(int=1),)},
            {"lease_ids": (UUID(int=1), UUID(int=1))},
            {"lease_ids": ("a", "b")},
            {"duration_seconds": 0},
            {"pool_name": ""},
            {"consumer_name": "a\x00b"},
            {"selector": "cheapest"},
        ],
    )
    def test_a_set_must_make_sense(self, storage: IStorage, wrong: dict[str, Any]) -> None:
        """An impossible set is refused before anything is leased."""
        pool = make_pool(storage)
        asked = {"pool_name": pool.name, "consumer_name": "w", "count": 2, **wrong}
        with pytest.raises(ValueError):  # noqa: PT011 - ours are ValueErrors, as are the enum's
            storage.acquire_set(AcquireSetRequest(**asked))

    def test_leases_are_given_back_together(self, storage: IStorage) -> None:
        """Releasing several leases ends all of them; an ended one stays as it is."""
        pool = make_pool(storage)
        for _ in range(3):
            make_proxy(storage, pool)
        leases = [lease_from(storage, pool) for _ in range(3)]
        storage.release_lease(leases[1])
        returned = storage.return_leases(leases, reason="done", with_stats=True)
        assert [each.ending is not None for each in returned] == [True, False, True]
        stats = [each.ending.stats for each in returned if each.ending is not None]
        assert [each and each.total_leases for each in stats] == [1, 0]
        assert {lease.status for lease in leases} == {LeaseStatus.RELEASED}
        assert storage.return_leases([]) == []

    def test_a_batch_gives_back_first(self, storage: IStorage) -> None:
        """A proxy released in a batch can be leased in it, whatever the order of the commands."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        held = lease_from(storage, pool)
        one, other = AcquireRequest(pool.name, "one"), AcquireRequest(pool.name, "other")
        outcomes = storage.run_batch([one, ReleaseRequest(held), other])
        first, released, second = outcomes
        assert isinstance(first, Acquisition)
        assert isinstance(released, ReleaseResult)
        assert isinstance(second, Acquisition)
        assert first.lease is not None
        assert first.lease.proxy_id == held.proxy_id
        assert released.ending is not None
        assert second.lease is None
        assert storage.run_batch([]) == []

    def test_an_error_is_one_commands_own(self, storage: IStorage) -> None:
        """A failing command of a batch gets its error as its answer; the others get theirs."""
        pool = make_pool(storage)
        make_proxy(storage, pool)

        def breaks(_: Proxy) -> bool:
            raise ZeroDivisionError

        broken = AcquireRequest(pool.name, "w", filters=ProxyFilters(predicate=breaks))
        error, acquired = storage.run_batch([broken, AcquireRequest(pool.name, "w")])
        assert isinstance(error, ZeroDivisionError)
        assert isinstance(acquired, Acquisition)
        assert acquired.lease is not None

    def test_only_commands_make_a_batch(self, storage: IStorage) -> None:
        """A batch with anything but commands is refused as a whole."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        with pytest.raises(InvalidInputError):
            storage.run_batch([AcquireRequest(pool.name, "w"), "release"])  # type: ignore[list-item]
        assert counts(storage, pool) == (1, 1, 1, 0, 0)

    def test_an_unknown_pool_is_a_miss(self, storage: IStorage) -> None:
        """Acquiring from an unknown pool returns nothing and does not raise."""
        assert storage.acquire_lease(AcquireRequest("nowhere", "w")).lease is None
        assert storage.find_available_proxy("nowhere") is None
        assert storage.get_pool_stats("nowhere") is None

    @pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 10**18, True])
    def test_a_duration_must_make_sense(self, storage: IStorage, seconds: float) -> None:
        """A duration that is not a positive, finite number of seconds is refused."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        with pytest.raises(InvalidLeaseError):
            storage.create_lease(proxy, "w", seconds)  # type: ignore[arg-type]
        with pytest.raises(InvalidLeaseError):
            storage.acquire_lease(AcquireRequest(pool.name, "w", seconds))

    @pytest.mark.parametrize("name", ["", " ", "a\x00b", "\ud800"])
    def test_a_name_must_be_storable(self, storage: IStorage, name: str) -> None:
        """A name that is empty or cannot be stored raises an error of pharox."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        with pytest.raises(InvalidInputError):
            storage.create_lease(proxy, name, 60)
        with pytest.raises(InvalidInputError):
            storage.ensure_consumer(name)
        with pytest.raises(InvalidInputError):
            storage.acquire_lease(AcquireRequest(name, "w"))

    def test_a_release_frees_the_proxy(self, storage: IStorage) -> None:
        """A released lease is recorded as such and its proxy can be leased again."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        lease = lease_from(storage, pool)
        storage.release_lease(lease)
        recorded = storage.get_lease(str(lease.id))
        assert recorded is not None
        assert recorded.status is LeaseStatus.RELEASED
        assert (lease.status, lease.released_at) == (recorded.status, recorded.released_at)
        lease_from(storage, pool)

    def test_a_second_release_changes_nothing(self, storage: IStorage, pass_time: PassTime) -> None:
        """Releasing twice keeps the first ``released_at`` and frees nothing twice."""
        pool = make_pool(storage)
        make_proxy(storage, pool, max_concurrency=2)
        lease, other = lease_from(storage, pool), lease_from(storage, pool)
        storage.release_lease(lease)
        first = lease.released_at
        pass_time(0.01)
        lease.released_at, lease.status = None, LeaseStatus.ACTIVE
        assert storage.return_lease(lease).ending is None
        assert (lease.released_at, lease.status) == (first, LeaseStatus.RELEASED)
        assert storage.get_proxy(str(other.proxy_id)).current_leases == 1

    def test_only_the_id_of_a_released_lease_counts(self, storage: IStorage) -> None:
        """A lease with forged fields ends the lease of its id, as the ledger knows it."""
        pool, other = make_pool(storage), make_pool(storage, "other")
        make_proxy(storage, pool)
        bystander = make_proxy(storage, other)
        lease_from(storage, other)
        lease = lease_from(storage, pool)
        forged = lease.model_copy(
            update={
                "proxy_id": bystander.id,
                "pool_id": other.id,
                "pool_name": other.name,
                "consumer_id": uuid4(),
                "released_at": utc_now() - timedelta(days=9),
            }
        )
        storage.release_lease(forged)
        recorded = storage.get_lease(str(lease.id))
        assert recorded is not None
        assert recorded.status is LeaseStatus.RELEASED
        assert recorded.proxy_id == lease.proxy_id
        assert recorded.released_at is not None
        assert recorded.released_at >= recorded.acquired_at
        assert storage.get_proxy(str(bystander.id)).current_leases == 1

    def test_an_unknown_lease_is_not_released(self, storage: IStorage) -> None:
        """Releasing an unknown lease does nothing."""
        made_up = Lease(proxy_id=uuid4(), consumer_id=uuid4(), expires_at=utc_now())
        assert storage.return_lease(made_up).ending is None

    def test_expiry_is_told_from_release(self, storage: IStorage, pass_time: PassTime) -> None:
        """A lease that ran out is EXPIRED, cannot be released, and its proxy is free."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        lease = lease_from(storage, pool, duration_seconds=1)
        assert storage.cleanup_expired_leases() == 0
        pass_time(1.1)
        assert storage.cleanup_expired_leases() == 1
        assert storage.cleanup_expired_leases() == 0
        assert storage.return_lease(lease).ending is None
        assert lease.status is LeaseStatus.EXPIRED
        assert lease.released_at is not None
        lease_from(storage, pool)

    def test_a_lease_is_renewed(self, storage: IStorage, pass_time: PassTime) -> None:
        """It outlives its first term, with its id and token; or the storage says that it cannot."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        lease = lease_from(storage, pool, duration_seconds=2)
        before = lease.model_copy()
        try:
            (renewed,) = storage.renew_leases([RenewRequest(lease, 60)])
        except InvalidInputError:
            assert lease.expires_at == before.expires_at
            return  # It says that it cannot renew leases.
        assert renewed is lease
        assert lease.expires_at > before.expires_at
        assert (lease.id, lease.fencing_token) == (before.id, before.fencing_token)
        pass_time(2.1)
        assert storage.cleanup_expired_leases() == 0
        assert storage.get_lease(str(lease.id)) == lease
        storage.release_lease(lease)
        (refused,) = storage.renew_leases([RenewRequest(before)])
        assert isinstance(refused, LeaseEndedError)
        assert before.status is LeaseStatus.RELEASED

    def test_its_pool_bounds_a_renewal(self, storage: IStorage) -> None:
        """No renewal goes beyond it, or takes time away; or the storage cannot renew."""
        pool = make_pool(storage, max_held_seconds=100)
        make_proxy(storage, pool)
        lease = lease_from(storage, pool, duration_seconds=60)
        with suppress(InvalidInputError):  # It says that it cannot renew leases.
            for _ in range(2):
                assert storage.renew_leases([RenewRequest(lease, 500)]) == [lease]
                assert (lease.expires_at - lease.acquired_at).total_seconds() == 100

    def test_a_wait_ends(self, storage: IStorage) -> None:
        """With a lease if something is free, with a miss if its time is over or in vain."""
        if not storage.can_wait:
            return
        pool = make_pool(storage)
        make_proxy(storage, pool, country="AR")
        lease_from(storage, pool, wait_seconds=60)
        for filters, seconds, reason in (
            (None, 0.2, MissReason.AT_CAPACITY),
            (ProxyFilters(country="CL"), 60, MissReason.NO_MATCH),
        ):
            request = AcquireRequest(pool.name, "w", filters=filters, wait_seconds=seconds)
            assert storage.acquire_lease(request).miss_reason is reason
        assert storage.queue_stats(pool.name) == []

    def test_the_next_expiry_is_known(self, storage: IStorage, pass_time: PassTime) -> None:
        """The earliest of the pool's active leases counts; or the storage cannot tell."""
        pool = make_pool(storage)
        for _ in range(2):
            make_proxy(storage, pool)
        assert storage.seconds_to_next_expiry("nowhere") is None
        assert storage.seconds_to_next_expiry(pool.name) is None
        assert storage.seconds_to_next_expiry() is None
        lease_from(storage, pool, duration_seconds=1000)
        first = lease_from(storage, pool, duration_seconds=1)
        seconds = storage.seconds_to_next_expiry(pool.name)
        if seconds is None:
            return  # It cannot tell.
        assert 0 <= seconds <= 1
        pass_time(1.1)
        assert storage.seconds_to_next_expiry(pool.name) == storage.seconds_to_next_expiry() == 0
        storage.release_lease(first)
        seconds = storage.seconds_to_next_expiry(pool.name)
        assert seconds is not None
        assert 1 < seconds <= 1000

    def test_held_leases_are_listed(self, storage: IStorage, pass_time: PassTime) -> None:
        """Active leases only, page by page by proxy and lease, with the time that each has left."""
        pools = [make_pool(storage, name) for name in ("a", "b")]
        for pool in pools:
            for number in (1, 2):
                make_proxy(storage, pool, host=f"192.0.2.{number}", max_concurrency=2)
        leases = [
            lease_from(storage, pool, consumer_name=f"c{n % 2}", duration_seconds=60)
            for pool in pools
            for n in range(4)
        ]
        storage.release_lease(leases.pop())
        pass_time(0.01)
        order = sorted(leases, key=lambda lease: (lease.pool_id, lease.proxy_id, lease.id))
        found: list[HeldLease] = []
        while page := storage.list_held_leases(after=found[-1] if found else None, limit=3):
            found += page
        assert [held.id for held in found] == [lease.id for lease in order]
        for held, lease in zip(found, order, strict=True):
            proxy = storage.get_proxy(str(lease.proxy_id))
            assert held.address == f"http://{proxy.host}:{proxy.port}"
            assert 0 < held.remaining_seconds < 60
            assert (held.consumer_name, held.expires_at) == (lease.consumer_name, lease.expires_at)
        in_a = storage.list_held_leases("a", consumer_name="c1")
        assert [held.id for held in in_a] == [
            lease.id for lease in order if (lease.pool_name, lease.consumer_name) == ("a", "c1")
        ]
        assert storage.list_held_leases("nowhere") == []
        with pytest.raises(InvalidInputError):
            storage.list_held_leases(limit=0)

    def test_a_lease_is_revoked(self, storage: IStorage) -> None:
        """It ends once, for a reason, and its proxy is free; or the storage says that it cannot."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        lease = lease_from(storage, pool)
        try:
            ended, again = storage.revoke_leases(RevokeRequest((lease.id, lease.id), "banned"))
        except InvalidInputError:
            return  # It says that it cannot revoke leases.
        assert not isinstance(ended, PharoxError)
        assert (ended.lease.status, ended.reason) == (LeaseStatus.REVOKED, "banned")
        assert isinstance(again, LeaseEndedError)
        assert storage.get_lease(str(lease.id)) == ended.lease
        assert storage.return_lease(lease).ending is None
        assert (lease.status, lease.revoke_reason) == (LeaseStatus.REVOKED, "banned")
        lease_from(storage, pool)

    def test_a_drained_proxy_leaves_with_its_last_lease(self, storage: IStorage) -> None:
        """Its lease goes on, and nobody gets it; or the storage says that it cannot drain."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        lease = lease_from(storage, pool)
        try:
            drained = storage.drain_proxy(proxy.id)
        except InvalidInputError:
            return  # It says that it cannot drain proxies.
        assert drained is not None
        assert drained.current_leases == 1
        storage.release_lease(lease)
        assert storage.list_proxies(str(pool.id)) == []

    def test_a_proxy_rests_if_its_pool_says_so(
        self, storage: IStorage, pass_time: PassTime
    ) -> None:
        """It is not granted before its rest is over; or the storage does not know of rests."""
        pool = make_pool(storage, rest_after_release_seconds=2)
        make_proxy(storage, pool)
        storage.release_lease(lease_from(storage, pool, duration_seconds=60))
        missed = storage.acquire_lease(AcquireRequest(pool.name, "w", 60))
        if missed.lease is not None:
            return  # An adapter that was written for 0.11.0 knows of no rests.
        # An adapter with the methods of 0.11.0 alone cannot tell why.
        assert missed.miss_reason in (MissReason.RESTING, None)
        pass_time(2.1)
        lease_from(storage, pool)

    def test_an_acquisition_returns_the_proxy(self, storage: IStorage) -> None:
        """The URL that a client needs comes with the lease."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        lease = lease_from(storage, pool)
        assert lease.proxy.url == proxy.url

    def test_acquiring_takes_back_what_ran_out(
        self, storage: IStorage, pass_time: PassTime
    ) -> None:
        """A proxy whose lease ran out is leased again without anybody cleaning up."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        first = lease_from(storage, pool, duration_seconds=1)
        pass_time(1.1)
        second = lease_from(storage, pool)
        assert second.proxy_id == first.proxy_id
        recorded = storage.get_lease(str(first.id))
        assert recorded is not None
        assert recorded.status is LeaseStatus.EXPIRED

    def test_statistics_follow(self, storage: IStorage) -> None:
        """Statistics count proxies, health, availability and leases."""
        pool = make_pool(storage)
        one = make_proxy(storage, pool)
        many = make_proxy(storage, pool, max_concurrency=None)
        make_proxy(storage, pool, status=ProxyStatus.INACTIVE)
        leases = [storage.create_lease(proxy, "w", 60) for proxy in (one, many, many)]
        assert counts(storage, pool) == (3, 2, 1, 2, 3)
        for lease in leases:
            storage.release_lease(lease)
        assert counts(storage, pool) == (3, 2, 2, 0, 0)

    # Health

    def test_a_health_result_is_applied(self, storage: IStorage) -> None:
        """The newest result sets status and ``checked_at``, and is stored with all its fields."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        result = checked(
            proxy, status=ProxyStatus.INACTIVE, status_code=502, error_message="bad gateway"
        )
        updated = storage.apply_health_check_result(result)
        assert updated is not None
        assert (updated.status, updated.checked_at) == (result.status, result.checked_at)
        assert storage.get_last_health_result(proxy.id) == result
        (record,) = storage.list_health_records(proxy.id)
        assert (record.status_before, record.status_after) == ("active", "inactive")
        assert (record.error, record.reachable) == ("bad gateway", False)

    def test_an_older_result_changes_nothing(self, storage: IStorage) -> None:
        """A late result is recorded but overwrites no newer one."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        new = checked(proxy)
        old = checked(
            proxy, status=ProxyStatus.INACTIVE, checked_at=new.checked_at - timedelta(seconds=1)
        )
        storage.apply_health_check_result(new)
        updated = storage.apply_health_check_result(old)
        assert updated is not None
        assert updated.status is ProxyStatus.ACTIVE
        assert storage.get_last_health_result(proxy.id) == new
        records = storage.list_health_records(proxy.id)
        assert [record.checked_at for record in records] == [new.checked_at, old.checked_at]

    def test_no_probe_lifts_a_ban(self, storage: IStorage) -> None:
        """A banned proxy stays banned whatever a probe finds."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool, status=ProxyStatus.BANNED)
        updated = storage.apply_health_check_result(checked(proxy))
        assert updated is not None
        assert updated.status is ProxyStatus.BANNED

    def test_a_result_for_an_unknown_proxy_is_none(self, storage: IStorage) -> None:
        """A result for an unknown proxy changes nothing, and its outcome says so."""
        stray = HealthCheckResult(
            proxy_id=uuid4(),
            status=ProxyStatus.ACTIVE,
            latency_ms=1,
            protocol=ProxyProtocol.HTTP,
        )
        assert storage.apply_health_check_result(stray) is None
        assert storage.get_last_health_result(stray.proxy_id) is None
        assert list(storage.list_health_records(stray.proxy_id)) == []

    def test_results_are_recorded_many_at_a_time(self, storage: IStorage) -> None:
        """Many results get one outcome each, in order, also those of unknown proxies."""
        pool = make_pool(storage)
        one, other = make_proxy(storage, pool), make_proxy(storage, pool)
        stray = checked(one.model_copy(update={"id": uuid4()}))
        results = [checked(one, status=ProxyStatus.INACTIVE), stray, checked(other)]
        outcomes = storage.record_health_checks(results)
        assert [outcome.result for outcome in outcomes] == results
        assert [outcome.known for outcome in outcomes] == [True, False, True]
        assert [outcome.applied for outcome in outcomes] == [True, False, True]
        assert [(o.status_before, o.status_after) for o in outcomes] == [
            (ProxyStatus.ACTIVE, ProxyStatus.INACTIVE),
            (None, None),
            (ProxyStatus.ACTIVE, ProxyStatus.ACTIVE),
        ]
        assert outcomes[0].pool_name == pool.name
        assert storage.get_proxy(str(one.id)).status is ProxyStatus.INACTIVE

    def test_a_person_decides_a_status(self, storage: IStorage) -> None:
        """``set_status`` bans and unbans a proxy, and refuses an invalid status."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        for status in (ProxyStatus.BANNED, ProxyStatus.ACTIVE):
            assert storage.set_status(proxy.id, status, reason="seen by hand").status is status
            assert storage.get_proxy(str(proxy.id)).status is status
        with pytest.raises(ProxyNotFoundError):
            storage.set_status(uuid4(), ProxyStatus.BANNED)
        with pytest.raises(InvalidInputError):
            storage.set_status(proxy.id, "well")  # type: ignore[arg-type]

    def test_a_ban_may_end_by_itself(self, storage: IStorage, pass_time: PassTime) -> None:
        """Then the proxy is granted again; or the storage says that it cannot end a ban."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        try:
            banned = storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=2)
        except (InvalidInputError, TypeError):
            return  # Its set_status may be one that was written before bans could end.
        assert (banned.status, banned.banned_until is None) == (ProxyStatus.BANNED, False)
        assert storage.acquire_lease(AcquireRequest(pool.name, "w", 60)).lease is None
        pass_time(2.1)
        lease_from(storage, pool)
        again = storage.get_proxy(str(proxy.id))
        assert (again.status, again.banned_until) == (ProxyStatus.ACTIVE, None)

    def test_what_is_due_is_loaded(self, storage: IStorage) -> None:
        """Due proxies are chosen by pool, status and last check; banned ones on request."""
        pool, other = make_pool(storage), make_pool(storage, "other")
        fresh, stale, never = (make_proxy(storage, pool) for _ in range(3))
        banned = make_proxy(storage, other, status=ProxyStatus.BANNED)
        storage.apply_health_check_result(checked(fresh))
        long_ago = utc_now() - timedelta(hours=1)
        storage.apply_health_check_result(checked(stale, checked_at=long_ago))

        def due(*args: str, **choice: Any) -> set[UUID]:
            return {proxy.id for proxy in storage.load_proxies_for_healthchecks(*args, **choice)}

        assert due() == {fresh.id, stale.id, never.id}
        assert due("other") == set()
        assert due("other", statuses=[ProxyStatus.BANNED]) == {banned.id}
        assert (
            due(stale_after=1800) == due(stale_after=timedelta(hours=0.5)) == {stale.id, never.id}
        )
        assert due(stale_after=7200) == {never.id}
        with pytest.raises(PoolNotFoundError):
            due("unknown")
        for nonsense in (-1, float("nan"), "long"):
            with pytest.raises(InvalidInputError):
                due(stale_after=nonsense)
        for statuses in (["well"], "active"):
            with pytest.raises(InvalidInputError):
                due(statuses=statuses)

    def test_an_observation_is_only_recorded(self, storage: IStorage) -> None:
        """``save_health_record`` keeps an observation and leaves the proxy's status alone."""
        pool = make_pool(storage)
        proxy = make_proxy(storage, pool)
        record = ProxyHealthRecord(
            proxy_id=proxy.id,
            reachable=False,
            protocol=proxy.protocol,
            status_after=ProxyStatus.INACTIVE,
            error="refused",
        )
        storage.save_health_record(record)
        assert storage.get_proxy(str(proxy.id)).status is ProxyStatus.ACTIVE
        assert [x.error for x in storage.list_health_records(proxy.id)] == ["refused"]


def checked(proxy: Proxy, **fields: Any) -> HealthCheckResult:
    """Return a result for a proxy: reachable in 10 ms unless ``fields`` say otherwise."""
    known = {"status": ProxyStatus.ACTIVE, "latency_ms": 10, "protocol": proxy.protocol}
    return HealthCheckResult(proxy_id=proxy.id, **{**known, **fields})


def counts(storage: IStorage, pool: ProxyPool) -> tuple[int, int, int, int, int]:
    """Return a pool's statistics: total, active, available, leased, leases."""
    stats = storage.get_pool_stats(pool.name)
    assert stats is not None
    return (
        stats.total_proxies,
        stats.active_proxies,
        stats.available_proxies,
        stats.leased_proxies,
        stats.total_leases,
    )
