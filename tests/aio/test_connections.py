"""Errors of connections are ours, and the next task continues."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import pharox
from pharox import (
    AsyncProxyManager,
    DatabaseUnavailableError,
    InvalidInputError,
    InvalidLeaseError,
    LeaseStatus,
    SchemaError,
)
from pharox.effects.cancelling import outcome_of
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage, cancellation_guard
from pharox.storage.requests import AcquireRequest
from pharox.testing import Awaited, Interrupted
from tests.aio.conftest import Kept
from tests.conftest import SECRET_KEY, fill, new_database, open_async_engine, run_sql, types_of
from tests.ledger.following import until

OTHERS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"


def open_storage(url: str, **options: Any) -> AsyncPostgresStorage:
    return AsyncPostgresStorage(open_async_engine(url, **options), secret_keys=[SECRET_KEY])


def test_a_broken_connection_is_told_and_replaced(in_postgres: Kept) -> None:
    """When the server ends a connection, one call fails as ours, and the next one works."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    assert kept.run(kept.storage.list_pools())
    run_sql(kept.blocking.engine, f"SELECT pg_terminate_backend(pid) {OTHERS}")  # type: ignore[union-attr]
    with pytest.raises(DatabaseUnavailableError):
        kept.run(manager.acquire_proxy("pool"))
    assert kept.run(manager.acquire_proxy("pool")) is not None


def test_an_exhausted_pool_is_told(url: str) -> None:
    """A task that gets no connection from the engine's pool in time gets an error that says so."""
    with Awaited(open_storage(url, pool_size=1, pool_timeout=0.05)) as storage:

        async def main() -> None:
            async with storage.engine.connect():
                await storage.awaitable.list_pools()

        with pytest.raises(DatabaseUnavailableError, match="one for each of the tasks"):
            storage.run(main())


def test_no_server_is_told() -> None:
    """Where there is no server, that is the error."""
    with (
        Awaited(open_storage("postgresql+psycopg://nobody@127.0.0.1:1/none")) as storage,
        pytest.raises(DatabaseUnavailableError),
    ):
        storage.list_pools()


def test_no_schema_is_told(clusters: Any, url: str) -> None:
    """Without our tables that is the error, until the schema is upgraded."""
    server_url = clusters.get("embedded")[0]
    with (
        new_database(server_url, "pharox_without_schema") as empty,
        Awaited(open_storage(empty)) as storage,
    ):
        assert storage.schema_version() is None
        with pytest.raises(SchemaError, match="upgrade"):
            storage.list_pools()
        storage.upgrade_schema()
        assert storage.list_pools() == []
        assert storage.schema_version() is not None


def test_another_engine_is_refused(url: str) -> None:
    """An engine that is not async, and one of another driver, is refused at once."""
    with pytest.raises(InvalidInputError, match="create_async_engine"):
        AsyncPostgresStorage(create_engine(url))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="AsyncPostgresStorage"):
        PostgresStorage(create_async_engine(url))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"postgresql\+psycopg"):
        AsyncPostgresStorage(create_async_engine("sqlite+aiosqlite://", module=_Nothing()))


class _Nothing:
    """A driver that does nothing, and knows what SQLAlchemy looks at."""

    sqlite_version_info = (3, 40, 0)
    paramstyle = "qmark"

    def __getattr__(self, name: str) -> Any:
        return Exception


def test_a_storage_belongs_to_one_loop(url: str) -> None:
    """Used in another one it says so, instead of failing now and then."""
    storage = open_storage(url)
    with Awaited(storage) as first:
        first.list_pools()
        with pytest.raises(InvalidInputError, match="event loop"):
            asyncio.run(storage.list_pools())
        assert first.list_pools() == []


def test_a_storage_is_closed_with_its_block(url: str) -> None:
    """``async with`` closes the connections, those for threads as well."""

    async def main() -> int:
        async with await pharox.connect_async(url) as storage:
            await storage.list_pools()
            blocking = await storage.blocking()
            await asyncio.to_thread(blocking.list_pools)
            engine = storage.engine
        return engine.sync_engine.pool.checkedin() + blocking.engine.pool.checkedin()  # type: ignore[attr-defined,no-any-return]

    assert asyncio.run(main()) == 0


def test_a_shared_engine_is_left_as_it_was(url: str) -> None:
    """An engine without autocommit works as well, and its user still has transactions."""
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    with Awaited(AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY])) as storage:
        fill(storage)  # type: ignore[arg-type]

        async def main() -> object:
            manager = AsyncProxyManager(storage.awaitable)
            async with manager.with_lease("pool") as lease:
                assert lease is not None
            await asyncio.wait([asyncio.create_task(cancelled(manager))])
            async with engine.connect() as connection:
                await connection.exec_driver_sql("CREATE TABLE undone (x int)")
                await connection.rollback()
                found = await connection.exec_driver_sql("SELECT to_regclass('undone')")
                return found.scalar()

        async def cancelled(manager: AsyncProxyManager) -> None:
            await Interrupted(manager.acquire_proxy("pool"), [1])

        assert storage.run(main()) is None


def test_a_storage_connects_for_threads_as_its_engine_does(url: str) -> None:
    """What an engine was told, such as the application's name, holds for its twin as well."""
    options = {"connect_args": {"application_name": "nightly-crawl", "prepare_threshold": None}}
    with Awaited(open_storage(url, **options)) as storage:
        blocking = storage.blocking()
        assert storage.blocking() is blocking
        (row,) = run_sql(blocking.engine, "SELECT current_setting('application_name')")
        assert row == ("nightly-crawl",)
        with blocking.own_session() as session:
            assert session.connection.prepare_threshold is None
        storage.ping()
        assert blocking.verify() == []


@contextmanager
def locked(kept: Kept) -> Iterator[None]:
    """Lock the leases of a ledger for a block, as a careless person at a prompt does."""
    engine = kept.blocking.engine  # type: ignore[union-attr]
    with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
        connection.exec_driver_sql("LOCK TABLE pharox.leases IN ACCESS EXCLUSIVE MODE")
        yield


@pytest.mark.parametrize("scope", ["asyncio", "anyio"])
def test_a_statement_that_waits_for_too_long_is_cancelled(
    in_postgres: Kept, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    """A cancelled task waits a while for its statement, then has the server cancel it."""
    kept = in_postgres
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", 0.3)
    original = psycopg.AsyncConnection.cancel_safe

    async def over_a_network(self: Any, *, timeout: float) -> None:
        await asyncio.sleep(0.05)
        await original(self, timeout=timeout)

    monkeypatch.setattr(psycopg.AsyncConnection, "cancel_safe", over_a_network)
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    kept.run(manager.cleanup_expired_leases())
    kept.blocking.ensure_consumer("default")
    before = types_of(kept.blocking)

    async def main() -> None:
        if scope == "asyncio":
            async with asyncio.timeout(0.1):
                await manager.acquire_proxy("pool")
        with anyio.fail_after(0.1):
            await manager.acquire_proxy("pool")

    with locked(kept), pytest.raises(TimeoutError):
        kept.run(main())
    assert types_of(kept.blocking) == before
    assert kept.run(manager.acquire_proxy("pool")) is not None


def test_what_came_while_it_was_waited_for_counts(
    in_postgres: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that was cancelled again and again while it was locked out ends the lease."""
    kept = in_postgres
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", 30.0)
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main(lease: Any, unlock: Any) -> None:
        releasing = asyncio.create_task(kept.storage.return_lease(lease))
        for _ in range(5):
            await asyncio.sleep(0.02)
            releasing.cancel()
        unlock()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await releasing
        (returned,) = outcome_of(cancelled.value, "return_lease")
        assert returned.ending.lease.id == lease.id
        assert outcome_of(cancelled.value, "acquire_lease") == ()

    lease = kept.run(manager.acquire_proxy("pool"))
    lock = locked(kept)
    lock.__enter__()
    kept.run(main(lease, lambda: lock.__exit__(None, None, None)))
    kept.assert_nothing_is_left()


@pytest.fixture
def impatient(in_postgres: Kept, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A ledger with a proxy, whose cancelled tasks soon give a silent server up."""
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", 0.2)
    fill(in_postgres.blocking)
    return in_postgres


def test_a_release_that_waits_for_too_long_is_left_to_the_server(
    impatient: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """It is never cancelled there: the task goes on, and the lease ends when the lock does."""
    kept = impatient
    manager = AsyncProxyManager(kept.storage)
    lease = kept.run(manager.acquire_proxy("pool"))

    async def main() -> None:
        async with asyncio.timeout(0.1):
            await manager.release_proxy(lease)

    with locked(kept), pytest.raises(TimeoutError):
        kept.run(main())
    assert "given_up" in caplog.text
    assert "command.failed" in caplog.text
    until(lambda: kept.blocking.get_lease(str(lease.id)).status is LeaseStatus.RELEASED)  # type: ignore[union-attr]
    kept.assert_nothing_is_left()


def test_a_server_that_says_nothing_is_given_up(
    impatient: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    """A cancelled task does not wait for ever for a server that hangs."""
    kept = impatient
    manager = AsyncProxyManager(kept.storage)
    kept.run(manager.cleanup_expired_leases())
    ((pid,),) = run_sql(kept.blocking.engine, f"SELECT pid {OTHERS} AND state = 'idle'")  # type: ignore[union-attr]

    async def main() -> None:
        async with asyncio.timeout(0.1):
            await manager.acquire_proxy("pool")

    os.kill(int(str(pid)), signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            kept.run(main())
    finally:
        os.kill(int(str(pid)), signal.SIGCONT)
    assert "given_up" in caplog.text
    assert kept.run(manager.cleanup_expired_leases()) == 0  # over another connection


def test_bad_input_is_refused_before_anything_is_asked() -> None:
    """Invalid arguments are refused without a database."""
    nowhere = open_storage("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with Awaited(nowhere) as storage:
        with pytest.raises(InvalidLeaseError):
            storage.acquire_lease(AcquireRequest("pool", "w", -1))
        with pytest.raises(InvalidInputError):
            storage.ensure_consumer("\x00")
        with pytest.raises(InvalidLeaseError):
            storage.run(AsyncProxyManager(nowhere).acquire_proxy("pool", duration_seconds=0))


# From a URL


def test_connecting_takes_a_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, or from the environment; what cannot be read is refused without its password."""

    async def pools(given: str | None) -> Any:
        storage = await pharox.connect_async(given)
        try:
            return await storage.list_pools()
        finally:
            await storage.close()

    assert asyncio.run(pools(url)) == []
    monkeypatch.setenv("PHAROX_DATABASE_URL", url)
    assert asyncio.run(pools(None)) == []
    for wrong in ("mysql://u:hunter2@h/d", "postgresql://u:hun@ter2@h/d"):
        with pytest.raises(InvalidInputError) as refused:
            asyncio.run(pools(wrong))
        assert "hunter2" not in str(refused.value)
        assert "ter2" not in str(refused.value)
