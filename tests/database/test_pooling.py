"""Through a pooler and with prepared statements or none, the ledger is the same."""

from __future__ import annotations

from itertools import islice

import pytest
from sqlalchemy import Engine, create_engine

from pharox import ProxyManager
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, threads
from tests.pgbouncer import pooled_engine

from .sealing import check_seal, connected


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
    with storage._driver.connection() as connection:
        prepared = connection.execute("SELECT name FROM pg_prepared_statements").fetchall()
    assert bool(prepared) is (threshold is not None)
    storage.close()
    with connected(database_url) as plain:
        check_seal(plain)
