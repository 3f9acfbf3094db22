"""The cost of a lease grows neither with the pool nor with its history: counted, not timed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pharox import InMemoryStorage, ProxyManager, SelectorStrategy
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.batch import Batch, Release, command_of
from pharox.storage.requests import AcquireRequest, ReleaseRequest
from tests.conftest import fill, pages_read, proxies_of, run_sql


def cycle(storage: PostgresStorage, selector: SelectorStrategy) -> int:
    """Return the pages that one acquisition and its release touch."""
    request = AcquireRequest("pool", "default", 60, selector=selector, with_stats=True)
    lease = ProxyManager(storage).acquire_proxy("pool")
    assert lease is not None
    commands = (command_of(request), Release(ReleaseRequest(lease, None, with_stats=True)))
    queries = [Batch((command,)).query(storage.schema) for command in commands]
    pages = sum(pages_read(storage, query.statement, dict(query.values)) for query in queries)
    storage.release_lease(lease)
    return pages


def grow(storage: PostgresStorage, proxies: int, leases: int) -> None:
    """Add proxies and ended leases to the pool, and let the planner know."""
    pool = storage.get_pool_by_name("pool")
    assert pool is not None
    storage.add_proxies_bulk(proxies_of(pool, proxies, network="10.1"))
    run_sql(
        storage.engine,
        "INSERT INTO pharox.leases SELECT gen_random_uuid(), pool_id, 'pool', proxy_id, "
        "gen_random_uuid(), 'old', 'released', now(), now(), now(), n FROM "
        f"(SELECT * FROM pharox.available_proxies LIMIT 1) a, generate_series(1, {leases}) n",
    )
    run_sql(storage.engine, "ANALYZE")


@pytest.mark.parametrize("selector", list(SelectorStrategy))
def test_pool_and_history_cost_nothing_on_postgres(
    postgres: PostgresStorage, selector: SelectorStrategy
) -> None:
    """With 200 times the proxies and 20,000 ended leases a cycle reads about as many pages."""
    fill(postgres, 20)
    manager = ProxyManager(postgres)
    with manager.with_lease("pool"):
        pass
    run_sql(postgres.engine, "ANALYZE")
    small = cycle(postgres, selector)
    grow(postgres, 4_000, 20_000)
    cycle(postgres, selector)
    large = cycle(postgres, selector)
    assert large <= 3 * small


def calls(work: Any) -> int:
    """Return how many Python functions a piece of work calls."""
    count = 0

    def counting(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("selector", list(SelectorStrategy))
def test_pool_and_history_cost_nothing_in_memory(selector: SelectorStrategy) -> None:
    """With 200 times the proxies and a long history a cycle calls about as many functions."""
    costs = []
    for count, history in ((20, 0), (4_000, 3_000)):
        storage = InMemoryStorage()
        fill(storage, count)
        manager = ProxyManager(storage)

        def lease(manager: ProxyManager = manager) -> None:
            with manager.with_lease("pool", selector=selector):
                pass

        for _ in range(history + 1):
            lease()
        costs.append(calls(lease))
    assert costs[1] <= 1.5 * costs[0]
