"""A handle of a pool leases with a worker's defaults, and a miss of it is an error."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import (
    AcquireEventPayload,
    DatabaseUnavailableError,
    InMemoryStorage,
    InvalidInputError,
    InvalidLeaseError,
    Lease,
    LeaseEndedError,
    LeaseLostError,
    LeaseStatus,
    MissReason,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    ProxyUnavailableError,
    SelectorStrategy,
    new_lease_id,
)
from tests.conftest import AnyStorage, clock_of, fill, threads, types_of
from tests.leasing.test_keeping import end, kept_by

OVERRIDES = st.fixed_dictionaries(
    {},
    optional={
        "consumer": st.sampled_from([None, "a", "b"]),
        "duration_seconds": st.integers(1, 10_000),
        "filters": st.sampled_from([None, ProxyFilters(), ProxyFilters(country="AR")]),
        "selector": st.sampled_from([None, *SelectorStrategy]),
        "keep_alive": st.booleans(),
    },
)


def held_for(lease: Lease) -> float:
    """Return a lease's duration in seconds."""
    return (lease.expires_at - lease.acquired_at).total_seconds()


def missed(storage: AnyStorage, **options: Any) -> ProxyUnavailableError:
    """Return the error of a handle that finds nothing."""
    options = {"wait_seconds": None, **options}
    pool = ProxyManager(storage).pool(options.pop("pool_name", "pool"))
    with pytest.raises(ProxyUnavailableError) as raised, pool.lease(**options):
        pass
    return raised.value


# What is leased


def test_a_block_holds_a_lease_with_the_defaults(any_storage: AnyStorage) -> None:
    """It lasts 60 seconds, is kept alive, belongs to the consumer, and is released."""
    fill(any_storage, 1)
    pool = ProxyManager(any_storage).pool("pool", consumer="crawler-7")
    with pool.lease() as lease:
        assert (lease.consumer_name, held_for(lease)) == ("crawler-7", 60)
        assert kept_by(any_storage) == 1
        assert lease.proxy.url.startswith("http://")
    assert kept_by(any_storage) == 0
    assert lease.status is LeaseStatus.RELEASED
    assert any_storage.verify() == []


def test_a_call_may_differ(any_storage: AnyStorage) -> None:
    """Options of a call replace those of the handle for this call alone, None included."""
    fill(any_storage, 1, country="AR")
    pool = ProxyManager(any_storage).pool("pool", consumer="a", filters=ProxyFilters(country="CL"))
    with pool.lease(consumer=None, duration_seconds=5, filters=None, keep_alive=False) as lease:
        assert (lease.consumer_name, held_for(lease)) == ("default", 5)
        assert kept_by(any_storage) == 0
    with pytest.raises(ProxyUnavailableError, match="no_match"), pool.lease():
        pass


def test_a_set_is_never_empty(any_storage: AnyStorage) -> None:
    """It is as great as it can be with ``at_least``, and all of it is released."""
    fill(any_storage, 3)
    pool = ProxyManager(any_storage).pool("pool", consumer="w")
    with pool.leases(5, at_least=2) as leases:
        assert len({lease.proxy_id for lease in leases}) == 3
        assert kept_by(any_storage) == 3
        held = [*leases]
        leases.clear()
    assert {lease.status for lease in held} == {LeaseStatus.RELEASED}
    with pool.leases(2, distinct=False, consumer="other", duration_seconds=7) as leases:
        assert [(x.consumer_name, held_for(x)) for x in leases] == [("other", 7)] * 2


def test_an_id_is_leased_once(any_storage: AnyStorage) -> None:
    """The caller's ids are those of the leases, and cannot be leased again."""
    fill(any_storage, 2)
    pool, ids = ProxyManager(any_storage).pool("pool"), [new_lease_id(), new_lease_id()]
    with pool.leases(2, lease_ids=ids) as leases:
        assert [lease.id for lease in leases] == ids
    with pytest.raises(LeaseEndedError), pool.lease(lease_id=ids[0]):
        pass


def test_a_client_has_the_defaults(any_storage: AnyStorage) -> None:
    """It leases as the handle does, and its miss is the same error."""
    fill(any_storage, 1)
    pool = ProxyManager(any_storage).pool(
        "pool", wait_seconds=None, consumer="w", duration_seconds=30
    )
    with pool.client(client_options={"timeout": 3}) as client:
        assert (client.lease.consumer_name, held_for(client.lease)) == ("w", 30)
        assert kept_by(any_storage) == 1
        with pytest.raises(ProxyUnavailableError) as raised:
            pool.client(consumer="other")
        assert raised.value.reason == MissReason.AT_CAPACITY
        assert raised.value.retry_after_seconds is not None
    assert client.lease.status is LeaseStatus.RELEASED


def test_a_lost_lease_is_told_at_the_end(any_storage: AnyStorage) -> None:
    """As the handle says, unless the call says otherwise."""
    fill(any_storage, 1)
    pool = ProxyManager(any_storage).pool("pool", duration_seconds=1)

    def lose(**options: Any) -> None:
        told = threading.Event()
        pool._manager.register_lost_callback(lambda _: told.set())
        with pool.lease(**options) as lease:
            end(any_storage, lease)
            assert told.wait(10)

    with pytest.raises(LeaseLostError):
        lose()
    lose(on_lost="tell")


def test_an_exception_of_the_block_releases(any_storage: AnyStorage) -> None:
    """It reaches the caller as it is, and the lease is given back."""
    fill(any_storage, 1)
    with pytest.raises(ZeroDivisionError), ProxyManager(any_storage).pool("pool").lease() as lease:
        raise ZeroDivisionError
    assert lease.status is LeaseStatus.RELEASED


def test_threads_share_a_handle(any_storage: AnyStorage) -> None:
    """Each has a lease of its own, with its own consumer."""
    fill(any_storage, 8)
    pool, names = ProxyManager(any_storage).pool("pool"), list[str | None]()

    def work(n: int) -> None:
        with pool.lease(consumer=f"w{n}") as lease:
            names.append(lease.consumer_name)

    threads(8, work)
    assert sorted(filter(None, names)) == [f"w{n}" for n in range(8)]


# Misses


def test_a_miss_says_why(any_storage: AnyStorage) -> None:
    """Each reason is the event's; waiting for a lease helps only at capacity."""
    fill(any_storage, 0, name="empty")
    fill(any_storage, 1, name="banned", status=ProxyStatus.BANNED)
    fill(any_storage, 1)
    errors = {
        MissReason.UNKNOWN_POOL: missed(any_storage, pool_name="nowhere"),
        MissReason.EMPTY_POOL: missed(any_storage, pool_name="empty"),
        MissReason.NONE_HEALTHY: missed(any_storage, pool_name="banned"),
        MissReason.NO_MATCH: missed(any_storage, filters=ProxyFilters(country="NZ")),
    }
    assert {reason: error.reason for reason, error in errors.items()} == {x: x for x in errors}
    assert {error.retry_after_seconds for error in errors.values()} == {None}
    assert str(errors[MissReason.UNKNOWN_POOL]) == "There is no pool 'nowhere'."
    assert str(errors[MissReason.EMPTY_POOL]) == "Pool 'empty' has no free proxy: empty_pool."
    assert types_of(any_storage).count("AcquireMissed") == 4


def test_a_miss_says_when_the_next_lease_runs_out(any_storage: AnyStorage) -> None:
    """The earliest of the pool's active leases counts, by the storage's clock."""
    clock = clock_of(any_storage)
    fill(any_storage, 2)
    fill(any_storage, 1, name="other")
    manager = ProxyManager(any_storage)
    for pool_name, seconds in (("other", 5), ("pool", 90), ("pool", 40)):
        assert manager.acquire_proxy(pool_name, "w", seconds) is not None
    clock.advance(10)
    error = missed(any_storage)
    assert (error.reason, error.retry_after_seconds) == (MissReason.AT_CAPACITY, 30)
    assert any_storage.seconds_to_next_expiry("other") == 0
    assert any_storage.seconds_to_next_expiry("nowhere") is None
    assert error.waited_seconds is None
    assert "waiting" not in str(error)
    waited = missed(any_storage, wait_seconds=0.01)
    assert waited.waited_seconds is not None
    assert f"has no free proxy after {waited.waited_seconds:.1f} s of waiting: " in str(waited)
    clock.advance(31)
    with manager.pool("pool", wait_seconds=None).lease(keep_alive=False):
        assert missed(any_storage).retry_after_seconds == 49


def test_a_set_says_how_many_were_free(any_storage: AnyStorage) -> None:
    """A set that is too great is a miss with the number of free proxies."""
    fill(any_storage, 3)
    pool = ProxyManager(any_storage).pool("pool", wait_seconds=None, duration_seconds=1000)
    with pool.lease(), pytest.raises(ProxyUnavailableError) as raised, pool.leases(4, at_least=3):
        pass
    error = raised.value
    assert (error.reason, error.data["free"]) == (MissReason.TOO_FEW, 2)
    assert str(error) == "Pool 'pool' has only 2 free: too_few."
    assert error.retry_after_seconds is not None
    assert 0 < error.retry_after_seconds <= 1000


def test_callbacks_hear_of_a_miss(any_storage: AnyStorage) -> None:
    """Before the error is raised, once."""
    fill(any_storage, 0)
    manager, told = ProxyManager(any_storage), list[AcquireEventPayload]()
    manager.register_acquire_callback(told.append)
    with pytest.raises(ProxyUnavailableError), manager.pool("pool").lease():
        pass
    assert [payload.miss_reason for payload in told] == [MissReason.EMPTY_POOL]


def test_a_miss_stays_a_miss_when_the_database_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be asked any more is unknown."""
    storage = InMemoryStorage()
    fill(storage, 1)

    def away(*_: object) -> float:
        raise DatabaseUnavailableError("gone")

    monkeypatch.setattr(storage, "seconds_to_next_change", away)
    with ProxyManager(storage).pool("pool", wait_seconds=None).lease():
        error = missed(storage)
    assert (error.reason, error.retry_after_seconds) == (MissReason.AT_CAPACITY, None)


# The handle itself


def test_a_handle_asks_nothing_and_cannot_be_changed(any_storage: AnyStorage) -> None:
    """Making one is no command, its pool may come later, and its defaults stay."""
    pool = ProxyManager(any_storage).pool("pool", consumer="w")
    assert types_of(any_storage) == []
    with pytest.raises(AttributeError):
        pool.pool_name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        pool.options["consumer"] = "other"  # type: ignore[index]
    fill(any_storage, 1)
    with pool.lease() as lease:
        assert lease.consumer_name == "w"


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        ({"pool_name": ""}, InvalidInputError, "pool name"),
        ({"pool_name": 5}, InvalidInputError, "pool name"),
        ({"consumer": 5}, InvalidInputError, "consumer name"),
        ({"duration_seconds": -1}, InvalidLeaseError, "duration_seconds"),
        ({"duration_seconds": "60"}, InvalidLeaseError, "duration_seconds"),
        ({"filters": {"country": "AR"}}, InvalidInputError, "filters"),
        ({"selector": "fastest"}, ValueError, "fastest"),
        ({"keep_alive": "yes"}, InvalidInputError, "keep_alive"),
        ({"wait_seconds": -1}, InvalidInputError, "wait_seconds must not be negative"),
        ({"wait_seconds": "30"}, InvalidInputError, "wait_seconds"),
        ({"on_lost": "ignore"}, InvalidInputError, "on_lost"),
        ({"keepalive": True}, TypeError, "keepalive"),
        ({"consumer_name": "w"}, TypeError, "consumer_name"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], error: type[Exception], named: str) -> None:
    """A wrong value or name is refused when the handle is made, and by a call of a right one."""
    storage = InMemoryStorage()
    fill(storage, 1)
    manager = ProxyManager(storage)
    with pytest.raises(error, match=named):
        manager.pool(**{"pool_name": "pool", **wrong})
    if "pool_name" in wrong:
        return
    with pytest.raises(error, match=named), manager.pool("pool").lease(**wrong):
        pass
    with pytest.raises(error, match=named), manager.pool("pool").leases(1, **wrong):
        pass
    if "on_lost" not in wrong:
        with pytest.raises(error, match=named):
            manager.pool("pool").client(**wrong)
    assert "LeaseAcquired" not in types_of(storage)


@given(of_handle=OVERRIDES, of_call=OVERRIDES)
def test_a_handle_leases_as_the_manager_does(
    of_handle: dict[str, Any], of_call: dict[str, Any]
) -> None:
    """Whatever is given where, the lease is that of ``with_lease`` with both together."""
    found = []
    for use_handle in (True, False):
        storage = InMemoryStorage()
        clock_of(storage)
        fill(storage, 1, country="AR")
        manager = ProxyManager(storage)
        known = {"duration_seconds": 60, "keep_alive": True, **of_handle, **of_call}
        with ExitStack() as stack:
            if use_handle:
                lease = stack.enter_context(manager.pool("pool", **of_handle).lease(**of_call))
            else:
                consumer = known.pop("consumer", None)
                other = stack.enter_context(manager.with_lease("pool", consumer, **known))
                assert other is not None
                lease = other
            (*_, event) = storage.events()
            shown = event.model_dump(
                include={"type", "consumer", "expires_at", "selector", "filters"}
            )
            found.append((shown, held_for(lease), kept_by(storage)))
    assert found[0] == found[1]
