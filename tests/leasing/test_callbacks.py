"""Callbacks get what was recorded, and one that raises does no harm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pharox import (
    AcquireEventPayload,
    ExpireEventPayload,
    InMemoryStorage,
    LeaseStatus,
    MissReason,
    PoolStatsSnapshot,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    ReleaseEventPayload,
    SelectorStrategy,
)
from pharox.events import LeaseReleased
from pharox.manager.leasing import CALLBACK_FAILED
from pharox.storage.memory.state import State
from tests.conftest import AnyStorage, Broken, breaks, clock_of, fill, types_of


def test_an_acquisition_is_told_with_the_statistics_after_it(any_storage: AnyStorage) -> None:
    """The payload has the lease, what was asked for, the duration and the new statistics."""
    fill(any_storage, 2)
    manager, told = ProxyManager(any_storage), list[AcquireEventPayload]()
    manager.register_acquire_callback(told.append)
    filters = ProxyFilters(none_of=[ProxyFilters(country="AR")])
    lease = manager.acquire_proxy("pool", "worker", 60, filters, SelectorStrategy.LEAST_USED)
    (payload,) = told
    assert payload.lease == lease
    assert (payload.pool_name, payload.consumer_name) == ("pool", "worker")
    assert (payload.filters, payload.selector) == (filters, SelectorStrategy.LEAST_USED)
    assert payload.started_at <= payload.completed_at
    assert payload.pool_stats is not None
    assert payload.pool_stats.available_proxies == 1
    assert payload.pool_stats == any_storage.get_pool_stats("pool").model_copy(  # type: ignore[union-attr]
        update={"collected_at": payload.pool_stats.collected_at}
    )


@pytest.mark.parametrize(
    ("facts", "filters", "reason"),
    [
        ({"count": 0}, None, MissReason.EMPTY_POOL),
        ({"status": ProxyStatus.BANNED}, None, MissReason.NONE_HEALTHY),
        ({"status": ProxyStatus.SLOW}, None, MissReason.NONE_HEALTHY),
        ({}, ProxyFilters(country="AR"), MissReason.NO_MATCH),
        ({}, ProxyFilters(predicate=lambda _: False), MissReason.NO_MATCH),
        ({"count": 0}, ProxyFilters(predicate=lambda _: True), MissReason.EMPTY_POOL),
        (
            {"status": ProxyStatus.BANNED},
            ProxyFilters(predicate=lambda _: True),
            MissReason.NONE_HEALTHY,
        ),
    ],
)
def test_a_miss_says_why(
    any_storage: AnyStorage, facts: dict[str, object], filters: ProxyFilters, reason: MissReason
) -> None:
    """A miss is recorded with its reason, which callbacks get: empty, no match, none healthy."""
    fill(any_storage, **facts)  # type: ignore[arg-type]
    manager, told = ProxyManager(any_storage), list[AcquireEventPayload]()
    manager.register_acquire_callback(told.append)
    assert manager.acquire_proxy("pool", filters=filters) is None
    assert [payload.miss_reason for payload in told] == [reason]
    *_, event = any_storage.events()
    assert event.model_dump()["reason"] == reason


def test_a_miss_for_want_of_room_says_so(any_storage: AnyStorage) -> None:
    """With everything leased, and in an unknown pool, a miss says which of the two."""
    fill(any_storage, 1)
    manager, told = ProxyManager(any_storage), list[AcquireEventPayload]()
    assert manager.acquire_proxy("pool") is not None
    manager.register_acquire_callback(told.append)
    for filters in (None, ProxyFilters(predicate=lambda _: True)):
        assert manager.acquire_proxy("pool", filters=filters) is None
    assert manager.acquire_proxy("nowhere") is None
    assert [payload.miss_reason for payload in told] == [
        MissReason.AT_CAPACITY,
        MissReason.AT_CAPACITY,
        MissReason.UNKNOWN_POOL,
    ]
    assert told[2].pool_stats is None


def test_a_release_is_told_as_recorded(any_storage: AnyStorage) -> None:
    """The payload has the recorded end, the duration and the statistics; a second one none."""
    fill(any_storage)
    clock = clock_of(any_storage)
    manager, told = ProxyManager(any_storage), list[ReleaseEventPayload]()
    manager.register_release_callback(told.append)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    clock.advance(1.5)
    manager.release_proxy(lease)
    manager.release_proxy(lease)
    (payload,) = told
    assert payload.lease == lease
    assert (payload.released_at, payload.lease_duration_ms) == (clock.now, 1500)
    assert payload.pool_stats is not None
    assert payload.pool_stats.available_proxies == 1
    assert types_of(any_storage).count("LeaseReleased") == 1


@pytest.mark.parametrize("how", ["clean up", "acquire", "late release"])
def test_an_expiry_is_told_to_who_found_it(any_storage: AnyStorage, how: str) -> None:
    """The callbacks of the process that takes an expired lease back get it once, as EXPIRED."""
    fill(any_storage)
    clock = clock_of(any_storage)
    manager, told = ProxyManager(any_storage), list[ExpireEventPayload]()
    manager.register_expire_callback(told.append)
    lease = manager.acquire_proxy("pool", duration_seconds=5)
    assert lease is not None
    clock.advance(5)
    does: dict[str, Callable[[], object]] = {
        "clean up": manager.cleanup_expired_leases,
        "acquire": lambda: manager.acquire_proxy("pool"),
        "late release": lambda: manager.release_proxy(lease),
    }
    does[how]()
    manager.release_proxy(lease)
    (payload,) = told
    assert payload.lease.id == lease.id
    assert payload.lease.status is LeaseStatus.EXPIRED
    assert (payload.expired_at, payload.lease_duration_ms) == (clock.now, 5000)
    assert payload.pool_stats is not None
    assert types_of(any_storage).count("LeaseExpired") == 1
    assert types_of(any_storage).count("LeaseReleased") == 0
    assert lease.status is LeaseStatus.EXPIRED


def test_a_raising_acquire_callback_leaves_nothing_leased(any_storage: AnyStorage) -> None:
    """The others still run, the lease is given back with that reason, the exception arrives."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    told, released = list[AcquireEventPayload](), list[ReleaseEventPayload]()
    manager.register_acquire_callback(breaks)
    manager.register_acquire_callback(told.append)
    manager.register_release_callback(released.append)
    with pytest.raises(Broken):
        manager.acquire_proxy("pool")
    assert len(told) == 1
    assert [payload.reason for payload in released] == [CALLBACK_FAILED]
    *_, event = any_storage.events()
    assert isinstance(event, LeaseReleased)
    assert event.reason == CALLBACK_FAILED
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert stats.total_leases == 0


def test_several_exceptions_arrive_together(any_storage: AnyStorage) -> None:
    """Two raising callbacks reach the caller as one ExceptionGroup."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    manager.register_acquire_callback(breaks)
    manager.register_acquire_callback(breaks)
    with pytest.raises(ExceptionGroup) as raised:
        manager.acquire_proxy("pool")
    assert [type(error) for error in raised.value.exceptions] == [Broken, Broken]


def test_an_interrupt_in_a_callback_leaves_nothing_leased(any_storage: AnyStorage) -> None:
    """KeyboardInterrupt in a callback goes through at once, after the lease is given back."""
    fill(any_storage)
    manager = ProxyManager(any_storage)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    manager.register_acquire_callback(interrupt)
    with pytest.raises(KeyboardInterrupt):
        manager.acquire_proxy("pool")
    assert types_of(any_storage)[-1] == "LeaseReleased"


def test_a_raising_expire_callback_gives_back_what_was_granted(any_storage: AnyStorage) -> None:
    """An expiry found while acquiring whose callback raises costs the caller the lease as well."""
    fill(any_storage)
    clock = clock_of(any_storage)
    manager = ProxyManager(any_storage)
    manager.acquire_proxy("pool", duration_seconds=1)
    clock.advance(2)
    manager.register_expire_callback(breaks)
    with pytest.raises(Broken):
        manager.acquire_proxy("pool")
    assert types_of(any_storage)[-3:] == ["LeaseExpired", "LeaseAcquired", "LeaseReleased"]


def test_a_raising_release_callback_does_not_undo_the_release(any_storage: AnyStorage) -> None:
    """The lease is released although a callback raises, and the exception arrives."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    manager.register_release_callback(breaks)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    with pytest.raises(Broken):
        manager.release_proxy(lease)
    assert lease.status is LeaseStatus.RELEASED


def test_the_bodys_exception_is_the_one_that_arrives(any_storage: AnyStorage) -> None:
    """Inside ``with_lease`` the body's exception wins; the callback's is noted on it."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    manager.register_release_callback(breaks)
    with pytest.raises(ZeroDivisionError) as raised, manager.with_lease("pool"):
        _ = 1 / 0
    assert any("Broken" in note for note in raised.value.__notes__)
    with pytest.raises(Broken), manager.with_lease("pool"):
        pass
    assert types_of(any_storage).count("LeaseReleased") == 2


def test_callbacks_run_in_order_of_registration() -> None:
    """Callbacks run one after the other, in the order in which they were registered."""
    storage, order = InMemoryStorage(), list[int]()
    fill(storage)
    manager = ProxyManager(storage)
    for number in range(3):
        manager.register_acquire_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
    manager.acquire_proxy("pool")
    assert order == [0, 1, 2]


def test_statistics_are_read_only_for_listeners(any_storage: AnyStorage) -> None:
    """Without a callback nothing asks for statistics."""
    fill(any_storage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PoolStatsSnapshot, "__init__", breaks)
        patch.setattr(State, "stats", breaks)
        manager = ProxyManager(any_storage)
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease)
