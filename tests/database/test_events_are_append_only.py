"""Nobody changes the log, its seals or its ticks, their owner included."""

from __future__ import annotations

import psycopg
import pytest

from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, run_sql, types_of

TABLES = {
    "events": ("position", "type = 'Forged'"),
    "events_0": ("position", "type = 'Forged'"),
    "seals": ("position", "digest = ''"),
    "seals_0": ("position", "digest = ''"),
    "ticks": ("last_seq", "root = ''"),
    "tree_nodes": ("level, index", "hash = ''"),
}
"""What may never change, each with its key and how one would forge it."""

CHANGES = {
    "update": "UPDATE pharox.{table} SET {forged}",
    "update nothing": "UPDATE pharox.{table} SET {forged} WHERE false",
    "insert to update": (
        "INSERT INTO pharox.{table} SELECT * FROM pharox.{table} "
        "ON CONFLICT ({key}) DO UPDATE SET {forged}"
    ),
    "delete": "DELETE FROM pharox.{table}",
    "truncate": "TRUNCATE pharox.{table}",
    "truncate cascade": "TRUNCATE pharox.{table} CASCADE",
}


def assert_refused(storage: PostgresStorage, role: str, statement: str) -> None:
    """In a session with this replication role, the database refuses the statement."""
    with storage.engine.connect() as connection:
        connection.exec_driver_sql(f"SET session_replication_role = {role}")
        with pytest.raises(Exception, match="append-only") as refused:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("RESET session_replication_role")
    assert isinstance(refused.value.__cause__, psycopg.errors.RestrictViolation)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_the_log_refuses_every_change(
    postgres: PostgresStorage, table: str, change: str, role: str
) -> None:
    """No statement changes a row, for the owner, as a replica's session too, in a partition too."""
    fill(postgres, 2)
    before = types_of(postgres)
    key, forged = TABLES[table]
    statement = CHANGES[change].format(table=table, key=key, forged=forged)
    assert_refused(postgres, role, statement)
    assert types_of(postgres) == before


def test_the_guard_fires_always(postgres: PostgresStorage) -> None:
    """The trigger is enabled ALWAYS, on each table and on each partition itself."""
    rows = run_sql(
        postgres.engine,
        "SELECT relname::text, tgenabled::text "
        "FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
        "WHERE tgname = 'events_are_append_only' ORDER BY relname",
    )
    assert rows == [(table, "A") for table in TABLES]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE pharox.last_tick SET root = ''",
        "UPDATE pharox.last_tick SET last_seq = last_seq - 1",
        "DELETE FROM pharox.last_tick",
        "TRUNCATE pharox.last_tick",
    ],
)
@pytest.mark.parametrize("role", ["origin", "replica"])
def test_the_last_tick_only_grows(postgres: PostgresStorage, change: str, role: str) -> None:
    """It is neither changed nor taken back, for the owner, and as a replica's session too."""
    fill(postgres, 2)
    last = postgres.seal()
    assert_refused(postgres, role, change)
    postgres.ensure_consumer("one more")
    assert postgres.seal() == last + 1
    assert postgres.verify() == []
