"""What type checkers see of the public names: ``scripts/check`` has mypy read this file.

``assert_type`` does nothing when it runs; each function runs all the same, so that what is
asserted is code that works.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import assert_type
from uuid import UUID

import httpx

import pharox
from pharox import (
    AsyncInMemoryStorage,
    AsyncLeasedClient,
    AsyncPoolHandle,
    AsyncProxyManager,
    InMemoryStorage,
    Lease,
    LeasedClient,
    PoolHandle,
    PoolStatsSnapshot,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    ProxyUnavailableError,
)


def proxies_of(pool: ProxyPool) -> list[Proxy]:
    return [
        Proxy(
            host="192.0.2.1",
            port=port,
            protocol=ProxyProtocol.HTTP,
            pool_id=pool.id,
            status=ProxyStatus.ACTIVE,
        )
        for port in (1, 2)
    ]


def test_a_manager_that_blocks() -> None:
    """A lease or None, a list, a context manager that gives either."""
    storage = InMemoryStorage()
    storage.add_proxies_bulk(proxies_of(pharox.bootstrap_pool(storage, name="pool")))
    manager = ProxyManager(storage)
    lease = manager.acquire_proxy("pool")
    assert_type(lease, Lease | None)
    assert lease is not None
    assert_type(lease.proxy_id, UUID)
    assert_type(manager.release_proxy(lease), None)
    leases = manager.acquire_proxies("pool", 2)
    assert_type(leases, list[Lease])
    manager.release_proxies(leases)
    with manager.with_lease("pool") as held:
        assert_type(held, Lease | None)
    assert_type(storage.get_pool_stats("pool"), PoolStatsSnapshot | None)
    with manager.client("pool") as client:
        assert_type(client, LeasedClient)
        assert_type(client.lease, Lease)
        assert isinstance(client, httpx.Client)
    handle = manager.pool("pool", consumer="w", duration_seconds=30, on_lost="tell")
    assert_type(handle, PoolHandle)
    with handle.lease(keep_alive=False) as always:
        assert_type(always, Lease)
    with handle.leases(2, at_least=1) as several:
        assert_type(several, list[Lease])
    with handle.client() as through:
        assert_type(through, LeasedClient)
    error = ProxyUnavailableError()
    assert_type(error.reason, str | None)
    assert_type(error.retry_after_seconds, float | None)


def test_a_manager_that_awaits() -> None:
    """The same, awaited."""
    asyncio.run(_awaited())


async def _awaited() -> None:
    storage = AsyncInMemoryStorage()
    pool = await pharox.bootstrap_pool_async(storage, name="pool")
    assert_type(pool, ProxyPool)
    await storage.add_proxies_bulk(proxies_of(pool))
    manager = AsyncProxyManager(storage)
    lease = await manager.acquire_proxy("pool")
    assert_type(lease, Lease | None)
    assert lease is not None
    assert_type(await manager.release_proxy(lease), None)
    assert_type(await manager.acquire_proxies("pool", 1), list[Lease])
    async with manager.with_lease("pool") as held:
        assert_type(held, Lease | None)
    async with manager.client("pool") as client:
        assert_type(client, AsyncLeasedClient)
    handle = manager.pool("pool", consumer="w")
    assert_type(handle, AsyncPoolHandle)
    async with handle.lease() as always:
        assert_type(always, Lease)
    async with handle.leases(1) as several:
        assert_type(several, list[Lease])
    async with handle.client() as through:
        assert_type(through, AsyncLeasedClient)


def test_storages_and_helpers() -> None:
    """Sequences where nobody is to change what is returned."""
    storage = InMemoryStorage()
    assert_type(pharox.bootstrap_pool(storage, name="pool"), ProxyPool)
    assert_type(storage.list_leases(), Sequence[Lease])
    assert_type(storage.list_pools(), Sequence[ProxyPool])
