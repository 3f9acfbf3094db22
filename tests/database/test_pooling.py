"""Through a pooler and with prepared statements or none, the ledger is the same."""

from __future__ import annotations

import asyncio
from contextlib import closing
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine

from pharox import (
    AsyncProxyManager,
    DatabaseError,
    ProxyManager,
    connect,
    connect_async,
    new_lease_id,
)
from pharox.ledger.rebuild import rebuild
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.batch import Batch, Unsettled
from tests import pgbouncer
from tests.conftest import SECRET_KEY, fill, threads
from tests.pgbouncer import pooled_engine

from .sealing import check_seal, connected
from .test_sessions import have


def use(engine: Engine) -> PostgresStorage:
    """Lease from four threads, read the log meanwhile, and see that all of it is right."""
    storage = PostgresStorage(engine, secret_keys=[SECRET_KEY])
    pool, _ = fill(storage, 4)
    manager = ProxyManager(storage)

    def work(number: int) -> None:
        for _ in range(15):
            with manager.with_lease("pool", f"consumer {number}") as lease:
                assert lease is not None
            seqs = [event.seq for event in storage.history(Extract(consumer=f"consumer {number}"))]
            assert seqs == sorted(seqs)

    threads(4, work)
    events = list(storage.events())
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events].count("LeaseReleased") == 60
    assert list(islice(storage.follow(after=0), len(events))) == events
    assert len(storage.state_at(len(events))["leases"]) == 0
    assert list(storage.history(Extract(pool_id=pool.id, upto=1))) == events[:1]
    assert storage.verify() == []
    return storage


def test_all_works_through_a_pooler_of_transactions(pooled_url: str, database_url: str) -> None:
    """Leasing, sealing, reading and verifying need no session that outlives a transaction."""
    engine = pooled_engine(pooled_url)
    use(engine)
    engine.dispose()
    with connected(database_url) as connection:
        check_seal(connection)


@pytest.mark.parametrize("threshold", [None, 0, 1, 5])
def test_statements_may_be_prepared(database_url: str, threshold: int | None) -> None:
    """From the first execution on, later or never: the driver may prepare what it likes."""
    engine = create_engine(
        database_url,
        isolation_level="AUTOCOMMIT",
        connect_args={"prepare_threshold": threshold},
    )
    storage = use(engine)
    for _ in range(40):  # On each connection: verify ends with a rollback, which forgets them.
        storage.list_pools()
    assert bool(names_of(storage)) is (threshold is not None)
    storage.close()
    with connected(database_url) as plain:
        check_seal(plain)


def names_of(storage: PostgresStorage) -> set[str]:
    with storage._driver.connection() as connection:
        rows = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    return {row[0] for row in rows}


def test_no_two_connections_name_a_statement_alike(database_url: str) -> None:
    """Behind a pooler that lends one session to both, neither would run the other's."""
    first, second = connect(database_url), connect(database_url)
    for storage in (first, second):
        for _ in range(8):
            storage.list_pools()
    assert names_of(first)
    assert names_of(second)
    assert names_of(first).isdisjoint(names_of(second))
    first.close()
    second.close()


@pytest.mark.parametrize("given", ["prepare=False", "?prepare=off"])
def test_nothing_is_prepared_if_one_says_so(database_url: str, given: str) -> None:
    """To connecting, or in the URL."""
    url = f"{database_url}&prepare=off" if given == "?prepare=off" else database_url
    with closing(connect(url, prepare=False if given == "prepare=False" else None)) as storage:
        for _ in range(8):
            storage.list_pools()
        assert names_of(storage) == set()


@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("size", [2, 20])
def test_nothing_has_to_be_said_of_a_pooler(database_url: str, mode: str, size: int) -> None:
    """What is asked is what runs, from threads that share few sessions of the database."""
    if pgbouncer.BINARY is None:
        pytest.skip("there is no pgbouncer here")
    if mode == "session":
        size = 20  # as each of our connections keeps one
    with pgbouncer.in_front_of(database_url, mode, default_pool_size=size) as url:
        first, second = connect(url), connect(url)
        use(first.engine)
        with ProxyManager(second).with_lease("pool", lease_id=new_lease_id()) as lease:
            assert lease is not None
        assert second.verify() == []
        first.close()
        second.close()


def test_tasks_lease_through_a_pooler(pooled_url: str, database_url: str) -> None:
    """The same for code that awaits."""
    with closing(connect(database_url)) as storage:
        fill(storage, 4)

    async def main() -> None:
        async with await connect_async(pooled_url) as storage:
            manager = AsyncProxyManager(storage)

            async def work(number: int) -> None:
                for _ in range(15):
                    async with manager.with_lease("pool", f"consumer {number}") as lease:
                        assert lease is not None

            await asyncio.gather(*(work(number) for number in range(4)))

    asyncio.run(main())
    with closing(connect(database_url)) as storage:
        assert [event.type for event in storage.events()].count("LeaseReleased") == 60
        assert storage.verify() == []


def test_an_old_pooler_that_is_to_keep_statements_says_so(pooled_url: str) -> None:
    """With ``prepare=True`` what was prepared elsewhere is an error that says what to do."""
    storage = connect(pooled_url, prepare=True)
    fill(storage, 4)

    def work(_: int) -> None:
        for _ in range(300):
            storage.list_pools()

    with pytest.raises(DatabaseError, match=r"prepare=False.*prepare=off"):
        threads(8, work)
    storage.close()


def test_what_needs_a_session_refuses_a_pooler_of_transactions(pooled_url: str) -> None:
    """A rebuild would share its session with others, and leave its lock there."""
    with closing(connect(pooled_url)) as storage:
        fill(storage, 1)
        with pytest.raises(DatabaseError, match="needs its own session"):
            rebuild(storage)
        assert storage.verify() == []


@pytest.mark.parametrize(
    ("settings", "parameter", "said"),
    [
        ({"mode": "statement"}, "", "set its pool_mode to transaction or session"),
        ({}, "&options=-c%20jit%3Doff", "ignore_startup_parameters"),
    ],
)
def test_what_a_pooler_refuses_is_told_with_advice(
    database_url: str, settings: dict[str, Any], parameter: str, said: str
) -> None:
    """In our own error, for whatever is asked first."""
    if pgbouncer.BINARY is None:
        pytest.skip("there is no pgbouncer here")
    with pgbouncer.in_front_of(database_url, **settings) as url:
        storage = connect(url + parameter)
        for ask in (storage.list_pools, storage.upgrade_schema):
            with pytest.raises(DatabaseError, match=said):
                ask()
        storage.close()


def test_another_isolation_behind_a_pooler_is_refused(database_url: str) -> None:
    """What is set there would be set for others, and perhaps not for us."""
    if pgbouncer.BINARY is None:
        pytest.skip("there is no pgbouncer here")
    have(database_url, "default_transaction_isolation", "serializable")
    with (
        pgbouncer.in_front_of(database_url) as url,
        closing(connect(url)) as storage,
        pytest.raises(DatabaseError, match="connect_query"),
    ):
        storage.list_pools()


def test_other_dates_behind_a_pooler_are_set(database_url: str) -> None:
    """The pooler keeps those of its clients apart."""
    if pgbouncer.BINARY is None:
        pytest.skip("there is no pgbouncer here")
    have(database_url, "DateStyle", "German")
    with pgbouncer.in_front_of(database_url) as url, closing(connect(url)) as storage:
        use(storage.engine)


def test_a_release_that_finds_its_lease_active_raises(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever kept the database from it: to return would be to say that it has ended."""
    fill(postgres, 1)
    lease = ProxyManager(postgres).acquire_proxy("pool")
    assert lease is not None
    # As where another statement runs in its place.
    monkeypatch.setattr(Batch, "outcomes", lambda *_: [Unsettled("locked")])
    with pytest.raises(DatabaseError, match=f"{lease.id} is still active") as told:
        postgres.release_lease(lease)
    assert told.value.data["lease_id"] == lease.id
    monkeypatch.undo()
    postgres.release_lease(lease)
    assert lease.status == "released"
