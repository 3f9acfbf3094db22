"""The log is cut into partitions by whoever first appends beyond the last one."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from pharox import ProxyManager
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.driver import lacks_partition
from tests.conftest import fill, run_sql, threads, types_of

from .sealing import check_seal, connected, new_role

SIZE = 25


@pytest.fixture
def small(postgres: PostgresStorage) -> PostgresStorage:
    """A ledger whose log has no partition yet, and gets small ones."""
    for statement in (
        "CREATE OR REPLACE FUNCTION pharox.partition_rows() RETURNS bigint "
        f"LANGUAGE sql STABLE AS 'SELECT {SIZE}::bigint'",
        "DROP TABLE pharox.events_0, pharox.seals_0",
        "DELETE FROM pharox.partitions",
    ):
        run_sql(postgres.engine, statement)
    return postgres


def bounds(storage: PostgresStorage) -> list[tuple[object, ...]]:
    """Return where the partitions begin and end, in order."""
    query = "SELECT first_position, end_position FROM pharox.partitions ORDER BY first_position"
    return run_sql(storage.engine, query)


def partitions_of(storage: PostgresStorage, table: str) -> set[str]:
    """Return the names of a table's partitions."""
    query = sql.SQL("SELECT relid::regclass::text FROM pg_partition_tree({}) WHERE level = 1")
    rows = run_sql(storage.engine, query.format(f"pharox.{table}"))
    return {str(name) for (name,) in rows}


def test_leasing_goes_on_over_every_border(small: PostgresStorage, database_url: str) -> None:
    """Eight threads append over a dozen borders: no error, no drift, one sealed log."""
    fill(small, 8)
    manager = ProxyManager(small)

    def work(_: int) -> None:
        for turn in range(25):
            with manager.with_lease("pool") as lease:
                assert lease is not None
            if turn % 10 == 0:
                small.seal()

    threads(8, work)
    assert small.verify() == []
    assert types_of(small).count("LeaseAcquired") == 200
    with connected(database_url) as connection:
        rows = check_seal(connection)
    borders = bounds(small)
    assert borders == [(n * SIZE, (n + 1) * SIZE) for n in range(len(borders))]
    assert len({row["position"] // SIZE for row in rows}) > 12
    for table in ("events", "seals"):
        assert partitions_of(small, table) == {f"pharox.{table}_{first}" for first, _ in borders}


def test_a_command_of_many_statements_goes_over_a_border(small: PostgresStorage) -> None:
    """A command of several statements that meets a border is done as a whole, and once."""
    for number in range(4):
        fill(small, 20, name=f"pool {number}")
    assert types_of(small).count("ProxyRegistered") == 80
    assert len(bounds(small)) > 3
    assert small.verify() == []


def test_a_partition_is_made_once(small: PostgresStorage) -> None:
    """Eight at once who lack a partition get one, and nobody fails."""

    def work(number: int) -> None:
        small.ensure_consumer(f"consumer {number}")

    threads(8, work)
    assert bounds(small) == [(0, SIZE)]
    assert types_of(small) == ["ConsumerRegistered"] * 8


def test_a_new_partition_is_guarded(small: PostgresStorage) -> None:
    """A partition that was made while leasing refuses changes as the first one does."""
    fill(small, 2 * SIZE - 30)
    fill(small, 20, name="other")
    assert len(bounds(small)) > 1
    small.seal()
    for table in partitions_of(small, "events") | partitions_of(small, "seals"):
        for change in ("UPDATE {} SET position = 0", "DELETE FROM {}", "TRUNCATE {}"):
            name = sql.Identifier(*table.split("."))
            with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
                run_sql(small.engine, sql.SQL(change).format(name))


def test_adding_a_partition_twice_changes_nothing(postgres: PostgresStorage) -> None:
    """Where the next position has its place, there is nothing to add."""
    before = bounds(postgres)
    run_sql(postgres.engine, "SELECT pharox.add_partition()")
    assert bounds(postgres) == before == [(0, 10_000_000)]


def test_an_ordinary_role_may_cross_a_border(small: PostgresStorage, database_url: str) -> None:
    """Whoever may append may have a partition made, without the right to make tables."""
    with connected(database_url) as connection, new_role(connection) as role:
        for statement in ("GRANT USAGE ON SCHEMA pharox TO {}", "SET ROLE {}"):
            connection.execute(sql.SQL(statement).format(sql.Identifier(role)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE TABLE pharox.own (x int)")
        connection.execute("SELECT pharox.add_partition()")
        connection.execute("RESET ROLE")
    assert bounds(small) == [(0, SIZE)]


@pytest.mark.parametrize(
    ("statement", "lacks"),
    [
        (
            "INSERT INTO pharox.events (position, recorded_at, type, pool_id, data) "
            "VALUES (10000000, now(), 'PoolRemoved', gen_random_uuid(), '{}')",
            True,
        ),
        ("INSERT INTO pharox.seals VALUES (1, 10000000, '')", False),
        (
            "INSERT INTO pharox.proxies (id, pool_id, protocol, host, port) "
            "VALUES (gen_random_uuid(), gen_random_uuid(), 'http', 'h', 0)",
            False,
        ),
        (
            "INSERT INTO pharox.events (recorded_at, type, data) "
            "VALUES (now(), 'PoolRemoved', '{}')",
            False,
        ),
    ],
    ids=["no partition of events", "no partition of seals", "a port", "a missing value"],
)
def test_a_missing_partition_is_told_from_other_errors(
    database_url: str, statement: str, lacks: bool
) -> None:
    """Only an event without a partition is a reason to make one and to ask again."""
    with (
        connected(database_url) as connection,
        pytest.raises(psycopg.IntegrityError) as refused,
    ):
        connection.execute(statement.encode())
    assert lacks_partition(refused.value) is lacks
