"""Errors of connections are ours, and the next call works."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest
from sqlalchemy import create_engine

from pharox import DatabaseUnavailableError, ProxyManager
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, open_engine, run_sql


def test_a_broken_connection_is_told_and_replaced(
    postgres: PostgresStorage, database_url: str
) -> None:
    """When the server ends a connection, one call fails as ours, and the next one works."""
    fill(postgres)
    manager = ProxyManager(postgres)
    other = open_engine(database_url)
    run_sql(
        other,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    other.dispose()
    with pytest.raises(DatabaseUnavailableError):
        manager.acquire_proxy("pool")
    assert manager.acquire_proxy("pool") is not None


def test_an_exhausted_pool_is_told(database_url: str, postgres: PostgresStorage) -> None:
    """A thread that gets no connection from the engine's pool in time gets an error."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    storage = PostgresStorage(engine)
    assert storage.list_pools() == []
    with (
        engine.connect(),
        pytest.raises(DatabaseUnavailableError, match="one for each of the threads"),
    ):
        storage.list_pools()
    engine.dispose()


def test_no_server_is_told() -> None:
    """Where there is no server, that is the error."""
    storage = PostgresStorage(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"))
    with pytest.raises(DatabaseUnavailableError):
        storage.list_pools()
    with pytest.raises(DatabaseUnavailableError):
        storage.upgrade_schema()


def test_another_driver_is_refused() -> None:
    """An engine of another driver is refused when the storage is made."""
    with pytest.raises(ValueError, match=r"postgresql\+psycopg"):
        PostgresStorage(create_engine("sqlite://"))


def test_a_shared_engine_is_left_as_it_was(database_url: str) -> None:
    """An engine without autocommit works as well, and its user still has transactions."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0)
    storage = PostgresStorage(engine)
    fill(storage, 1)
    assert ProxyManager(storage).acquire_proxy("pool") is not None
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE undone (x int)")
        connection.rollback()
        found = connection.exec_driver_sql("SELECT to_regclass('undone')").scalar()
    assert found is None
    engine.dispose()


def test_following_the_log_misses_no_late_commit(
    postgres: PostgresStorage, database_url: str
) -> None:
    """An event that commits after one with a later position is followed all the same."""
    fill(postgres, 2)
    followed = postgres.follow(poll_s=0.01)
    seen: list[str | None] = []

    def read() -> None:
        for event in islice(followed, 2):
            seen.append(event.consumer)
            arrived.set()

    arrived, reader = threading.Event(), threading.Thread(target=read)
    other = open_engine(database_url)
    with other.connect().execution_options(isolation_level="READ COMMITTED") as slow:
        slow.exec_driver_sql(
            "INSERT INTO pharox.events (recorded_at, type, pool_id, consumer, data) VALUES "
            "(now(), 'ConsumerRegistered', gen_random_uuid(), 'late', "
            "jsonb_build_object('consumer_id', gen_random_uuid()))"
        )
        reader.start()
        time.sleep(0.1)  # the reader has taken its first look
        postgres.ensure_consumer("early")
        assert arrived.wait(timeout=10)
        slow.commit()
    reader.join(timeout=10)
    other.dispose()
    assert seen == ["early", "late"]
    early, late = list(postgres.events())[-2:]
    assert (early.consumer, late.consumer) == ("early", "late")
    assert (early.seq + 1, early.position - 1) == (late.seq, late.position)
