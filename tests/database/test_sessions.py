"""Databases and roles have defaults of their own: the ledger works there, or says what to set."""

from __future__ import annotations

import asyncio
from contextlib import closing

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from pharox import (
    AsyncProxyManager,
    DatabaseError,
    ProxyManager,
    ReadOnlyDatabaseError,
    connect,
    connect_async,
    new_lease_id,
)
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from tests.conftest import fill

NEEDED = [
    ("default_transaction_isolation", "repeatable read"),
    ("default_transaction_isolation", "serializable"),
    ("DateStyle", "German"),
    ("DateStyle", "SQL, DMY"),
    ("DateStyle", "Postgres, MDY"),
    ("client_encoding", "latin1"),
]
HARMLESS = [
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Kathmandu"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-10"),
    ("search_path", ""),
    ("standard_conforming_strings", "off"),
    ("row_security", "off"),
    ("client_encoding", "sql_ascii"),
]

POOL, CONSUMER = "Z\u00fcrich \u20ac", "caf\u00e9 \u20ac"
"""Names that Latin-1 cannot spell."""


def run(url: str, query: sql.Composed) -> None:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(query)


def have(url: str, name: str, value: str) -> None:
    """Give a database another default."""
    run(
        url,
        sql.SQL("ALTER DATABASE {} SET {} = {}").format(
            sql.Identifier(str(make_url(url).database)), sql.Identifier(name), sql.Literal(value)
        ),
    )


@pytest.mark.parametrize(("name", "value"), [*NEEDED, *HARMLESS])
def test_whatever_the_defaults_are_our_connections_do(
    database_url: str, name: str, value: str
) -> None:
    """Leasing, under ids too, releasing, sealing, reading, rebuilding and verifying."""
    have(database_url, name, value)
    with closing(connect(database_url)) as storage:
        fill(storage, 2, name=POOL)
        manager, mine = ProxyManager(storage), new_lease_id()
        lease = manager.acquire_proxy(POOL, CONSUMER, lease_id=mine)
        assert lease is not None
        assert manager.acquire_proxy(POOL, CONSUMER, lease_id=mine) == lease
        with manager.with_lease(POOL) as other:
            assert other is not None
        manager.release_proxy(lease)
        found = storage.get_lease(str(mine))
        assert found is not None
        assert (found.status, found.consumer_name) == ("released", CONSUMER)
        events = list(storage.events())
        assert [event.type for event in events].count("LeaseReleased") == 2
        assert storage.state_at(len(events))["leases"] == {}
        assert rebuild(storage).findings == ()
        assert storage.verify() == []


def test_nothing_of_ours_is_compiled(database_url: str) -> None:
    """PostgreSQL may compile what is dear, which takes longer than any statement of the ledger.

    What turns ways of finding rows off makes the others dear, so it says so for everybody. An
    engine of one's own keeps its setting for all else.
    """
    have(database_url, "jit", "on")
    turned_off = (
        "SELECT proname, 'jit=off' = ANY(proconfig) FROM pg_proc "
        "WHERE pronamespace = 'pharox'::regnamespace AND proconfig::text LIKE '%enable_%'"
    )
    with closing(connect(database_url)) as ours, ours.session() as session:
        assert session.connection.execute("SHOW jit").fetchone() == ("off",)
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with closing(PostgresStorage(engine)) as theirs, theirs.session() as session:
        assert session.connection.execute("SHOW jit").fetchone() == ("on",)
        functions = dict(session.connection.execute(turned_off).fetchall())
    assert len(functions) > 30
    assert [name for name, compiles_nothing in functions.items() if not compiles_nothing] == []


@pytest.mark.parametrize(("name", "value"), NEEDED)
def test_whatever_the_defaults_are_so_do_those_of_tasks(
    database_url: str, name: str, value: str
) -> None:
    """The same for code that awaits, and for the part of it that goes to threads."""
    with closing(connect(database_url)) as blocking:
        fill(blocking, 1)
    have(database_url, name, value)

    async def main() -> None:
        async with await connect_async(database_url) as storage:
            manager = AsyncProxyManager(storage)
            async with manager.with_lease("pool", lease_id=new_lease_id()) as lease:
                assert lease is not None
            assert [event async for event in storage.events()]
            assert (await storage.blocking()).verify() == []

    asyncio.run(main())


@pytest.mark.parametrize(("name", "value"), NEEDED)
def test_an_engine_of_ones_own_is_told_at_first_use(
    database_url: str, name: str, value: str
) -> None:
    """Its sessions are not ours to set; the error names the setting, and how to set it."""
    have(database_url, name, value)
    storage = PostgresStorage(create_engine(database_url, isolation_level="AUTOCOMMIT"))
    for _ in range(2):
        with pytest.raises(DatabaseError, match=rf"{name} is .*`ALTER ROLE .* SET {name}") as told:
            storage.list_pools()
    assert told.value.data["setting"] == name
    storage.close()

    async def main() -> None:
        engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
        async with AsyncPostgresStorage(engine) as storage:
            with pytest.raises(DatabaseError, match=name):
                await storage.list_pools()

    asyncio.run(main())


def test_what_the_error_says_helps(database_url: str) -> None:
    """An engine that sets what is needed in its options can be used."""
    have(database_url, "default_transaction_isolation", "serializable")
    have(database_url, "DateStyle", "German")
    options = r"-c default_transaction_isolation=read\ committed -c DateStyle=ISO"
    engine = create_engine(database_url, connect_args={"options": options})
    with closing(PostgresStorage(engine)) as storage:
        fill(storage, 1)
        assert storage.verify() == []


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_engine_with_another_isolation_is_told(database_url: str, level: str) -> None:
    """SQLAlchemy would begin our transactions with it."""
    engine = create_engine(database_url, isolation_level=level)
    with (
        closing(PostgresStorage(engine)) as storage,
        pytest.raises(DatabaseError, match=rf"isolation_level is {level}.*READ COMMITTED"),
    ):
        storage.list_pools()


def test_a_database_that_is_set_to_be_read_only_is_respected(database_url: str) -> None:
    """Somebody means that: reading works, and writing names the setting."""
    have(database_url, "default_transaction_read_only", "on")
    with closing(connect(database_url)) as storage:
        assert storage.list_pools() == []
        for write in (lambda: fill(storage, 1), storage.cleanup_expired_leases):
            with pytest.raises(ReadOnlyDatabaseError, match="default_transaction_read_only"):
                write()


def test_each_connection_is_looked_at_once(database_url: str) -> None:
    """A command costs no question more: what is set afterwards is not seen."""
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT", pool_size=1)
    with closing(PostgresStorage(engine)) as storage:
        storage.list_pools()
        with storage._driver.connection() as connection:
            connection.execute("SET default_transaction_isolation = 'serializable'")
        assert storage.list_pools() == []
