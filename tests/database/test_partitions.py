"""The log is cut into partitions by whoever first appends beyond the last one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql

from pharox import ProxyManager
from pharox.log import Extract
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.driver import lacks_partition
from pharox.storage.postgres.history import (
    history_statement,
    page_statement,
    positions_statement,
    seal_statement,
)
from pharox.storage.postgres.sql import Statement
from tests.conftest import fill, run_sql, threads, types_of

from .sealing import append, check_seal, connected, new_role

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


@pytest.fixture
def long(small: PostgresStorage) -> PostgresStorage:
    """A ledger with many small partitions, each with ticks of its own, all of them sealed."""
    fill(small, 8)
    manager = ProxyManager(small)
    for _ in range(150):
        with manager.with_lease("pool") as lease:
            assert lease is not None
        small.seal()
        run_sql(small.engine, "SELECT pharox.complete_tick()")
    assert len(bounds(small)) > 12
    return small


def parts_touched(storage: PostgresStorage, statement: Statement, **values: object) -> set[str]:
    """Run a statement and return which partitions were opened for it: those that it locked."""
    query = (
        "SELECT DISTINCT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() "
        "AND relation::regclass::text ~ '[.](events|seals)_[0-9]+$'"
    )
    with storage.session() as session:
        session.rows(statement, **values)
        return {str(name) for (name,) in session.connection.execute(query)}


def of_last(storage: PostgresStorage, count: int) -> set[str]:
    """Return the names of the partitions of the last parts of the log."""
    firsts = [first for first, _ in bounds(storage)][-count:]
    return {f"pharox.{table}_{first}" for first in firsts for table in ("events", "seals")}


def test_a_sealing_opens_only_what_may_be_unsealed(long: PostgresStorage) -> None:
    """Whether there is something to seal or not, all partitions but the last ones stay shut."""
    sealing = seal_statement(long.schema, wait=False)
    assert parts_touched(long, sealing) <= of_last(long, 2)
    long.ensure_consumer("new")
    touched = parts_touched(long, sealing)
    assert touched & of_last(long, 1)
    assert touched <= of_last(long, 2)


def test_a_slow_transaction_keeps_its_partitions_open(
    long: PostgresStorage, database_url: str
) -> None:
    """What commits late in an old partition is sealed all the same, and then left behind."""
    sealing = seal_statement(long.schema, wait=False)
    with connected(database_url, autocommit=False) as slow:
        append(slow, "slow")
        first = bounds(long)[-1][0]
        for number in range(4 * SIZE):
            long.ensure_consumer(f"quick {number}")
            long.seal()
        assert f"pharox.events_{first}" in parts_touched(long, sealing)
        slow.commit()
    last = long.seal()
    assert [event.consumer for event in long.events(after=last - 1)] == ["slow"]
    for number in range(2):
        long.ensure_consumer(f"later {number}")
        long.seal()
    assert parts_touched(long, sealing) <= of_last(long, 2)
    with connected(database_url) as connection:
        check_seal(connection)


def test_a_transaction_has_its_id_before_a_position(database_url: str) -> None:
    """Sealing relies on it: what begins later appends later."""
    default = "SELECT column_default FROM information_schema.columns WHERE table_name = 'events'"
    with connected(database_url) as connection:
        rows = connection.execute(f"{default} AND column_name = 'position'").fetchall()
        early = "SELECT pg_current_xact_id_if_assigned() AS early OFFSET 0"
        taken = sql.SQL("SELECT early, position FROM (SELECT {} AS position OFFSET 0) p, ({}) e")
        for _ in range(3):
            asked = taken.format(sql.SQL(rows[0]["column_default"]), sql.SQL(early))
            (row,) = connection.execute(asked).fetchall()
            assert row["position"] is not None
            assert row["early"] is not None


def test_an_appender_has_an_id_and_the_lock_before_a_position(
    postgres: PostgresStorage, database_url: str
) -> None:
    """While it waits for the lock it has its id, and no position that it could keep back."""
    waiting = (
        "SELECT backend_xid FROM pg_locks JOIN pg_stat_activity USING (pid) "
        "WHERE relation = 'pharox.events'::regclass AND NOT granted"
    )
    handed_out = "SELECT last_value, is_called FROM pharox.events_position_seq"
    postgres.ensure_consumer("one")
    with (
        connected(database_url) as connection,
        connected(database_url, autocommit=False) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        before = connection.execute(handed_out).fetchall()
        other.execute("LOCK TABLE ONLY pharox.events IN SHARE ROW EXCLUSIVE MODE")
        appending = pool.submit(postgres.ensure_consumer, "two")
        while not (connection.execute(waiting).fetchall() or appending.done()):
            pass
        # The server reads locks and ids one after the other, so only now are they of one moment.
        (row,) = connection.execute(waiting).fetchall()
        assert row["backend_xid"] is not None
        assert connection.execute(handed_out).fetchall() == before
        other.rollback()
        appending.result(timeout=30)
    assert types_of(postgres) == ["ConsumerRegistered"] * 2


def test_readers_open_only_what_they_read(long: PostgresStorage) -> None:
    """A page, a stretch, a fold of the last events leave the rest of the log alone."""
    last = long.seal()
    span = {"after": last - 4, "upto": last}
    with long.session() as session:
        (positions,) = session.rows(positions_statement(long.schema), **span)
    given = frozenset(span)
    for statement, values in (
        (page_statement(long.schema, given), {**span, **positions, "limit": 10}),
        (history_statement(long.schema, given), {**span, **positions}),
    ):
        touched = parts_touched(long, statement, **values)
        assert touched & of_last(long, 1)
        assert touched <= of_last(long, 2)
    middle = {"after": last // 2, "upto": last // 2 + 2}
    with long.session() as session:
        (positions,) = session.rows(positions_statement(long.schema), **middle)
    touched = parts_touched(
        long, page_statement(long.schema, given), **middle, **positions, limit=9
    )
    assert 2 <= len(touched) <= 4


@given(data=st.data())
def test_a_stretch_lies_between_its_positions(long: PostgresStorage, data: st.DataObject) -> None:
    """Wherever a stretch of the log begins and ends, its bounds leave none of its events out."""
    last = long.seal()
    after = data.draw(st.integers(0, last - 1))
    upto = data.draw(st.integers(after + 1, last))
    events = list(long.history(Extract(after=after, upto=upto)))
    assert [event.seq for event in events] == list(range(after + 1, upto + 1))


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
        ("INSERT INTO pharox.seals VALUES (1, 10000000, 1, '')", False),
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
