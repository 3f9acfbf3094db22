"""Register pools, proxies and consumers in a line or two, for scripts and tests.

Each function has a form for async storages, whose name ends in ``_async``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from ..effects import Calls, call, call_async, run, run_async
from ..models import Consumer, Proxy, ProxyPool, ProxyProtocol, ProxyStatus
from ..storage.async_interface import IAsyncStorage
from ..storage.interface import IStorage
from ..storage.validation import check_storage


def bootstrap_consumer(
    storage: IStorage, *, name: str = "default-consumer", consumer_id: UUID | None = None
) -> Consumer:
    """Register a consumer and return it; a known name keeps its id."""
    check_storage(storage, awaited=False)
    return run(_consumer(storage, name, consumer_id), call)


async def bootstrap_consumer_async(
    storage: IAsyncStorage, *, name: str = "default-consumer", consumer_id: UUID | None = None
) -> Consumer:
    """Do as :func:`bootstrap_consumer`."""
    check_storage(storage, awaited=True)
    return await run_async(_consumer(storage, name, consumer_id), call_async)


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
        If ``pool_id`` is given and the pool of this name has another id.
    """
    check_storage(storage, awaited=False)
    return run(_pool(storage, name, description, pool_id), call)


async def bootstrap_pool_async(
    storage: IAsyncStorage,
    *,
    name: str = "default-pool",
    description: str | None = None,
    pool_id: UUID | None = None,
) -> ProxyPool:
    """Do as :func:`bootstrap_pool`."""
    check_storage(storage, awaited=True)
    return await run_async(_pool(storage, name, description, pool_id), call_async)


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
    """Register a proxy in a pool and return it as stored.

    Without a ``proxy_id`` it returns the pool's proxy with this protocol, host, port and
    credentials unchanged, if there is one, so that a script can run again.

    Parameters
    ----------
    pool:
        The pool, which must be registered.
    extra_fields:
        Other fields of :class:`pharox.Proxy`. Give ``max_concurrency=1`` for exclusive leases:
        by default a proxy takes any number of leases at once.
    """
    check_storage(storage, awaited=False)
    proxy = _described(pool, host, port, protocol, status, proxy_id, extra_fields)
    return run(_proxy(storage, proxy, is_named=proxy_id is not None), call)


async def bootstrap_proxy_async(
    storage: IAsyncStorage,
    *,
    pool: ProxyPool,
    host: Any,
    port: int,
    protocol: ProxyProtocol = ProxyProtocol.HTTP,
    status: ProxyStatus = ProxyStatus.ACTIVE,
    proxy_id: UUID | None = None,
    **extra_fields: Any,
) -> Proxy:
    """Do as :func:`bootstrap_proxy`."""
    check_storage(storage, awaited=True)
    proxy = _described(pool, host, port, protocol, status, proxy_id, extra_fields)
    return await run_async(_proxy(storage, proxy, is_named=proxy_id is not None), call_async)


def _consumer(storage: Any, name: str, consumer_id: UUID | None) -> Calls[Consumer]:
    add_consumer = getattr(storage, "add_consumer", None)
    if callable(add_consumer):
        wanted = Consumer(id=consumer_id or uuid4(), name=name)
        added = yield partial(add_consumer, wanted)
        return added if isinstance(added, Consumer) else wanted
    return Consumer(id=(yield partial(storage.ensure_consumer, name)), name=name)


def _pool(
    storage: Any, name: str, description: str | None, pool_id: UUID | None
) -> Calls[ProxyPool]:
    if pool_id is None:
        pools: Sequence[ProxyPool] = yield storage.list_pools
        for known in pools:
            if known.name == name:
                return known
    pool = ProxyPool(id=pool_id or uuid4(), name=name, description=description)
    yield partial(storage.save_pool, pool)
    return pool


def _described(
    pool: ProxyPool,
    host: Any,
    port: int,
    protocol: ProxyProtocol,
    status: ProxyStatus,
    proxy_id: UUID | None,
    extra_fields: dict[str, Any],
) -> Proxy:
    return Proxy(
        id=proxy_id or uuid4(),
        host=host,
        port=port,
        protocol=protocol,
        pool_id=pool.id,
        status=status,
        **extra_fields,
    )


def _proxy(storage: Any, proxy: Proxy, *, is_named: bool) -> Calls[Proxy]:
    known = None if is_named else (yield from _known_proxy(storage, proxy))
    if known is None:
        yield partial(storage.save_proxy, proxy)
    answer: Proxy = yield partial(storage.get_proxy, str(known or proxy.id))
    return answer


def _known_proxy(storage: Any, proxy: Proxy) -> Calls[UUID | None]:
    """Return the id of the pool's proxy with the same address and credentials, or None."""
    if hasattr(storage, "match_listed"):  # The storages of pharox look it up by an index.
        (match,) = yield partial(storage.match_listed, proxy.pool_id, [proxy])
        known: UUID | None = match.known
        return known
    pool: Sequence[Proxy] = yield partial(storage.list_proxies, str(proxy.pool_id))
    return next((each.id for each in pool if _identity(each) == _identity(proxy)), None)


def _identity(proxy: Proxy) -> tuple[Any, ...]:
    return proxy.protocol, str(proxy.host), proxy.port, proxy.credentials
