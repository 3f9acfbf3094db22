"""A set in memory is what single acquisitions one after another would be granted."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from pharox import (
    InMemoryStorage,
    MissReason,
    Proxy,
    ProxyFilters,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
)
from pharox.events import AcquireMissed
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import clock_of, types_of

from .plain_model import PlainModel

PROXIES = st.lists(
    st.tuples(
        st.sampled_from([ProxyStatus.ACTIVE, ProxyStatus.ACTIVE, *ProxyStatus]),
        st.sampled_from([None, 1, 1, 2, 3]),
        st.integers(0, 2),
        st.sampled_from(["AR", None]),
    ),
    max_size=7,
)
SINGLES = st.lists(st.sampled_from(SelectorStrategy), max_size=5)
FILTERS = st.sampled_from(
    [None, ProxyFilters(country="AR"), ProxyFilters(predicate=lambda proxy: proxy.port % 2 == 0)]
)


@given(
    proxies=PROXIES,
    lease_slow=st.booleans(),
    singles=SINGLES,
    selector=st.sampled_from(SelectorStrategy),
    filters=FILTERS,
    count=st.integers(1, 12),
    missing=st.integers(0, 11),
    distinct=st.booleans(),
)
@settings(max_examples=400)
def test_a_set_is_what_single_acquisitions_would_be(
    proxies: list[tuple[ProxyStatus, int | None, int, str | None]],
    lease_slow: bool,
    singles: list[SelectorStrategy],
    selector: SelectorStrategy,
    filters: ProxyFilters | None,
    count: int,
    missing: int,
    distinct: bool,
) -> None:
    """The same proxies in the same order; or nothing, with how many were free."""
    storage = InMemoryStorage()
    model = PlainModel(now=clock_of(storage).now)
    pool = ProxyPool(name="pool", lease_slow=lease_slow)
    storage.save_pool(pool)
    model.pools[pool.id] = pool
    for number, (status, capacity, age, country) in enumerate(proxies):
        proxy = Proxy(
            id=UUID(int=number * 7 % 11),
            host=f"proxy-{number}.example",
            port=8000 + number,
            protocol=ProxyProtocol.HTTP,
            pool_id=pool.id,
            status=status,
            checked_at=model.now - timedelta(minutes=age),
            country=country,
            max_concurrency=capacity,
            weight=(None, 3, 7)[number % 3],
        )
        storage.save_proxy(proxy)
        model.decide(proxy)
    for single in singles:
        if storage.acquire_lease(AcquireRequest("pool", "w", selector=single)).lease is not None:
            offered = model.offer(pool, single, None)
            assert offered is not None
            model.grant(offered, "w", 300)
            model.turn(offered, single)
    expected = model.offer_set(pool, selector, filters, count, distinct=distinct)
    request = AcquireSetRequest(
        "pool",
        "w",
        count,
        filters=filters,
        selector=selector,
        at_least=max(1, count - missing),
        distinct=distinct,
    )
    before = len(list(storage.events()))
    found = storage.acquire_set(request)
    if len(expected) >= request.needed:
        leased = [each.lease and each.lease.proxy_id for each in found.acquisitions]
        assert leased == [proxy.id for proxy in expected]
    else:
        reason = MissReason.TOO_FEW if expected else model.reason(pool, filters)
        assert (found.free, found.miss_reason) == (len(expected), reason)
        *_, miss = storage.events(after=before)
        assert isinstance(miss, AcquireMissed)
        assert (miss.count, miss.free, miss.reason) == (count, len(expected), reason)
        assert "LeaseAcquired" not in types_of(storage)[before:]
    assert storage.verify() == []
