"""A proxy rests after a lease has ended: whoever had the lease may still be using it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from pharox import (
    Lease,
    MissReason,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyUnavailableError,
    SelectorStrategy,
)
from pharox.events import AcquireMissed, LeaseEnd
from pharox.ledger.rebuild import rebuild
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import (
    AcquireRequest,
    AcquireSetRequest,
    ReleaseRequest,
    SetAcquisition,
)
from tests.conftest import AnyStorage, clock_of, fill
from tests.database.test_fencing import application

FILTERS = (None, ProxyFilters(country="AR"), ProxyFilters(predicate=lambda _: True))


def resting(storage: IStorage, count: int = 1, **rests: Any) -> ProxyManager:
    """Fill a pool whose proxies rest, and return a manager."""
    pool, _ = fill(storage, count, country="AR", **rests.pop("facts", {}))
    storage.save_pool(pool.model_copy(update=rests))
    return ProxyManager(storage)


def leased(manager: ProxyManager, seconds: int = 60) -> Lease:
    """Lease a proxy that is free."""
    lease = manager.acquire_proxy("pool", "w", seconds)
    assert lease is not None
    return lease


def why_not(storage: IStorage, **wishes: Any) -> MissReason | None:
    """Return why nothing was granted."""
    found = storage.acquire_lease(AcquireRequest("pool", "w", 60, **wishes))
    assert found.lease is None
    return found.miss_reason


@pytest.mark.parametrize("ends", ["release", "expiry", "revocation"])
def test_a_proxy_rests_after_a_lease(any_storage: AnyStorage, ends: str) -> None:
    """For nobody and no selector it is free before; a revoked lease counts as one that ran out."""
    clock = clock_of(any_storage)
    manager = resting(any_storage, rest_after_release_seconds=10, rest_after_expiry_seconds=99.5)
    lease, seconds = leased(manager), 99.5
    if ends == "release":
        manager.release_proxy(lease)
        seconds = 10
    elif ends == "revocation":
        manager.revoke_lease(lease.id, "why")
    else:
        clock.advance(60)
        assert manager.cleanup_expired_leases() == 1
    event = list(any_storage.events())[-1]
    assert isinstance(event, LeaseEnd)
    assert event.rests_until == clock.now + timedelta(seconds=seconds)
    clock.advance(seconds - 0.001)
    for selector in SelectorStrategy:
        for filters in FILTERS:
            assert why_not(any_storage, selector=selector, filters=filters) is MissReason.RESTING
            assert any_storage.find_available_proxy("pool", filters, selector) is None
    assert any_storage.acquire_lease(AcquireRequest("pool", "w")).miss_reason == "resting"
    assert manager.acquire_proxies("pool", 1, at_least=1) == []
    with pytest.raises(ProxyUnavailableError, match="it rests until 2026-01-01T00:"):
        any_storage.create_lease(any_storage.get_proxy(str(lease.proxy_id)), "w", 60)
    missed = [event for event in any_storage.events() if isinstance(event, AcquireMissed)]
    assert {event.reason for event in missed} == {MissReason.RESTING}
    assert any_storage.verify() == []
    clock.advance(0.001)
    leased(manager)
    assert any_storage.verify() == []


def test_an_orderly_release_need_not_rest(any_storage: AnyStorage) -> None:
    """Without a setting for it the proxy is free at once, and the event says nothing of a rest."""
    clock = clock_of(any_storage)
    manager = resting(any_storage, rest_after_expiry_seconds=600)
    manager.release_proxy(leased(manager))
    event = list(any_storage.events())[-1]
    assert isinstance(event, LeaseEnd)
    assert event.rests_until is None
    leased(manager)
    clock.advance(60)
    assert why_not(any_storage) is MissReason.RESTING


def test_a_rest_is_of_the_whole_proxy(any_storage: AnyStorage) -> None:
    """Leases that others have on it go on, and their ends make the rest no shorter."""
    clock = clock_of(any_storage)
    manager = resting(
        any_storage,
        rest_after_expiry_seconds=100,
        rest_after_release_seconds=1,
        facts={"max_concurrency": 3},
    )
    first, second = leased(manager), leased(manager)
    manager.revoke_lease(first.id, "why")
    assert why_not(any_storage) is MissReason.RESTING
    manager.renew_lease(second)
    manager.release_proxy(second)
    clock.advance(99)
    assert why_not(any_storage) is MissReason.RESTING
    clock.advance(1)
    leased(manager)


def test_others_are_leased_meanwhile(any_storage: AnyStorage) -> None:
    """In every selector's order, in sets too, the proxies that do not rest are granted."""
    clock_of(any_storage)
    manager = resting(any_storage, 4, rest_after_release_seconds=60)
    for number, selector in enumerate(SelectorStrategy):
        for filters in (None, FILTERS[1]):
            found = manager.acquire_proxy("pool", "w", 600, filters, selector)
            if number < 2:
                assert found is not None
                manager.release_proxy(found)
            else:
                assert found is None
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert (stats.available_proxies, stats.total_leases) == (4, 0)


def test_a_batch_gives_nothing_on_that_must_rest(any_storage: AnyStorage) -> None:
    """What one command of a commit releases, the next does not get; of a set some may be free."""
    clock_of(any_storage)
    manager = resting(any_storage, 2, rest_after_release_seconds=60)
    lease = leased(manager)
    _, taken = any_storage.run_batch([ReleaseRequest(lease), AcquireSetRequest("pool", "w", 2)])
    assert isinstance(taken, SetAcquisition)
    assert (taken.miss_reason, taken.free) == (MissReason.TOO_FEW, 1)


def test_a_removed_proxy_needs_no_rest(any_storage: AnyStorage) -> None:
    """Its leases are released, and nothing remembers a rest."""
    manager = resting(any_storage, rest_after_release_seconds=60)
    lease = leased(manager)
    any_storage.delete_proxy(str(lease.proxy_id))
    end = next(event for event in any_storage.events() if isinstance(event, LeaseEnd))
    assert end.rests_until is None
    assert any_storage.verify() == []


def test_a_rebuild_knows_who_rests(postgres: PostgresStorage) -> None:
    """Rests and settings are folded from the log."""
    clock = clock_of(postgres)
    manager = resting(postgres, 2, rest_after_release_seconds=60)
    manager.release_proxy(leased(manager))
    manager.release_proxies([leased(manager)])
    rebuild(postgres)
    assert why_not(postgres) is MissReason.RESTING
    clock.advance(60)
    leased(manager)
    assert postgres.verify() == []


def test_whoever_waits_for_a_lock_waits_for_none_that_rests(
    postgres: PostgresStorage, database_url: str
) -> None:
    """Of two proxies the one that rests is not what an acquisition waits for."""
    clock_of(postgres)
    manager = resting(postgres, 2, rest_after_release_seconds=600)
    manager.release_proxy(leased(manager))
    with application(database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT FROM pharox.available_proxies WHERE rests_until IS NULL FOR UPDATE")
        waiting = pool.submit(leased, manager)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        other.commit()
        assert waiting.result(timeout=30).proxy_id is not None


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12])
def test_a_rest_must_make_sense(seconds: float) -> None:
    """It is refused with the name of the setting."""
    for name in ("rest_after_release_seconds", "rest_after_expiry_seconds"):
        with pytest.raises(ValidationError, match=name):
            ProxyPool.model_validate({"name": "pool", name: seconds})
