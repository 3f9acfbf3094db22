"""WEIGHTED leases proxies in proportion to their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from pharox import InvalidInputError, Lease, Outcome, Proxy, ProxyStatus, SelectorStrategy
from pharox.events import LeaseAcquired
from pharox.models import step_of
from pharox.storage.reports import ReportRequest
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, clock_of, fill, proxies_of

WEIGHTED = SelectorStrategy.WEIGHTED
WEIGHTS = (10, 5, 3, 1, 1, None)


def weighed(storage: AnyStorage, weights: Sequence[int | None], **facts: Any) -> list[Proxy]:
    """Return the proxies of a new pool, the smallest id first, with these weights."""
    pool, _ = fill(storage, 0)
    blank = proxies_of(pool, len(weights), **facts)
    proxies = [
        proxy.model_copy(update={"id": UUID(int=n + 1), "weight": weight})
        for n, (proxy, weight) in enumerate(zip(blank, weights, strict=True))
    ]
    storage.add_proxies_bulk(proxies)
    return proxies


def lease_of(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy by its turn."""
    asked = {"selector": WEIGHTED, **options}
    lease = storage.acquire_lease(AcquireRequest("pool", "w", **asked)).lease
    assert lease is not None
    return lease


def used(storage: AnyStorage, count: int, **options: Any) -> list[int]:
    """Lease so many proxies, one after the other, and return their numbers."""
    numbers = []
    for _ in range(count):
        lease = lease_of(storage, **options)
        storage.return_lease(lease)
        numbers.append(lease.proxy_id.int)
    return numbers


def test_each_proxy_has_exactly_its_share(any_storage: AnyStorage) -> None:
    """Once each was leased, any as many leases as all weights together are as the weights say."""
    weighed(any_storage, WEIGHTS)
    assert used(any_storage, len(WEIGHTS)) == [1, 2, 3, 4, 5, 6]
    whole = sum(weight or 1 for weight in WEIGHTS)
    numbers = used(any_storage, 4 * whole)
    shares = {n + 1: weight or 1 for n, weight in enumerate(WEIGHTS)}
    for start in range(3 * whole):
        assert Counter(numbers[start : start + whole]) == shares
    # A heavy one is not leased over and over while others wait for their turns.
    assert all(numbers[n : n + 4] != [1] * 4 for n in range(len(numbers)))


def test_weights_hold_in_sets_and_on_shared_proxies(any_storage: AnyStorage) -> None:
    """What one statement grants is what single leases would have been."""
    weighed(any_storage, (3, 1), max_concurrency=None)
    lease_of(any_storage), lease_of(any_storage)
    request = AcquireSetRequest("pool", "w", 8, selector=WEIGHTED, distinct=False)
    granted = [each.lease for each in any_storage.acquire_set(request).acquisitions]
    singles = [lease_of(any_storage).proxy_id.int for _ in range(8)]
    assert [each and each.proxy_id.int for each in granted] == singles
    assert Counter(singles) == {1: 6, 2: 2}


def test_nobody_saves_up_turns(any_storage: AnyStorage) -> None:
    """A new proxy, or one that was banned, is leased at once, and goes on where the others are."""
    proxies = weighed(any_storage, (1, 1, 1))
    used(any_storage, 3)
    any_storage.set_status(proxies[0].id, ProxyStatus.BANNED)
    used(any_storage, 40)
    any_storage.set_status(proxies[0].id, ProxyStatus.ACTIVE)
    new = proxies[0].model_copy(update={"id": UUID(int=9), "host": "192.0.2.9"})
    any_storage.add_proxies_bulk([new])
    numbers = used(any_storage, 42)
    assert set(numbers[:2]) == {1, 9}
    assert all(9 <= count <= 12 for count in Counter(numbers).values())


def test_a_weight_may_be_changed(any_storage: AnyStorage) -> None:
    """It holds from the next lease on, and is kept when a ban is over."""
    clock = clock_of(any_storage)
    proxies = weighed(any_storage, (1, 1))
    used(any_storage, 4)
    any_storage.change_proxy(proxies[0].model_copy(update={"weight": 4}))
    any_storage.set_status(proxies[0].id, ProxyStatus.BANNED, for_seconds=60)
    clock.advance(61)
    any_storage.cleanup_expired_leases()
    used(any_storage, 2)
    assert Counter(used(any_storage, 25)) == {1: 20, 2: 5}
    known = any_storage.get_proxy(str(proxies[0].id))
    assert known is not None
    assert known.weight == 4


def test_other_selectors_have_no_turns(any_storage: AnyStorage) -> None:
    """The events of leases by WEIGHTED have their turns, no others do."""
    (proxy,) = weighed(any_storage, (2,), max_concurrency=None)
    any_storage.acquire_lease(AcquireRequest("pool", "w"))
    any_storage.create_lease(proxy, "w", 60)
    for _ in range(3):
        lease_of(any_storage)
    events = [each for each in any_storage.events() if isinstance(each, LeaseAcquired)]
    assert [(each.turn, each.next_turn) for each in events[:2]] == [(None, None)] * 2
    (first, second), (_, third), last = [(each.turn, each.next_turn) for each in events[2:]]
    assert first == 0
    assert second is not None
    assert third is not None
    assert 0 < second <= step_of(2)
    assert last == (third, third + step_of(2))
    assert third == second + step_of(2)


def test_it_goes_past_what_rests_for_a_target(any_storage: AnyStorage) -> None:
    """Of those that do not rest for the target, each has its share."""
    weighed(any_storage, (5, 2, 1))
    used(any_storage, 3, target="shop.example")
    lease = lease_of(any_storage)
    refused = Outcome.blocked("shop.example", status=429, retry_after=600)
    any_storage.report_outcomes([ReportRequest(lease, refused)])
    any_storage.return_lease(lease)
    left = {1: 5, 2: 2, 3: 1}
    del left[lease.proxy_id.int]
    used(any_storage, 4, target="shop.example")
    whole = sum(left.values())
    assert Counter(used(any_storage, 3 * whole, target="shop.example")) == {
        number: 3 * weight for number, weight in left.items()
    }


@pytest.mark.parametrize("weight", [0, -1, 1001, 1.5, "many"])
def test_a_weight_is_a_number_up_to_a_thousand(any_storage: AnyStorage, weight: Any) -> None:
    """Other values are refused when a proxy is made, and when it is saved."""
    (proxy,) = weighed(any_storage, (2,))
    with pytest.raises(ValueError, match="weight"):
        Proxy.model_validate({**proxy.model_dump(), "weight": weight})
    with pytest.raises(InvalidInputError, match="weight"):
        any_storage.change_proxy(proxy.model_copy(update={"weight": weight}))
