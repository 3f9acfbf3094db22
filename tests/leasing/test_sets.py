"""A manager leases several proxies at once, tells of each, and gives all of them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pharox import (
    AcquireEventPayload,
    ConflictError,
    ExpireEventPayload,
    InMemoryStorage,
    InvalidInputError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    MissReason,
    ProxyFilters,
    ProxyManager,
    ReleaseEventPayload,
    new_lease_id,
)
from pharox.events import AcquireMissed, LeaseAcquired, LeaseReleased
from pharox.manager.leasing import CALLBACK_FAILED
from pharox.storage.memory.release import release
from tests.conftest import AnyStorage, Broken, breaks, clock_of, fill, types_of


def nothing_is_leased(storage: AnyStorage) -> bool:
    stats = storage.get_pool_stats("pool")
    assert stats is not None
    return stats.total_leases == 0


# What is leased


def test_a_set_is_on_different_proxies(any_storage: AnyStorage) -> None:
    """Three leases are on three proxies, and all end together."""
    fill(any_storage, 3, max_concurrency=5)
    manager = ProxyManager(any_storage)
    leases = manager.acquire_proxies("pool", 3, "crawler", 60)
    assert len({lease.proxy_id for lease in leases}) == 3
    assert {lease.consumer_name for lease in leases} == {"crawler"}
    tokens = [lease.fencing_token for lease in leases]
    assert tokens == sorted(tokens, key=lambda token: token or 0)
    manager.release_proxies(leases)
    assert {lease.status for lease in leases} == {LeaseStatus.RELEASED}
    assert any_storage.verify() == []


def test_one_proxy_may_be_leased_several_times(any_storage: AnyStorage) -> None:
    """With ``distinct=False`` the first proxy is leased as often as it may be."""
    fill(any_storage, 2, max_concurrency=2)
    leases = ProxyManager(any_storage).acquire_proxies("pool", 3, distinct=False)
    proxies = [lease.proxy_id for lease in leases]
    assert proxies[0] == proxies[1] != proxies[2]


def test_too_few_is_a_miss(any_storage: AnyStorage) -> None:
    """Nothing is leased, and the one callback hears why."""
    fill(any_storage, 2)
    manager, told = ProxyManager(any_storage), list[AcquireEventPayload]()
    manager.register_acquire_callback(told.append)
    assert manager.acquire_proxies("pool", 3) == []
    (payload,) = told
    assert (payload.lease, payload.miss_reason) == (None, MissReason.TOO_FEW)
    assert payload.pool_stats is not None
    assert payload.pool_stats.total_leases == 0
    assert nothing_is_leased(any_storage)


def test_fewer_will_do(any_storage: AnyStorage) -> None:
    """With ``at_least`` a set is as great as it can be."""
    fill(any_storage, 2)
    assert len(ProxyManager(any_storage).acquire_proxies("pool", 3, at_least=1)) == 2


def test_a_miss_of_a_set_is_one_event() -> None:
    """It says how many were asked for and how many were free; no lease is in the log."""
    storage = InMemoryStorage()
    fill(storage, 2)
    manager = ProxyManager(storage)
    before = len(types_of(storage))
    assert manager.acquire_proxies("pool", 5) == []
    *_, miss = storage.events()
    assert isinstance(miss, AcquireMissed)
    assert (miss.count, miss.free, miss.reason) == (5, 2, MissReason.TOO_FEW)
    assert types_of(storage)[before:] == ["ConsumerRegistered", "AcquireMissed"]
    manager.acquire_proxies("pool", 2)
    assert manager.acquire_proxies("pool", 2) == []
    *_, miss = storage.events()
    assert isinstance(miss, AcquireMissed)
    assert (miss.count, miss.free, miss.reason) == (2, 0, MissReason.AT_CAPACITY)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 2, "at_least": 3}])
def test_a_set_must_make_sense(any_storage: AnyStorage, wrong: dict[str, Any]) -> None:
    """A set that nobody could be granted is refused, and nothing is recorded."""
    fill(any_storage, 2)
    before = types_of(any_storage)
    with pytest.raises(InvalidInputError):
        ProxyManager(any_storage).acquire_proxies("pool", **wrong)
    assert types_of(any_storage) == before


# Callbacks


def test_each_lease_is_told_of(any_storage: AnyStorage) -> None:
    """A set of two has two payloads for its acquisition and two for its release."""
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    acquired, released = list[AcquireEventPayload](), list[ReleaseEventPayload]()
    manager.register_acquire_callback(acquired.append)
    manager.register_release_callback(released.append)
    with manager.with_leases("pool", 2) as leases:
        assert [payload.lease for payload in acquired] == leases
        stats = [payload.pool_stats for payload in acquired]
        assert [each and each.total_leases for each in stats] == [1, 2]
    assert [payload.lease for payload in released] == leases
    stats = [payload.pool_stats for payload in released]
    assert [each and each.total_leases for each in stats] == [1, 0]


def test_what_ran_out_is_told_of_once(any_storage: AnyStorage) -> None:
    """A set that takes back two leases tells of each once."""
    fill(any_storage, 2)
    clock = clock_of(any_storage)
    manager, told = ProxyManager(any_storage), list[ExpireEventPayload]()
    manager.register_expire_callback(told.append)
    manager.acquire_proxies("pool", 2, duration_seconds=5)
    clock.advance(6)
    assert len(manager.acquire_proxies("pool", 2)) == 2
    assert len({payload.lease.id for payload in told}) == len(told) == 2


def test_a_raising_callback_gives_the_whole_set_back(any_storage: AnyStorage) -> None:
    """Both leases are given back with that reason, and the exception arrives."""
    fill(any_storage, 2)
    manager, released = ProxyManager(any_storage), list[ReleaseEventPayload]()
    manager.register_acquire_callback(breaks)
    manager.register_release_callback(released.append)
    with pytest.raises(ExceptionGroup) as raised:
        manager.acquire_proxies("pool", 2)
    assert [type(error) for error in raised.value.exceptions] == [Broken, Broken]
    assert [payload.reason for payload in released] == [CALLBACK_FAILED] * 2
    assert nothing_is_leased(any_storage)


def test_an_interrupt_gives_the_whole_set_back(any_storage: AnyStorage) -> None:
    """KeyboardInterrupt in a callback goes through after both leases are given back."""
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    manager.register_acquire_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire_proxies("pool", 2)
    assert types_of(any_storage)[-2:] == ["LeaseReleased", "LeaseReleased"]


def test_a_raising_release_callback_keeps_no_lease(any_storage: AnyStorage) -> None:
    """All leases end although a callback raises for each."""
    fill(any_storage, 3)
    manager = ProxyManager(any_storage)
    leases = manager.acquire_proxies("pool", 3)
    manager.register_release_callback(breaks)
    with pytest.raises(ExceptionGroup):
        manager.release_proxies(leases)
    assert {lease.status for lease in leases} == {LeaseStatus.RELEASED}


def test_a_release_that_fails_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other leases are given back and told of, and then its error is raised."""
    storage = InMemoryStorage()
    fill(storage, 3)
    manager, told = ProxyManager(storage), list[ReleaseEventPayload]()
    manager.register_release_callback(told.append)
    leases = manager.acquire_proxies("pool", 3)

    def failing(state: Any, request: Any, now: Any) -> Any:
        if request.lease is leases[1]:
            raise Broken
        return release(state, request, now)

    monkeypatch.setattr("pharox.storage.memory.batch.release", failing)
    with pytest.raises(Broken):
        manager.release_proxies(leases)
    assert [payload.lease for payload in told] == [leases[0], leases[2]]
    assert [lease.status for lease in leases] == ["released", "active", "released"]


# The block


def test_a_block_gives_back_what_it_was_given(any_storage: AnyStorage) -> None:
    """All leases end with the block, also those that it took out of its list."""
    fill(any_storage, 2)
    with ProxyManager(any_storage).with_leases("pool", 2) as leases:
        leases.pop()
    assert nothing_is_leased(any_storage)


def test_a_block_without_leases_runs(any_storage: AnyStorage) -> None:
    """Too few is an empty list here as well, and nothing is given back."""
    fill(any_storage, 1)
    with ProxyManager(any_storage).with_leases("pool", 2) as leases:
        assert leases == []


def test_the_blocks_exception_is_the_one_that_arrives(any_storage: AnyStorage) -> None:
    """The block's exception wins, and those of callbacks are noted on it."""
    fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    manager.register_release_callback(breaks)
    with pytest.raises(ZeroDivisionError) as raised, manager.with_leases("pool", 2):
        _ = 1 / 0
    assert any("releases failed" in note for note in raised.value.__notes__)
    assert nothing_is_leased(any_storage)


def test_overridden_methods_are_the_ones_that_are_called() -> None:
    """A block acquires and releases by its manager's own methods."""
    storage, called = InMemoryStorage(), list[str]()
    fill(storage, 2)

    class Counting(ProxyManager):
        def acquire_proxies(self, *args: Any, **options: Any) -> list[Lease]:
            called.append("acquire")
            return super().acquire_proxies(*args, **options)

        def release_proxies(self, leases: Any, outcomes: Any = None) -> None:
            called.append("release")
            super().release_proxies(leases, outcomes)

    with Counting(storage).with_leases("pool", 2):
        pass
    assert called == ["acquire", "release"]


# Under ids of the caller's; in PostgreSQL once it decides a set in one go


@pytest.fixture
def memory() -> InMemoryStorage:
    storage = InMemoryStorage()
    fill(storage, 4)
    return storage


def test_asking_again_returns_the_same_set(memory: InMemoryStorage) -> None:
    """Also where nothing else is free: it is granted once, and no callback takes it away."""
    manager, ids = ProxyManager(memory), [new_lease_id() for _ in range(4)]
    first = manager.acquire_proxies("pool", 4, lease_ids=ids)
    assert [lease.id for lease in first] == ids
    assert manager.acquire_proxies("pool", 4, lease_ids=ids) == first
    assert types_of(memory).count("LeaseAcquired") == 4
    manager.register_acquire_callback(breaks)
    with pytest.raises(ExceptionGroup):
        manager.acquire_proxies("pool", 4, lease_ids=ids)
    assert types_of(memory).count("LeaseReleased") == 0


def test_a_smaller_set_stays_as_it_is(memory: InMemoryStorage) -> None:
    """What was granted under the first ids is the answer, also when more is free by then."""
    manager, ids = ProxyManager(memory), [new_lease_id() for _ in range(3)]
    others = manager.acquire_proxies("pool", 2)
    first = manager.acquire_proxies("pool", 3, at_least=2, lease_ids=ids)
    assert [lease.id for lease in first] == ids[:2]
    manager.release_proxies(others)
    assert manager.acquire_proxies("pool", 3, at_least=2, lease_ids=ids) == first
    with pytest.raises(ConflictError, match="2 leases have ids of this set, which needs 3"):
        manager.acquire_proxies("pool", 3, lease_ids=ids)


def test_an_id_of_somebody_elses_is_refused(memory: InMemoryStorage) -> None:
    """Nobody is handed another consumer's lease, and nothing new is leased."""
    manager, mine = ProxyManager(memory), new_lease_id()
    manager.acquire_proxy("pool", "other", lease_id=mine)
    with pytest.raises(ConflictError):
        manager.acquire_proxies("pool", 2, lease_ids=[mine, new_lease_id()])
    assert types_of(memory).count("LeaseAcquired") == 1


@pytest.mark.parametrize("how", ["released", "expired"])
def test_a_set_with_an_ended_lease_has_ended(memory: InMemoryStorage, how: str) -> None:
    """An id whose lease has ended is used up, in a set as alone."""
    clock = clock_of(memory)
    manager, ids = ProxyManager(memory), [new_lease_id() for _ in range(2)]
    leases = manager.acquire_proxies("pool", 2, duration_seconds=60, lease_ids=ids)
    does: dict[str, Callable[[], None]] = {
        "released": lambda: manager.release_proxy(leases[1]),
        "expired": lambda: clock.advance(61),
    }
    does[how]()
    with pytest.raises(LeaseEndedError, match=how):
        manager.acquire_proxies("pool", 2, lease_ids=ids)
    assert types_of(memory).count("LeaseAcquired") == 2


def test_the_log_tells_ids_of_the_callers_from_others(memory: InMemoryStorage) -> None:
    """Alone or in a set, only a lease under an id that its caller chose says so."""
    manager = ProxyManager(memory)
    manager.acquire_proxy("pool", lease_id=new_lease_id())
    manager.acquire_proxies("pool", 1, lease_ids=[new_lease_id()])
    manager.acquire_proxies("pool", 2)
    acquired = [event for event in memory.events() if isinstance(event, LeaseAcquired)]
    assert [event.own_id for event in acquired] == [True, True, False, False]


def test_a_miss_uses_no_id_up(memory: InMemoryStorage) -> None:
    """After a miss the ids are as good as new."""
    manager, ids = ProxyManager(memory), [new_lease_id() for _ in range(4)]
    with manager.with_lease("pool"):
        assert manager.acquire_proxies("pool", 4, lease_ids=ids) == []
    assert len(manager.acquire_proxies("pool", 4, lease_ids=ids)) == 4


def test_events_say_what_was_asked_for(memory: InMemoryStorage) -> None:
    """Each lease of a set has its own event, and each release its reason."""
    manager = ProxyManager(memory)
    leases = manager.acquire_proxies("pool", 2, filters=None)
    memory.return_leases(leases, reason="done")
    acquired = [event for event in memory.events() if isinstance(event, LeaseAcquired)]
    released = [event for event in memory.events() if isinstance(event, LeaseReleased)]
    assert [event.lease_id for event in acquired] == [lease.id for lease in leases]
    assert [event.position for event in acquired] == [lease.fencing_token for lease in leases]
    assert [event.reason for event in released] == ["done", "done"]


def test_a_set_with_a_predicate_is_as_large_as_it_can_be(any_storage: AnyStorage) -> None:
    """It is looked for on further pages also when the first has as few as would do."""
    _, proxies = fill(any_storage, 1200)
    some = {proxy.host for proxy in proxies[::300]}
    rare = ProxyFilters(predicate=lambda proxy: proxy.host in some)
    leases = ProxyManager(any_storage).acquire_proxies("pool", 4, filters=rare, at_least=1)
    assert len(leases) == 4 == len(some)


def test_a_set_with_a_predicate_is_had_with_as_few_as_will_do(any_storage: AnyStorage) -> None:
    """What was leased is the answer, and not lost because there was no more."""
    fill(any_storage, 1)
    anything = ProxyFilters(predicate=lambda proxy: True)
    manager = ProxyManager(any_storage)
    leases = manager.acquire_proxies("pool", 2, filters=anything, at_least=1, distinct=False)
    assert len(leases) == 1
    assert types_of(any_storage).count("LeaseAcquired") == 1
    assert "AcquireMissed" not in types_of(any_storage)
