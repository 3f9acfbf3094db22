"""A drained proxy grants no more, and leaves its pool with its last lease."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    InvalidInputError,
    LeaseStatus,
    ProxyCredentials,
    ProxyManager,
    ProxyNotFoundError,
    ProxyStatus,
)
from pharox.events import ProxyChanged
from pharox.ledger.rebuild import rebuild
from pharox.storage.async_interface import IAsyncStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import ReleaseRequest
from pharox.testing import checked
from tests.conftest import AnyStorage, clock_of, fill, run_sql, types_of


@pytest.mark.parametrize("ends", ["release", "batch", "expiry", "revocation"])
def test_it_leaves_with_its_last_lease(any_storage: AnyStorage, ends: str) -> None:
    """However that ends, in the same commit; until then it is leased to nobody else."""
    clock, manager = clock_of(any_storage), ProxyManager(any_storage)
    _, (proxy,) = fill(any_storage, 1, max_concurrency=3)
    first, last = manager.acquire_proxies("pool", 2, distinct=False)[:2] or (None, None)
    assert first is not None
    assert last is not None
    drained = any_storage.drain_proxy(proxy.id, reason="its contract ends")
    assert drained is not None
    assert (drained.status, drained.draining, drained.current_leases) == (
        ProxyStatus.BANNED,
        True,
        2,
    )
    assert any_storage.get_proxy(str(proxy.id)) == drained
    assert manager.acquire_proxy("pool") is None
    manager.renew_lease(first)
    manager.release_proxy(first)
    assert any_storage.get_bare_proxy(proxy.id) is not None
    if ends == "release":
        manager.release_proxy(last)
    elif ends == "batch":
        any_storage.run_batch([ReleaseRequest(last)])
    elif ends == "revocation":
        manager.revoke_lease(last.id, "why")
    else:
        clock.advance(600)
        assert any_storage.cleanup_expired_leases() == 1
    assert any_storage.get_bare_proxy(proxy.id) is None
    assert types_of(any_storage)[-1] == "ProxyRemoved"
    stats = any_storage.get_pool_stats("pool")
    assert stats is not None
    assert (stats.total_proxies, stats.total_leases) == (0, 0)
    assert {lease.status for lease in any_storage.list_leases()} & {LeaseStatus.ACTIVE} == set()
    assert any_storage.verify() == []


def test_an_idle_one_leaves_at_once(any_storage: AnyStorage) -> None:
    """The log says that it was drained, and why."""
    _, (proxy, _) = fill(any_storage, 2)
    assert any_storage.drain_proxy(proxy.id, reason="its contract ends") is None
    *_, drained, removed = any_storage.events()
    assert isinstance(drained, ProxyChanged)
    assert (drained.drains, drained.reason) == (True, "its contract ends")
    assert (removed.type, removed.proxy_id) == ("ProxyRemoved", proxy.id)
    for unknown in (proxy.id, uuid4()):
        with pytest.raises(ProxyNotFoundError):
            any_storage.drain_proxy(unknown)


def test_a_change_undoes_it(any_storage: AnyStorage) -> None:
    """Whoever lifts the ban keeps the proxy; health checks do not, and draining twice is once."""
    manager = ProxyManager(any_storage)
    _, (proxy,) = fill(any_storage, 1)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    any_storage.drain_proxy(proxy.id)
    before = types_of(any_storage)
    any_storage.drain_proxy(proxy.id)
    assert types_of(any_storage) == before
    any_storage.apply_health_check_result(checked(proxy))
    assert any_storage.get_proxy(str(proxy.id)).status is ProxyStatus.BANNED
    any_storage.set_status(proxy.id, ProxyStatus.ACTIVE)
    manager.release_proxy(lease)
    assert manager.acquire_proxy("pool") is not None
    assert any_storage.verify() == []


def test_a_banned_one_can_be_drained(any_storage: AnyStorage) -> None:
    """A ban alone removes nothing."""
    manager = ProxyManager(any_storage)
    _, (banned, drained) = fill(any_storage, 2)
    leases = manager.acquire_proxies("pool", 2)
    for proxy in (banned, drained):
        any_storage.set_status(proxy.id, ProxyStatus.BANNED)
    any_storage.drain_proxy(drained.id)
    manager.release_proxies(leases)
    assert any_storage.get_bare_proxy(banned.id) is not None
    assert any_storage.get_bare_proxy(drained.id) is None


def test_removing_it_by_hand_is_possible(any_storage: AnyStorage) -> None:
    """Its leases are released as ever, and it is removed once; with its pool too."""
    manager = ProxyManager(any_storage)
    pool, (first, second) = fill(any_storage, 2)
    assert len(manager.acquire_proxies("pool", 2)) == 2
    any_storage.drain_proxy(first.id)
    any_storage.drain_proxy(second.id)
    any_storage.delete_proxy(str(first.id))
    any_storage.delete_pool(str(pool.id))
    assert types_of(any_storage).count("ProxyRemoved") == 2
    assert any_storage.verify() == []


def test_its_credentials_go_too_and_a_rebuild_knows_who_drains(postgres: PostgresStorage) -> None:
    """What is left after a rebuild ends as it would have."""
    credentials = ProxyCredentials.model_validate({"user": "ann", "password": "secret"})
    _, (proxy,) = fill(postgres, 1, credentials=credentials)
    manager = ProxyManager(postgres)
    lease = manager.acquire_proxy("pool")
    assert lease is not None
    postgres.drain_proxy(proxy.id)
    rebuild(postgres)
    manager.release_proxy(lease)
    assert postgres.get_bare_proxy(proxy.id) is None
    assert run_sql(postgres.engine, "SELECT count(*) FROM pharox.proxy_credentials") == [(0,)]
    assert postgres.verify() == []


def test_a_storage_that_cannot_drain_says_so() -> None:
    """An adapter that was written for 0.11.0 has no such method."""

    class Plain(AsyncInMemoryStorage):
        drain_proxy = IAsyncStorage.drain_proxy

    class Blocking(InMemoryStorage):
        drain_proxy = IStorage.drain_proxy

    with pytest.raises(InvalidInputError, match="Plain cannot drain proxies"):
        asyncio.run(Plain().drain_proxy(uuid4()))
    with pytest.raises(InvalidInputError, match="Blocking cannot drain proxies"):
        Blocking().drain_proxy(uuid4())


def test_tasks_drain_as_threads_do() -> None:
    """The same from coroutines."""

    async def drain() -> None:
        storage = AsyncInMemoryStorage()
        _, (proxy,) = fill(storage.memory, 1)
        assert await storage.drain_proxy(proxy.id) is None

    asyncio.run(drain())
