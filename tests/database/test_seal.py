"""Whoever seals gives each committed event its place: once, dense, and none too early."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import islice
from uuid import uuid4

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql
from sqlalchemy import make_url

from pharox import ProxyManager
from pharox.log.canonical import root
from pharox.models import utc_now
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.sql import quoted
from tests.conftest import SECRET_KEY, fill, open_engine

from .sealing import (
    Connection,
    Row,
    append,
    check_seal,
    connected,
    new_role,
    seal,
    sealed_names,
    ticks,
)


@pytest.fixture
def sealer(database_url: str) -> Iterator[Connection]:
    """A connection that seals."""
    with connected(database_url) as connection:
        yield connection


@pytest.fixture
def writer(database_url: str) -> Iterator[Connection]:
    """A connection whose transactions the test ends."""
    with connected(database_url, autocommit=False) as connection:
        yield connection


@pytest.fixture
def other_writer(database_url: str) -> Iterator[Connection]:
    """Another one."""
    with connected(database_url, autocommit=False) as connection:
        yield connection


# The order


def test_seq_counts_from_one_without_gaps(postgres: PostgresStorage, sealer: Connection) -> None:
    """Events of many commands are sealed by position, and their seqs are 1, 2, 3, ..."""
    fill(postgres, 5)
    manager = ProxyManager(postgres)
    assert seal(sealer) == 6
    for _ in range(3):
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease)
    assert seal(sealer) == 13
    rows = check_seal(sealer)
    assert [row["position"] for row in rows] == sorted(row["position"] for row in rows)
    assert [(tick["first_seq"], tick["last_seq"]) for tick in ticks(sealer)] == [(1, 13)]


def test_a_late_commit_comes_later_but_comes(
    sealer: Connection, writer: Connection, other_writer: Connection
) -> None:
    """An event with an earlier position that commits later gets the later seq."""
    append(writer, "slow")
    append(other_writer, "quick")
    other_writer.commit()
    assert (seal(sealer), sealed_names(sealer)) == (1, ["quick"])
    writer.commit()
    assert (seal(sealer), sealed_names(sealer)) == (2, ["quick", "slow"])
    slow, quick = sorted(check_seal(sealer), key=lambda row: row["position"])
    assert (slow["seq"], quick["seq"]) == (2, 1)


def test_a_transaction_of_many_ticks_waits_its_turn(sealer: Connection, writer: Connection) -> None:
    """An event stays unsealed over any number of ticks for as long as its commit takes."""
    append(writer, "slow")
    for number in range(5):
        append(sealer, f"quick {number}")
        assert seal(sealer) == number + 1
    append(writer, "slow as well")
    writer.commit()
    assert seal(sealer) == 7
    assert [row["consumer"] for row in check_seal(sealer)[5:]] == ["slow", "slow as well"]


def test_a_late_commit_is_seen_from_wherever_one_reads_on(
    postgres: PostgresStorage, sealer: Connection, writer: Connection, other_writer: Connection
) -> None:
    """Its position lies before those of ticks that are complete, and readers begin in them."""
    append(sealer, *["early"] * 1_005)
    seal(sealer)
    append(writer, "late")
    append(sealer, *["quick"] * 1_100)
    seal(sealer)
    append(other_writer, "later")
    append(sealer, "quick")
    seal(sealer)
    writer.commit()
    seal(sealer)
    append(sealer, *["quick"] * 1_500)
    seal(sealer)
    other_writer.commit()
    last = seal(sealer)
    for after in (0, 1_004, 1_005, 1_006, 1_500, 2_105, 2_106, 2_107, 3_000, last - 1):
        assert [event.seq for event in postgres.events(after=after)] == [
            *range(after + 1, last + 1)
        ]
    check_seal(sealer)


def test_moments_have_a_place_in_the_log_however_far_off(
    postgres: PostgresStorage, sealer: Connection
) -> None:
    """Before the first event there is nothing, after the last there is all; both are found."""
    append(sealer, *["early"] * 3_000)
    last = seal(sealer)
    sealer.execute("ANALYZE pharox.events")
    sealer.execute("ANALYZE pharox.seals")
    (first,) = islice(postgres.events(), 1)
    long_ago = (datetime.min.replace(tzinfo=UTC), first.recorded_at - timedelta(days=400))
    assert [postgres.seq_at(moment) for moment in long_ago] == [0, 0]
    far_off = (first.recorded_at, utc_now() + timedelta(days=400), datetime.max.replace(tzinfo=UTC))
    assert [postgres.seq_at(moment) for moment in far_off] == [last] * 3


def test_a_rollback_leaves_no_gap(sealer: Connection, writer: Connection) -> None:
    """Positions of a transaction that was rolled back are lost, seqs are not."""
    append(sealer, "one")
    append(writer, "undone")
    assert seal(sealer) == 1
    writer.rollback()
    append(sealer, "two")
    assert seal(sealer) == 2
    assert [row["position"] for row in check_seal(sealer)] == [1, 3]


def test_a_savepoint_counts_as_its_transaction(sealer: Connection, writer: Connection) -> None:
    """Of a transaction in progress nothing is sealed, however many savepoints it has released."""
    append(writer, "begun")
    for number in range(100):  # more than a snapshot lists
        with writer.transaction():
            append(writer, f"kept {number}")
    with writer.transaction() as undone:
        append(writer, "undone")
        raise psycopg.Rollback(undone)
    append(sealer, "quick")
    assert (seal(sealer), sealed_names(sealer)) == (1, ["quick"])
    writer.commit()
    assert seal(sealer) == 102
    assert sealed_names(sealer) == ["quick", "begun", *(f"kept {number}" for number in range(100))]
    check_seal(sealer)


def last_tick(connection: Connection) -> Row:
    """Return the last tick, and what the next sealing has to know."""
    (row,) = connection.execute("SELECT * FROM pharox.last_tick").fetchall()
    return row


def test_ticks_do_not_depend_on_how_often_somebody_seals(sealer: Connection) -> None:
    """The last tick grows with each sealing until it has a thousand events, and is kept then."""
    for number in range(1, 2_002):
        append(sealer, "x")
        assert seal(sealer) == number
    check_seal(sealer)
    assert [(tick["first_seq"], tick["last_seq"]) for tick in ticks(sealer)] == [
        (1, 1_000),
        (1_001, 2_000),
        (2_001, 2_001),
    ]


def test_a_copied_tick_can_be_checked_for_ever(sealer: Connection) -> None:
    """Whatever the last tick was when somebody copied it, its root follows from what is kept."""
    copies = []
    for number in range(2_100):
        append(sealer, "x")
        seal(sealer)
        if number % 70 == 0:
            copies.append(last_tick(sealer))
    digests = [row["digest"] for row in check_seal(sealer)]
    kept = {tick["last_seq"]: tick["root"] for tick in ticks(sealer)}
    for copy in copies:
        before = kept[copy["first_seq"] - 1] if copy["first_seq"] > 1 else b""
        events = digests[copy["first_seq"] - 1 : copy["last_seq"]]
        assert root(before, copy, events) == copy["root"]


def test_a_large_sealing_is_cut_into_ticks(sealer: Connection) -> None:
    """What one sealing takes becomes ticks of at most 100,000 events, all in one chain."""
    append(sealer, *(["x"] * 100_001))
    assert seal(sealer) == 100_001
    check_seal(sealer)
    assert [tick["last_seq"] for tick in ticks(sealer)] == [100_000, 100_001]


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["append", "append", "commit", "rollback", "seal", "seal elsewhere"]),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_any_interleaving_is_sealed_once(
    sealer: Connection, database_url: str, steps: list[tuple[int, str]]
) -> None:
    """Whatever three transactions do in turn, each committed event is sealed exactly once."""
    run, committed = uuid4().hex, set(sealed_names(sealer))
    with ExitStack() as until_the_end:
        writers = [
            until_the_end.enter_context(connected(database_url, autocommit=False)) for _ in range(3)
        ]
        pending: list[set[str]] = [set(), set(), set()]
        for number, (who, what) in enumerate(steps):
            if what == "append":
                append(writers[who], f"{run} {number}")
                pending[who].add(f"{run} {number}")
            elif what == "commit":
                writers[who].commit()
                committed |= pending[who]
                pending[who] = set()
            elif what == "rollback":
                writers[who].rollback()
                pending[who] = set()
            else:
                seal(sealer if what == "seal elsewhere" else writers[who])
            assert set(sealed_names(sealer)) <= committed
        for who in (2, 0, 1):
            writers[who].commit()
            committed |= pending[who]
        seal(sealer)
    rows = check_seal(sealer)
    assert len(rows) == len(committed)
    assert {row["consumer"] for row in rows} == committed


# Who may seal, and when


def test_two_sealers_do_not_seal_twice(sealer: Connection, writer: Connection) -> None:
    """While one seals, another goes on with what is sealed, or waits for it if it asks to."""
    append(sealer, "one")
    assert seal(sealer) == 1
    append(sealer, "two")
    assert seal(writer) == 2
    assert seal(sealer) == 1
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seal, sealer, wait=True)
        while not (waiting.done() or lock_is_awaited(writer)):
            pass
        assert not waiting.done()
        writer.commit()
        assert waiting.result(timeout=30) == 2
    assert len(check_seal(sealer)) == 2


def test_a_sealing_that_is_rolled_back_never_was(sealer: Connection, writer: Connection) -> None:
    """Whoever waited for a sealer that failed seals in its place."""
    append(sealer, "one", "two")
    assert seal(writer) == 2
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(seal, sealer, wait=True)
        while not (waiting.done() or lock_is_awaited(writer)):
            pass
        writer.rollback()
        assert waiting.result(timeout=30) == 2
    assert len(check_seal(sealer)) == 2


def lock_is_awaited(connection: Connection) -> bool:
    """Return whether a session waits for an advisory lock in this database."""
    query = (
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return connection.execute(query).rowcount > 0


def test_what_the_sealer_has_not_committed_is_not_sealed(
    sealer: Connection, writer: Connection
) -> None:
    """A transaction that seals leaves out its own events, and none of them is lost."""
    append(writer, "own")
    append(sealer, "other")
    assert (seal(writer), sealed_names(writer)) == (1, ["other"])
    append(writer, "own, later")
    append(sealer, "another")
    assert (seal(writer), sealed_names(writer)) == (2, ["other", "another"])
    writer.commit()
    assert seal(sealer) == 4
    assert sealed_names(sealer) == ["other", "another", "own", "own, later"]
    check_seal(sealer)


def test_the_first_sealing_leaves_out_its_own_events_too(
    sealer: Connection, writer: Connection
) -> None:
    """So it is where nothing has been sealed before, and all there is are the sealer's events."""
    append(writer, "own")
    append(sealer, "other")
    assert (seal(writer), sealed_names(writer)) == (1, ["other"])
    writer.commit()
    assert seal(sealer) == 2
    check_seal(sealer)


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_cannot_seal(writer: Connection, isolation: str) -> None:
    """A transaction that sees one moment only would seal by an outdated tick, so it may not."""
    writer.execute(sql.SQL("SET TRANSACTION ISOLATION LEVEL {}").format(sql.SQL(isolation)))
    with pytest.raises(psycopg.errors.InvalidTransactionState, match="READ COMMITTED"):
        seal(writer)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_who_may_only_read_is_told_the_last_seq(
    sealer: Connection, writer: Connection, isolation: str
) -> None:
    """In a read-only transaction, as on a standby, nothing is sealed and nothing fails."""
    append(sealer, "sealed")
    assert seal(sealer) == 1
    append(sealer, "unsealed")
    writer.execute(
        sql.SQL("SET TRANSACTION ISOLATION LEVEL {} READ ONLY").format(sql.SQL(isolation))
    )
    assert [seal(writer), seal(writer, wait=True)] == [1, 1]
    assert sealed_names(sealer) == ["sealed"]


def test_nobody_waits_for_a_transaction_of_another_database(
    sealer: Connection, server_url: str
) -> None:
    """A transaction that is open elsewhere in the cluster keeps nothing from being sealed."""
    with connected(server_url, autocommit=False) as foreign:
        foreign.execute("SELECT pg_current_xact_id()")
        append(sealer, "here")
        assert seal(sealer) == 1
        append(sealer, "and here")
        assert seal(sealer) == 2


def test_an_ordinary_role_leases_and_seals(database_url: str, postgres: PostgresStorage) -> None:
    """Rights on the schema's tables, sequence and functions are enough; ownership is not needed."""
    fill(postgres, 2)
    with connected(database_url) as owner, new_role(owner) as role:
        for grant in (
            "GRANT USAGE ON SCHEMA pharox TO {}",
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pharox TO {}",
            "GRANT USAGE ON ALL SEQUENCES IN SCHEMA pharox TO {}",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pharox TO {}",
        ):
            owner.execute(sql.SQL(grant).format(sql.Identifier(role)))
        url = make_url(database_url).set(username=role)
        storage = PostgresStorage(
            open_engine(url.render_as_string(hide_password=False)), secret_keys=[SECRET_KEY]
        )
        with ProxyManager(storage).with_lease("pool") as lease:
            assert lease is not None
        assert [event.seq for event in storage.events()] == list(range(1, 7))
        storage.close()
        check_seal(owner)


def test_a_role_that_may_only_read_finds_all_of_the_log(
    database_url: str, postgres: PostgresStorage
) -> None:
    """Sealing is done with its owner's rights: a reader can neither write nor forge seals."""
    fill(postgres, 2)
    with connected(database_url) as owner, new_role(owner) as role:
        for grant in (
            "GRANT USAGE ON SCHEMA pharox TO {}",
            "GRANT SELECT ON ALL TABLES IN SCHEMA pharox TO {}",
        ):
            owner.execute(sql.SQL(grant).format(sql.Identifier(role)))
        url = make_url(database_url).set(username=role).render_as_string(hide_password=False)
        reader = PostgresStorage(open_engine(url), secret_keys=[])
        assert [event.seq for event in reader.events()] == [1, 2, 3]
        assert reader.verify() == []
        with connected(url) as forger, pytest.raises(psycopg.errors.InsufficientPrivilege):
            forger.execute("INSERT INTO pharox.seals VALUES (4, 4, 1, '')")
        reader.close()


# Telling


def heard(listener: Connection, channel: str) -> list[str]:
    """Return what was told on a channel until now."""
    listener.execute("SELECT pg_notify(%s, 'until now')", [channel])
    told = []
    for notification in listener.notifies(timeout=30):
        if notification.payload == "until now":
            break
        told.append(notification.payload)
    return told


def test_a_sealing_is_told_once(sealer: Connection, database_url: str) -> None:
    """Each sealing is notified once, with the last seq; one that finds nothing new is not."""
    with connected(database_url) as listener:
        listener.execute('LISTEN "pharox.pharox"')
        append(sealer, "one", "two")
        assert heard(listener, "pharox.pharox") == []
        assert seal(sealer) == 2
        assert heard(listener, "pharox.pharox") == ["2"]
        append(sealer, "three")
        assert seal(sealer) == 3
        assert heard(listener, "pharox.pharox") == ["3"]
        left = last_tick(sealer)
        assert [seal(sealer), seal(sealer, wait=True)] == [3, 3]
        assert heard(listener, "pharox.pharox") == []
    assert last_tick(sealer) == left


def test_an_empty_log_has_nothing_to_seal(sealer: Connection) -> None:
    """Sealing a log without events returns 0 and leaves no tick."""
    assert [seal(sealer), seal(sealer, wait=True)] == [0, 0]
    assert ticks(sealer) == []


@pytest.mark.parametrize("schema", ["x" * 63, "ü" * 31, "a \"b\" 'c' %s"])
def test_any_name_of_a_schema_makes_a_channel(empty_database_url: str, schema: str) -> None:
    """The channel's name is cut as LISTEN cuts it, so that every schema has one."""
    engine = open_engine(empty_database_url)
    storage = PostgresStorage(engine, schema=schema, secret_keys=[SECRET_KEY])
    storage.upgrade_schema()
    channel = f"pharox.{quoted(schema)}".encode()[:63].decode(errors="ignore")
    with connected(empty_database_url) as listener:
        listener.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        storage.ensure_consumer("one")
        assert storage.seal() == 1
        assert heard(listener, channel) == ["1"]
    storage.close()
