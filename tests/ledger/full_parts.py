"""A ledger whose log has small parts, so that a few leases fill some of them."""

from __future__ import annotations

from pharox import ProxyManager
from pharox.storage.postgres import PostgresStorage
from tests.conftest import Clock, clock_of, fill, run_sql


def small_parts(storage: PostgresStorage, rows: int = 20) -> None:
    """Make each part of an empty log as small as this."""
    for statement in (
        f"CREATE OR REPLACE FUNCTION pharox.partition_rows() RETURNS bigint LANGUAGE sql STABLE "
        f"AS 'SELECT {rows}::bigint'",
        "DROP TABLE pharox.events_0, pharox.seals_0",
        "DELETE FROM pharox.partitions",
        "SELECT pharox.add_partition()",
    ):
        run_sql(storage.engine, statement)


def full_parts(storage: PostgresStorage, leases: int = 30) -> Clock:
    """Fill an empty log whose parts are small; return its clock, an hour later."""
    small_parts(storage)
    clock = clock_of(storage)
    fill(storage, 3)
    lease_often(storage, clock, leases)
    clock.advance(3600)
    return clock


def lease_often(storage: PostgresStorage, clock: Clock, leases: int) -> None:
    """Acquire and release in turn, and complete a tick now and then."""
    manager = ProxyManager(storage)
    for number in range(leases):
        lease = manager.acquire_proxy("pool", consumer_name=f"worker-{number % 3}")
        assert lease is not None
        clock.advance(1)
        manager.release_proxy(lease)
        clock.advance(1)
        if number % 4 == 0:
            storage.seal()
            run_sql(storage.engine, "SELECT pharox.complete_tick()")


def tables_of(storage: PostgresStorage) -> set[str]:
    """Return the names of the tables of parts, attached and detached."""
    query = (
        "SELECT relname FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = 'pharox'::regnamespace "
        "AND relname ~ '^(events|seals)_[0-9]+$'"
    )
    return {str(name) for (name,) in run_sql(storage.engine, query)}


def attached_to(storage: PostgresStorage) -> set[str]:
    """Return the names of those that are in the log."""
    query = (
        "SELECT relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid "
        "WHERE inhparent IN ('pharox.events'::regclass, 'pharox.seals'::regclass)"
    )
    return {str(name) for (name,) in run_sql(storage.engine, query)}
