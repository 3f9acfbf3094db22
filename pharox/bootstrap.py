"""Fill a storage in a line or two, for scripts and tests."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from .models import Consumer, Proxy, ProxyPool, ProxyProtocol, ProxyStatus
from .storage.interface import IStorage


def bootstrap_consumer(
    storage: IStorage, *, name: str = "default-consumer", consumer_id: UUID | None = None
) -> Consumer:
    """Register a consumer and return it, with the id it has if its name was known."""
    add_consumer = getattr(storage, "add_consumer", None)
    if callable(add_consumer):
        wanted = Consumer(id=consumer_id or uuid4(), name=name)
        added = add_consumer(wanted)
        return added if isinstance(added, Consumer) else wanted
    return Consumer(id=storage.ensure_consumer(name), name=name)


def bootstrap_pool(
    storage: IStorage,
    *,
    name: str = "default-pool",
    description: str | None = None,
    pool_id: UUID | None = None,
) -> ProxyPool:
    """Return the pool of this name, registering it if there is none.

    Raises
    ------
    ConflictError
        If ``pool_id`` is given and a pool of this name has another.
    """
    if pool_id is None:
        for known in storage.list_pools():
            if known.name == name:
                return known
    pool = ProxyPool(id=pool_id or uuid4(), name=name, description=description)
    storage.save_pool(pool)
    return pool


def bootstrap_proxy(
    storage: IStorage,
    *,
    pool: ProxyPool,
    host: Any,
    port: int,
    protocol: ProxyProtocol = ProxyProtocol.HTTP,
    status: ProxyStatus = ProxyStatus.ACTIVE,
    proxy_id: UUID | None = None,
    **extra_fields: Any,
) -> Proxy:
    """Register a proxy in a pool and return it as stored."""
    proxy = Proxy(
        id=proxy_id or uuid4(),
        host=host,
        port=port,
        protocol=protocol,
        pool_id=pool.id,
        status=status,
        **extra_fields,
    )
    storage.save_proxy(proxy)
    return storage.get_proxy(str(proxy.id))
