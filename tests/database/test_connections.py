"""Errors of connections are ours, and the next call works."""

from __future__ import annotations

import threading
import time
from itertools import islice
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from pharox import DatabaseError, DatabaseUnavailableError, ProxyManager
from pharox.storage.postgres import PostgresStorage, driver
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


def test_what_is_lent_while_a_storage_is_closed_is_closed_as_it_returns(
    postgres: PostgresStorage, database_url: str
) -> None:
    """None of its connections is left open until Python happens to collect it."""
    storage = PostgresStorage(open_engine(database_url))
    with storage.session() as lent:
        connection = lent.connection
        storage.close()
        assert not connection.closed
    assert connection.closed
    assert storage.list_pools() == []  # Whoever goes on gets another.
    storage.close()


def test_a_deadlock_is_tried_again(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server ended did nothing, so it begins anew; a fourth time is told."""
    fill(postgres, 1)
    answer, refused = driver._answer, list[None]()

    def deadlock(*arguments: Any) -> Any:
        if len(refused) < times:
            refused.append(None)
            raise psycopg.errors.DeadlockDetected("deadlock detected")
        return answer(*arguments)

    monkeypatch.setattr(driver, "_answer", deadlock)
    times = 3
    assert postgres.get_pool_by_name("pool") is not None
    refused.clear()
    times = 4
    with pytest.raises(DatabaseError, match="deadlock detected"):
        postgres.get_pool_by_name("pool")
    assert len(refused) == 4


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
