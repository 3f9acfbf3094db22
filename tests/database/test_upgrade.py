"""Workers of the version before go on throughout an upgrade, and after it.

``next_migration`` does what later migrations will do. Those that come bring their own: a test
of each has to lease with the functions of the versions before, as this one does.
"""

from __future__ import annotations

import multiprocessing
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from hashlib import sha256
from importlib.resources import files
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory

from pharox import (
    DatabaseError,
    Lease,
    LeaseStatus,
    ProxyFilters,
    ProxyManager,
    ProxyStatus,
    SchemaError,
    SelectorStrategy,
    Subscription,
)
from pharox.events import LeaseAcquired
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage, batch, lookups, migrations, moves, schema
from pharox.storage.postgres.commands import Commands
from pharox.storage.postgres.log_indexes import build_log_indexes
from pharox.storage.postgres.sql import Statement
from pharox.testing import checked
from tests.conftest import SECRET_KEY, fill, ledger, open_engine, run_sql
from tests.leasing.test_contention import most_holders_at_once
from tests.ledger.following import following, is_level, until
from tests.ledger.full_parts import full_parts, small_parts

NEXT = Path(__file__).parent / "next_migration"
SQL = files(migrations) / "sql"
DIGESTS = {
    "0001": "395a2dfc05ecf778e709f0ff2c68f277bdc79670df56c124613c3b27d162de1d",
    "0002": "a4dc6aa9ce5f5b4b3f795b93315df55460cb6b82d790192cee4b8bb3b8467abe",
    "0003": "ac24fc7cd9235072418fc6cd85a7b09778197b0bb54b733863d2abc1e0b1fc3b",
    "0004": "e6d1d06a059981b39f316b0d5e6d6197fac6054b6c986ca14d68adbff6095f5a",
    "0005": "84dc3f81d1d573d90e209cb013ce68e5f02ca1180af86ccc40d6db7e061847aa",
    "0006": "4a8a9d4889d2c7a0c384a78b6047f2aad4da24ed0a8b7ac8e3b627599644c829",
}
WORKERS = 8
STEPS = 8


def version_before(monkeypatch: pytest.MonkeyPatch, revision: str) -> None:
    """Have this process be of an older version, as far as it makes a ledger and leases."""
    monkeypatch.setattr(ScriptDirectory, "get_current_head", lambda *_: revision)
    # What it calls by then has another name, or came later.
    granting = batch._deciding if revision == "0001" else batch._granting
    monkeypatch.setattr(batch, "_granting", partial(_as_before, granting))
    monkeypatch.setattr(batch, "release_statement", _release_before)
    monkeypatch.setattr(batch, "_leased_proxy", _leased_proxy_before)
    monkeypatch.setattr(batch, "_duration", lambda request: float(request.duration_seconds))
    monkeypatch.setattr(moves, "unless_moved", lambda *arguments: [arguments[-1]])
    monkeypatch.setattr(Commands, "freeing", lambda _, program: program)
    for statement in (batch.commands_statement, batch.acquire_statement):
        statement.cache_clear()
    for module in (schema, lookups):
        monkeypatch.setattr(module, "HEAD", revision)


def _as_before(
    statement_of: Callable[..., Statement], name: str, function: str, parameters: dict[str, str]
) -> Statement:
    """Return the call of a function as it was while nobody could wait."""
    new = ("own_process", "max_waiting", "frees", "serves", "default_duration")
    known = {each: type_ for each, type_ in parameters.items() if each not in new}
    return statement_of(name, re.sub("_v[23]$", "_v1", function), known)


def _leased_proxy_before(name: str) -> str:
    """Return the call as it was when no proxy was a template."""
    call = f"{name}.leased_proxy_v1(answer.pool_id, answer.proxy_id)"
    return f"(SELECT known.*, NULL::jsonb AS exit FROM {call} AS known)"


def _release_before(name: str) -> Statement:
    return _as_before(batch._deciding, name, "release_one_v1", batch._RELEASE_ONE)


def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process be of the next version; those that it starts are not."""
    monkeypatch.setattr(schema, "VERSIONS", [*schema.VERSIONS, str(NEXT)])
    for module in (schema, lookups):
        monkeypatch.setattr(module, "HEAD", "0007")


def upgrade_to_next(storage: PostgresStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrade a ledger as the next version would; who goes on afterwards is of this one."""
    with monkeypatch.context() as patched:
        next_version(patched)
        storage.upgrade_schema()


@pytest.mark.parametrize("revision", DIGESTS)
def test_a_migration_stays_as_it_is(revision: str) -> None:
    """The SQL of a revision is frozen: ledgers have it, and nothing runs it again over them.

    A change is a new migration, in ``versions/``, with its SQL in ``sql/`` beside it and its
    digest here; decision 0034 says what one may do. A merge of what was made before the
    freeze sets a digest anew, to what this test prints.
    """
    content = b"".join(
        part.name.encode() + b"\0" + part.read_bytes()
        for part in sorted((SQL / revision).iterdir(), key=lambda part: part.name)
    )
    assert sha256(content).hexdigest() == DIGESTS[revision]


LATER = {
    "0003": {
        "pools": {
            "rest_after_release_seconds": "float8",
            "rest_after_expiry_seconds": "float8",
            "max_held_seconds": "float8",
        },
        "available_proxies": {"rests_until": "timestamptz", "drains": "boolean"},
        "leases": {"revoke_reason": "text"},
    },
    "0005": {
        "pools": {
            "cool_down": "jsonb",
            "selector": "text",
            "lease_seconds": "float8",
            "max_concurrency": "integer",
        },
        "leases": {"target": "text"},
        "available_proxies": {
            "banned_until": "timestamptz",
            "returns_to": "text",
            "leased_at": "timestamptz",
        },
        "proxies": {"exit_ip": "text"},
    },
    "0006": {
        "pools": {
            "limits": "jsonb",
            "reported_failures": "boolean",
            "cost_per_gb": "numeric",
            "cost_per_lease": "numeric",
            "rotation": "jsonb",
        },
        "proxies": {
            "placeholders": "text",
            "cost_per_gb": "numeric",
            "cost_per_lease": "numeric",
            "weight": "integer",
            "rotate_id": "uuid",
        },
        "available_proxies": {"turn": "bigint", "next_turn": "bigint"},
        "leases": {"limited": "boolean", "exit": "jsonb"},
        "sessions": {"exit": "jsonb"},
    },
}
"""Columns by the version that brought them: this one reads them when it fills an older ledger."""


def _alter(storage: PostgresStorage, version: str, how: str) -> None:
    """Add the columns that came after a version, or drop them."""
    for brought, tables in LATER.items():
        if brought <= version:
            continue
        for table, columns in tables.items():
            for name, type_ in columns.items():
                run_sql(
                    storage.engine,
                    f"ALTER TABLE IF EXISTS pharox.{table} {how} {name} "
                    f"{type_ * (how == 'ADD COLUMN')}",
                )


@pytest.mark.parametrize("version", sorted(DIGESTS)[:-1])
def test_a_filled_ledger_is_upgraded(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """Its leases go on, can be renewed, revoked and waited for, and are what the log says.

    A transaction that has read the log may stay open meanwhile.
    """
    storage = PostgresStorage(open_engine(empty_database_url), secret_keys=[SECRET_KEY])
    with monkeypatch.context() as before:
        version_before(before, version)
        storage.upgrade_schema()
        assert storage.schema_version() == version
        _alter(storage, version, "ADD COLUMN")
        held = filled_unchecked(storage)
        _alter(storage, version, "DROP COLUMN")
    reader = storage.engine.connect().execution_options(isolation_level="READ COMMITTED")
    reader.exec_driver_sql("SELECT count(*) FROM pharox.events")

    def build_after_reading(*args: Any) -> None:
        reader.close()  # An index waits for who reads; the migration itself does not.
        build_log_indexes(*args)

    monkeypatch.setattr(schema, "build_log_indexes", build_after_reading)
    batch.commands_statement.cache_clear()
    batch.acquire_statement.cache_clear()
    with ledger(empty_database_url) as newer:
        with pytest.raises(SchemaError, match="upgrade"):
            newer.get_lease(str(held[0].id))
        newer.upgrade_schema()
        assert reader.closed
        manager = ProxyManager(newer)
        renewed = manager.renew_leases(held[:5])
        manager.release_proxies(held[3:8])
        for lease in renewed:
            found = newer.get_lease(str(lease.id))
            assert found is not None
            assert found.renewed_at is not None
            assert found.expires_at == lease.expires_at
            assert found.expires_at - found.renewed_at == timedelta(seconds=3600)
        (revoked,) = manager.revoke_leases([held[8].id], "why")
        assert newer.get_lease(str(held[8].id)) == revoked
        manager.acquire_proxies("pool", 96)
        timer = threading.Timer(0.2, manager.release_proxy, [held[9]])
        timer.start()
        assert manager.acquire_proxy("pool", wait_seconds=10) is not None
        timer.join()
        assert newer.verify() == []
        rebuild(newer)
        assert newer.verify() == []
    storage.close()


class Work:
    """The work of a process, repeated until it is stopped."""

    def __init__(self, url: str, number: int, done: Any, is_over: threading.Event) -> None:
        self._url, self._number, self._done, self._is_over = url, number, done, is_over

    def __call__(self) -> tuple[int, int]:
        """Return how many leases it had, and how many times it found nothing."""
        with ledger(self._url) as storage, ThreadPoolExecutor(2) as pool:
            storage.upgrade_schema()
            counts = [pool.submit(self._lease, ProxyManager(storage), n) for n in range(2)]
            return tuple(map(sum, zip(*(c.result() for c in counts), strict=True)))  # type: ignore[return-value]

    def _lease(self, manager: ProxyManager, thread: int) -> tuple[int, int]:
        leased = missed = 0
        filters = ProxyFilters(country="AR")
        selectors = list(SelectorStrategy)
        while not self._is_over.is_set():
            selector = selectors[leased % len(selectors)]
            lease = manager.acquire_proxy("pool", f"w{self._number}", selector=selector)
            own = [lease] if lease else []
            many = manager.acquire_proxies("pool", 3, "sets", at_least=1, filters=filters)
            leased, missed = leased + len(own) + len(many), missed + (not own) + (not many)
            for each in own:
                manager.release_proxy(each)
            manager.release_proxies(many)
            time.sleep(0.005)  # so that two cores can also start processes
            key = f"{self._number} {thread}"
            self._done[key] = self._done.get(key, 0) + 1
        return leased, missed


@pytest.fixture
def manager_of_processes() -> Iterator[SyncManager]:
    """What processes share."""
    with multiprocessing.get_context("spawn").Manager() as shared:
        yield shared


def filled(storage: PostgresStorage) -> list[Lease]:
    """Fill a ledger, and check it; return leases that stay active."""
    held = filled_unchecked(storage)
    storage.take_snapshot(storage.seal())
    assert storage.verify() == []
    return held


def filled_unchecked(storage: PostgresStorage) -> list[Lease]:
    """Fill a ledger with thousands of events in several parts; return leases that stay active."""
    small_parts(storage, 1000)
    _, proxies = fill(storage, 100, country="AR")
    manager = ProxyManager(storage)
    first = SelectorStrategy.FIRST_AVAILABLE  # Versions before 0005 need it to be said.
    for _ in range(16):
        manager.release_proxies(manager.acquire_proxies("pool", 100, selector=first))
    fill(storage, 0, name="empty")
    assert manager.acquire_proxy("empty", selector=first) is None
    for proxy in proxies[:20]:
        storage.apply_health_check_result(checked(proxy, latency_ms=5))
    return manager.acquire_proxies("pool", 10, "holder", 3600, selector=first)


def wait_for_work(done: Any, workers: int, running: Sequence[Future[Any]]) -> None:
    """Wait until each thread of the workers has gone some steps further."""
    before = dict(done)

    def have_worked() -> bool:
        assert not any(each.done() for each in running), [
            each.exception() for each in running if each.done()
        ]
        now = dict(done)
        return len(now) == 2 * workers and all(
            count >= before.get(key, 0) + STEPS for key, count in now.items()
        )

    until(have_worked, 300)  # Seconds where cores are free; a busy machine starts them slowly.


@pytest.mark.stress
def test_workers_lease_throughout_an_upgrade(
    postgres: PostgresStorage,
    database_url: str,
    manager_of_processes: SyncManager,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight processes get no error, lose no lease, and share no proxy; one that comes later too."""
    held = filled(postgres)
    seals = run_sql(postgres.engine, "SELECT * FROM pharox.seals ORDER BY seq")
    done, is_over = manager_of_processes.dict(), manager_of_processes.Event()
    taken: list[Any] = []
    reader = Subscription("leases", taken.append, types=("LeaseAcquired",))
    context = multiprocessing.get_context("spawn")
    with (
        following(reader, postgres),
        ProcessPoolExecutor(WORKERS + 1, mp_context=context) as pool,
    ):
        try:
            running = [pool.submit(Work(database_url, n, done, is_over)) for n in range(WORKERS)]
            wait_for_work(done, WORKERS, running)
            with ledger(database_url) as newer:
                upgrade_to_next(newer, monkeypatch)
            wait_for_work(done, WORKERS, running)
            running.append(pool.submit(Work(database_url, WORKERS, done, is_over)))
            wait_for_work(done, WORKERS + 1, running)
        finally:
            is_over.set()
        leased, missed = map(sum, zip(*(each.result() for each in running), strict=True))
        until(lambda: is_level(postgres, reader.name), 300)

    events = list(postgres.events())
    read = sum(isinstance(event, LeaseAcquired) for event in events)
    in_table = "SELECT count(*) FROM pharox.events WHERE type = 'LeaseAcquired'"
    ((written,),) = run_sql(postgres.engine, in_table)
    assert missed == 0
    assert [written, read, len(taken)] == [leased + 1600 + len(held)] * 3
    assert set(most_holders_at_once(events).values()) == {1}
    active = [lease.id for lease in postgres.list_leases() if lease.status is LeaseStatus.ACTIVE]
    assert sorted(active) == sorted(lease.id for lease in held)
    kept = "SELECT * FROM pharox.seals WHERE version = 1 ORDER BY seq"
    assert run_sql(postgres.engine, kept)[: len(seals)] == seals
    _use_what_is_new(postgres, held[0])
    next_version(monkeypatch)
    assert postgres.verify() == []


def _use_what_is_new(storage: PostgresStorage, lease: Lease) -> None:
    """Append an event of the new type through the new function, and see it folded and sealed."""
    run_sql(
        storage.engine,
        "SELECT pharox.append_v2(ARRAY[jsonb_populate_record(NULL::pharox.event_v1, "
        f"jsonb_build_object('type', 'LeaseMoved', 'pool_id', '{lease.pool_id}', "
        f"'lease_id', '{lease.id}', 'data', jsonb_build_object('region', 'eu')))], 0::smallint)",
    )
    storage.seal()
    assert run_sql(
        storage.engine,
        "SELECT event.region, lease.renewals, seal.version FROM pharox.events AS event "
        "JOIN pharox.leases AS lease ON lease.id = event.lease_id "
        "JOIN pharox.seals AS seal ON seal.position = event.position "
        "WHERE event.type = 'LeaseMoved'",
    ) == [("eu", 1, 2)]
    indexes = (
        "SELECT count(*) = count(*) FILTER (WHERE indisvalid), count(*) > 5 FROM pg_index "
        "JOIN pg_class ON pg_class.oid = indexrelid WHERE relname ~ 'region'"
    )
    assert run_sql(storage.engine, indexes) == [(True, True)]


def test_a_newer_schema_serves_who_leases_and_nobody_who_alters_or_judges_it(
    postgres: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version before leases; what folds the log by its own rules is told to be upgraded."""
    fill(postgres, 1)
    upgrade_to_next(postgres, monkeypatch)
    with ledger(database_url) as older:
        older.upgrade_schema()
        assert older.schema_version() == "0007"
        lease = ProxyManager(older).acquire_proxy("pool")
        assert lease is not None
        assert older.verify_log() == []
        for refused in (
            older.verify,
            lambda: older.state_at(1),
            lambda: older.take_snapshot(1),
            lambda: rebuild(older),
        ):
            with pytest.raises(SchemaError, match="upgrade pharox"):
                refused()


def test_a_breaking_version_says_so(
    postgres: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A too new schema is an error at first use, not an error about a missing object."""
    fill(postgres, 1)
    upgrade_to_next(postgres, monkeypatch)
    run_sql(
        postgres.engine,
        "CREATE OR REPLACE FUNCTION pharox.oldest_client() RETURNS text LANGUAGE sql STABLE "
        "AS 'SELECT ''0007'''",
    )
    with ledger(database_url) as older, pytest.raises(SchemaError, match="upgrade pharox"):
        ProxyManager(older).acquire_proxy("pool")


def test_an_upgrade_waits_for_no_lock_while_others_wait_for_it(
    postgres: PostgresStorage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a transaction left open it gives up, says so, and leaves the schema as it was."""
    fill(postgres, 1)
    next_version(monkeypatch)
    monkeypatch.setattr(schema, "PATIENCE_S", 1.0)
    with ledger(database_url) as newer, postgres.session() as held:
        held.connection.execute("SELECT FROM pharox.leases")
        with pytest.raises(DatabaseError, match="could not acquire its locks"):
            newer.upgrade_schema()
        assert newer.schema_version() == "0006"
    with ledger(database_url) as newer:
        newer.upgrade_schema()
        assert newer.schema_version() == "0007"
        assert newer.verify() == []


def test_an_index_that_was_cut_off_is_built_by_the_next_upgrade(
    postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the catalog says to be lacking or not valid is completed, whoever began it."""
    full_parts(postgres)
    next_version(monkeypatch)
    with monkeypatch.context() as cut_off:
        cut_off.setattr(schema, "build_log_indexes", lambda *_: None)
        postgres.upgrade_schema()
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'pharox.ix_events_region'::regclass"
    assert run_sql(postgres.engine, valid) == [(False,)]
    postgres.upgrade_schema()
    assert run_sql(postgres.engine, valid) == [(True,)]


def test_a_worker_of_before_gets_a_miss_where_a_ban_is_over(postgres: PostgresStorage) -> None:
    """It does not know how a ban ends, and is not told that something is free for ever."""
    _, (proxy,) = fill(postgres, 1)
    postgres.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=0.01)
    time.sleep(0.05)
    postgres.ensure_consumer("w")
    asked = (
        "SELECT outcome, reason FROM pharox.acquire_one_v2(NULL, 0::smallint, false, 'w', NULL, "
        "'pool', 'first_available', gen_random_uuid(), 'w', 60)"
    )
    assert run_sql(postgres.engine, asked) == [("AcquireMissed", "none_healthy")]
    assert ProxyManager(postgres).acquire_proxy("pool") is not None
