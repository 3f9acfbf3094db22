"""Why a consumer got no proxy: what is told is what was true at the miss."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pharox import (
    ConsumerNotFoundError,
    MissReason,
    PoolLimits,
    ProxyManager,
    ProxyStatus,
    attributed,
)
from pharox.history import latest
from pharox.history import why as why_module
from pharox.history.why import Explanation, culprit, why
from pharox.storage.reports import CoolDownRequest
from tests.conftest import AnyStorage, clock_of, fill


def explained(storage: AnyStorage, consumer: str, at: int | None = None) -> Explanation:
    """Return why a consumer got nothing."""
    found = why(storage, consumer, at=at)
    assert found is not None
    return found


def test_the_holders_are_those_of_the_moment(any_storage: AnyStorage) -> None:
    """Who holds most comes first, and who gave back before or asked later is not named."""
    _, proxies = fill(any_storage, 3)
    manager = ProxyManager(any_storage)
    gone = manager.acquire_proxy("pool", "gone")
    assert gone is not None
    manager.release_proxy(gone)
    manager.acquire_proxy("pool", "one")
    leases = manager.acquire_proxies("pool", 2, "two")
    assert manager.acquire_proxy("pool", "late") is None
    for lease in leases:
        manager.release_proxy(lease)
    assert manager.acquire_proxy("pool", "after") is not None
    found = explained(any_storage, "late")
    assert found.miss.reason is MissReason.AT_CAPACITY
    assert [(each.consumer, len(each.leases)) for each in found.holders] == [("two", 2), ("one", 1)]
    held = {lease.proxy_id for each in found.holders for lease in each.leases}
    assert held == {proxy.id for proxy in proxies}
    assert all(found.address_of(proxy_id).startswith("http://") for proxy_id in held)
    assert found.then is None


def test_misses_in_a_row_are_counted_from_the_last_lease(any_storage: AnyStorage) -> None:
    """A lease in between begins another row, and the next lease is told."""
    fill(any_storage, 1)
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    held = manager.acquire_proxy("pool", "holder")
    assert held is not None
    assert manager.acquire_proxy("pool", "w") is None
    early = list(any_storage.events())[-1].seq
    manager.release_proxy(held)
    lease = manager.acquire_proxy("pool", "w", 1)
    assert lease is not None
    manager.release_proxy(lease)
    assert manager.acquire_proxy("pool", "holder", 3600) is not None
    clock.advance(1)
    for _ in range(3):
        assert manager.acquire_proxy("pool", "w") is None
        clock.advance(1)
    found = explained(any_storage, "w")
    assert found.in_a_row == 3
    assert found.miss.recorded_at - found.since == timedelta(seconds=2)
    before = explained(any_storage, "w", at=early)
    assert (before.in_a_row, before.miss.seq) == (1, early)
    assert before.then is not None
    assert before.then.lease_id == lease.id


def test_the_count_does_not_depend_on_what_others_do(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes back to the last lease, however long ago; a count that is cut says so."""
    monkeypatch.setattr(latest, "_FIRST", 2)
    fill(any_storage, 1)
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    assert manager.acquire_proxy("pool", "holder", 86_400) is not None
    first = clock.now
    for _ in range(3):
        assert manager.acquire_proxy("pool", "w") is None
        for _ in range(4):
            assert manager.acquire_proxy("pool", "other") is None
        clock.advance(2 * 3600)
    found = explained(any_storage, "w")
    assert (found.in_a_row, found.since, found.is_cut) == (3, first, False)
    for counted in (3, 2):
        monkeypatch.setattr(why_module, "COUNTED", counted)
        found = explained(any_storage, "w")
        assert (found.in_a_row, found.is_cut) == (counted, counted < 3)
        assert found.since == first + timedelta(hours=2 * (3 - counted))


def test_a_miss_of_long_ago_is_found(any_storage: AnyStorage) -> None:
    """However long ago it was, and whatever came in between."""
    fill(any_storage, 1)
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    manager.acquire_proxy("pool", "holder", 60)
    assert manager.acquire_proxy("pool", "w") is None
    for days in (1, 40, 400):
        clock.advance(days * 86_400)
        manager.acquire_proxy("pool", "other", 60)
        assert explained(any_storage, "w").in_a_row == 1


def test_who_banned_a_proxy_is_told(any_storage: AnyStorage) -> None:
    """With the reason, and when; of one that a check found dead there is no such change."""
    _, (banned, dead) = fill(any_storage, 2)
    manager = ProxyManager(any_storage)
    with attributed(actor="ops"):
        any_storage.set_status(banned.id, ProxyStatus.BANNED, reason="the target answers 429")
    any_storage.save_proxy(dead.model_copy(update={"status": ProxyStatus.INACTIVE}))
    assert manager.acquire_proxy("pool", "w") is None
    found = explained(any_storage, "w")
    by_id = {each.id: each for each in found.unusable}
    change = by_id[banned.id].change
    assert change is not None
    assert (change.actor, change.reason) == ("ops", "the target answers 429")
    assert set(by_id) == {banned.id, dead.id}
    assert found.holders == ()


def test_proxies_are_told_only_where_they_matter(any_storage: AnyStorage) -> None:
    """A banned one is no reason if a limit was reached or the free one rests for the target."""
    pool, (banned, _) = fill(any_storage, 2)
    any_storage.set_status(banned.id, ProxyStatus.BANNED, reason="old")
    any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
    manager = ProxyManager(any_storage)
    lease = manager.acquire_proxy("pool", "limited")
    assert lease is not None
    for consumer, reason, count in (
        ("limited", MissReason.LIMIT_REACHED, 0),
        ("late", MissReason.AT_CAPACITY, 1),
    ):
        assert manager.acquire_proxy("pool", consumer) is None
        found = explained(any_storage, consumer)
        assert (found.miss.reason, len(found.unusable)) == (reason, count)
    manager.release_proxy(lease)
    any_storage.set_cool_down(CoolDownRequest(lease.proxy_id, "shop.example", 60))
    assert manager.acquire_proxy("pool", "blocked", target="shop.example") is None
    found = explained(any_storage, "blocked")
    assert (found.miss.reason, found.unusable) == (MissReason.COOLING_DOWN, ())


def test_only_what_stood_in_the_way_is_blamed(any_storage: AnyStorage) -> None:
    """At a limit of its own a consumer is not told of others, who hold proxies of the pool too."""
    pool, _ = fill(any_storage, 3)
    any_storage.save_pool(pool.model_copy(update={"limits": PoolLimits(leases_per_consumer=1)}))
    manager = ProxyManager(any_storage)
    for consumer in ("aaa", "bbb"):
        assert manager.acquire_proxy("pool", consumer) is not None
    assert manager.acquire_proxy("pool", "bbb") is None
    blamed = culprit(explained(any_storage, "bbb"))
    assert blamed is not None
    assert blamed.limit is not None
    assert (blamed.limit.name, blamed.limited) == ("leases_per_consumer", "consumer 'bbb'")
    assert (blamed.holders, blamed.unusable) == ((), ())
    assert manager.acquire_proxy("pool", "ccc") is not None
    assert manager.acquire_proxy("pool", "ddd") is None
    blamed = culprit(explained(any_storage, "ddd"))
    assert blamed is not None
    assert {each.consumer for each in blamed.holders} == {"aaa", "bbb", "ccc"}


def test_a_pool_that_was_never_there(any_storage: AnyStorage) -> None:
    """The miss is explained by itself: there is no pool to look at."""
    fill(any_storage, 1)
    assert ProxyManager(any_storage).acquire_proxy("pol", "w") is None
    found = explained(any_storage, "w")
    assert found.miss.reason is MissReason.UNKNOWN_POOL
    assert (found.counts, found.holders, found.unusable) == (None, (), ())


def test_who_always_got_one_or_never_came(any_storage: AnyStorage) -> None:
    """There is nothing to explain, or nobody to explain it of."""
    fill(any_storage, 1)
    ProxyManager(any_storage).acquire_proxy("pool", "w")
    assert why(any_storage, "w") is None
    with pytest.raises(ConsumerNotFoundError):
        why(any_storage, "nobody")


def test_the_first_few_of_what_nobody_could_lease_are_explained(
    any_storage: AnyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are named; what changed them is looked up for so many."""
    monkeypatch.setattr(why_module, "EXPLAINED", 2)
    _, proxies = fill(any_storage, 3)
    for proxy in proxies:
        any_storage.set_status(proxy.id, ProxyStatus.BANNED, reason="429")
    assert ProxyManager(any_storage).acquire_proxy("pool", "w") is None
    found = explained(any_storage, "w").unusable
    assert [each.id for each in found] == sorted(proxy.id for proxy in proxies)
    assert [each.change is not None for each in found] == [True, True, False]
    assert len({each.address for each in found}) == 3
