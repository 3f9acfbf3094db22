"""Pools, proxies and leases for the tests of a storage."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

from ..models import Lease, Proxy, ProxyPool, ProxyProtocol, ProxyStatus
from ..storage.interface import IStorage
from ..storage.requests import AcquireRequest

PassTime = Callable[[float], None]
_ports = count(1024)


def make_pool(storage: IStorage, name: str = "pool", **fields: Any) -> ProxyPool:
    """Register a pool and return it."""
    pool = ProxyPool(name=name, **fields)
    storage.save_pool(pool)
    return pool


def make_proxy(storage: IStorage, pool: ProxyPool, **fields: Any) -> Proxy:
    """Register a proxy, ACTIVE and exclusive unless ``fields`` say otherwise, and return it."""
    known = {
        "host": "192.0.2.1",
        "port": next(_ports),
        "protocol": ProxyProtocol.HTTP,
        "status": ProxyStatus.ACTIVE,
        "max_concurrency": 1,
    }
    proxy = Proxy(pool_id=pool.id, **{**known, **fields})
    storage.save_proxy(proxy)
    return proxy


def lease_from(storage: IStorage, pool: ProxyPool, **request: Any) -> Lease:
    """Lease any proxy of a pool, which must have one free."""
    asked = {"pool_name": pool.name, "consumer_name": "worker", **request}
    lease = storage.acquire_lease(AcquireRequest(**asked)).lease
    assert lease is not None
    return lease
