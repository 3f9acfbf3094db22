"""Storages with coroutines, and what to look at afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine

from pharox import AsyncInMemoryStorage, IAsyncStorage, LeaseStatus
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.testing import Awaited
from tests import servers
from tests.conftest import SECRET_KEY, AnyStorage, Clusters, ledger, new_database, open_async_engine


class Kept:
    """A storage with coroutines, and the same ledger for a test that does not await."""

    def __init__(self, storage: IAsyncStorage, blocking: AnyStorage, loop: Awaited) -> None:
        self.storage = storage
        self.blocking = blocking
        self.run: Callable[..., Any] = loop.run
        self.is_cancelled: Callable[..., bool] = loop.is_cancelled

    def assert_nothing_is_left(self) -> None:
        """No lease is active, and every read model is the fold of the log."""
        assert [x for x in self.blocking.list_leases() if x.status is LeaseStatus.ACTIVE] == []
        assert self.blocking.verify() == []
        if isinstance(self.storage, AsyncPostgresStorage):
            assert self.run(_connections_are_as_they_were(self.storage.engine))


class RunsOut:
    """A time-out that runs out as soon as its callback is called, which waits for longer."""

    async def over(self, awaitable: Awaitable[Any]) -> None:
        """Await something for as long as there is time."""
        async with asyncio.timeout(None) as self._time_out:
            await awaitable

    async def callback(self, _: object) -> None:
        """Wait until the time is over; once it is, return."""
        if not self._time_out.expired():
            self._time_out.reschedule(0)
            await asyncio.sleep(60)


async def _connections_are_as_they_were(engine: AsyncEngine) -> bool:
    """Return whether no connection is lent, and new ones wait as psycopg does.

    A renewal that was under way when its lease was given back goes on only while the loop
    runs, so it gets ten seconds of it to return its connection.
    """
    pool = engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    async with asyncio.timeout(10):
        while pool.checkedout():
            await asyncio.sleep(0.01)
    async with engine.connect() as connection:
        lent = await connection.get_raw_connection()
        return "wait" not in vars(lent.driver_connection)


@pytest.fixture
def in_memory() -> Iterator[Kept]:
    """An empty ledger in memory."""
    storage = AsyncInMemoryStorage()
    with Awaited(storage) as loop:
        yield Kept(storage, storage.memory, loop)


@pytest.fixture
def url(clusters: Clusters) -> Iterator[str]:
    """The URL of an empty ledger, on one server: the statements are those of other tests."""
    server_url, template = clusters.get(servers.names()[0])
    with new_database(server_url, f"pharox_{uuid4().hex[:12]}", template) as url:
        yield url


@pytest.fixture
def in_postgres(url: str) -> Iterator[Kept]:
    """An empty ledger in PostgreSQL, with four connections for tasks."""
    storage = AsyncPostgresStorage(open_async_engine(url, pool_size=4), secret_keys=[SECRET_KEY])
    with ledger(url) as blocking, Awaited(storage) as loop:
        yield Kept(storage, blocking, loop)


@pytest.fixture(params=["in_memory", "in_postgres"])
def kept(request: pytest.FixtureRequest) -> Kept:
    """Each of our storages with coroutines in turn."""
    found: Kept = request.getfixturevalue(request.param)
    return found
