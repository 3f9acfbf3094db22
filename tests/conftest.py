"""Fixtures: a server for the run, a database for the test, storages over both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    Proxy,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
)
from pharox.storage.interface import IStorage
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from tests import pgbouncer, servers
from tests.health.zoo import Zoo, running_zoo

TESTS = Path(__file__).parent
SECRET_KEY = "Zm9yLXRlc3RzLW9ubHktZm9yLXRlc3RzLW9ubHktMTI="

settings.register_profile(
    "pharox",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    print_blob=True,
)
settings.load_profile("pharox")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that runs every test on every server."""
    parser.addoption(
        "--every-server", action="store_true", help="run all tests on each PostgreSQL there is"
    )


def pytest_configure() -> None:
    """Have the processes that tests start obey Ctrl-C, also where a shell started us with ``&``."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run on the first server everything, and on the others what they could answer otherwise."""
    if config.getoption("--every-server"):
        return
    others = set(servers.names()[1:])
    left_out = {
        item
        for item in items
        if not others.isdisjoint(_parameters(item)) and not _may_differ_on_another(item)
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def _may_differ_on_another(item: pytest.Item) -> bool:
    """Return whether another version of PostgreSQL could answer a test otherwise."""
    if item.get_closest_marker("stress") or item.get_closest_marker("one_server"):
        return False
    return any(item.path.is_relative_to(TESTS / name) for name in servers.ON_EVERY)


def _parameters(item: pytest.Item) -> set[str]:
    known = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return {value for value in known if isinstance(value, str)}


class Clock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class DatabaseClock(Clock):
    """The same for a PostgresStorage: in place of the schema's ``clock()``."""

    def __init__(self, storage: PostgresStorage) -> None:
        super().__init__()
        self._storage = storage
        schema = sql.Identifier(storage.schema)
        self._run(sql.SQL("CREATE TABLE {}.test_clock (now timestamptz)").format(schema))
        self._run(sql.SQL("INSERT INTO {}.test_clock VALUES ({})").format(schema, self.now))
        self._run(
            # As the ledger's own, it stands still within a statement.
            sql.SQL(
                """
                CREATE OR REPLACE FUNCTION {0}.clock() RETURNS timestamptz LANGUAGE plpgsql STABLE
                AS $$
                DECLARE
                    statement text := statement_timestamp();
                BEGIN
                    IF current_setting('test.statement', true) IS DISTINCT FROM statement THEN
                        PERFORM set_config('test.statement', statement, false),
                            set_config('test.now', now::text, false)
                        FROM {0}.test_clock;
                    END IF;
                    RETURN current_setting('test.now');
                END
                $$
                """
            ).format(schema)
        )

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        query = sql.SQL("UPDATE {}.test_clock SET now = {}")
        self._run(query.format(sql.Identifier(self._storage.schema), self.now))

    def _run(self, query: sql.Composed) -> None:
        run_sql(self._storage.engine, query)


def run_sql(engine: Engine, query: str | sql.Composed) -> list[tuple[object, ...]]:
    """Run one statement behind the storage's back and return its rows."""
    lent = engine.raw_connection()
    try:
        connection: psycopg.Connection[tuple[object, ...]] = lent.driver_connection  # type: ignore[assignment]
        cursor = connection.execute(query)
        rows = cursor.fetchall() if cursor.description else []
        connection.commit()
        return rows
    finally:
        lent.close()


def pages_read(storage: PostgresStorage, statement: Any, values: dict[str, Any]) -> int:
    """Run a statement and return how many pages of tables and indexes it touched."""
    with storage._driver.connection() as connection:
        cursor = psycopg.RawCursor(connection)
        explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + statement.text
        (plan,) = cursor.execute(explain, statement.arguments(values, 0)).fetchone() or ([],)
        return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])


def open_engine(url: str) -> Engine:
    """Return an engine as :func:`pharox.connect` makes them, with room for many threads."""
    return create_engine(url, isolation_level="AUTOCOMMIT", pool_size=20, hide_parameters=True)


def open_async_engine(url: str, **options: Any) -> AsyncEngine:
    """Return an async engine as :func:`pharox.connect_async` makes them."""
    known = {"isolation_level": "AUTOCOMMIT", "pool_size": 10, "max_overflow": 0}
    return create_async_engine(url, hide_parameters=True, **{**known, **options})


def for_tasks(storage: IStorage) -> AsyncInMemoryStorage | AsyncPostgresStorage:
    """Return a storage for tasks, of the same ledger."""
    if isinstance(storage, PostgresStorage):
        url = storage.engine.url.render_as_string(hide_password=False)
        return AsyncPostgresStorage(open_async_engine(url), secret_keys=[SECRET_KEY])
    assert isinstance(storage, InMemoryStorage)
    same = AsyncInMemoryStorage()
    same.memory._state = storage._state
    return same


class Clusters:
    """The run's servers, each started when first asked for, with a database to copy."""

    def __init__(self, until_the_end: ExitStack) -> None:
        self._until_the_end = until_the_end
        self._known: dict[str, tuple[str, str]] = {}

    def get(self, server: str) -> tuple[str, str]:
        """Return a server's URL and the name of its template with an upgraded schema."""
        if server not in self._known:
            url = self._until_the_end.enter_context(servers.running(server))
            template = f"pharox_template_{uuid4().hex[:12]}"
            engine = open_engine(self._until_the_end.enter_context(new_database(url, template)))
            PostgresStorage(engine, secret_keys=[SECRET_KEY]).upgrade_schema()
            engine.dispose()
            self._known[server] = url, template
        return self._known[server]


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """All servers of the run."""
    with ExitStack() as until_the_end:
        yield Clusters(until_the_end)


@pytest.fixture(scope="session", params=servers.names())
def server_url(request: pytest.FixtureRequest, clusters: Clusters) -> str:
    """The URL of a server's first database; tests that use it run once for each server."""
    return clusters.get(request.param)[0]


@pytest.fixture(scope="session")
def template(server_url: str, clusters: Clusters) -> str:
    """The name of a database with an upgraded schema, to copy for each test."""
    return next(template for url, template in clusters._known.values() if url == server_url)


class new_database:  # noqa: N801 - reads as a statement
    """Make a database for a block, empty or as a copy, and drop it afterwards."""

    def __init__(self, server_url: str, name: str, template: str = "template1") -> None:
        self._server_url, self._name, self._template = server_url, name, template

    def __enter__(self) -> str:
        names = (sql.Identifier(self._name), sql.Identifier(self._template))
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*names))
        url = make_url(self._server_url).set(database=self._name)
        return url.render_as_string(hide_password=False)

    def __exit__(self, *_: object) -> None:
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(self._name)))

    def _run(self, query: sql.Composed) -> None:
        url = make_url(self._server_url).set(drivername="postgresql")
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as server:
            server.execute(query)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """The URL of a database without a schema of ours."""
    with new_database(server_url, f"pharox_{uuid4().hex[:12]}") as url:
        yield url


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a database with an upgraded, empty schema "pharox"."""
    with new_database(server_url, f"pharox_{uuid4().hex[:12]}", template) as url:
        yield url


@pytest.fixture
def pooled_url(database_url: str) -> Iterator[str]:
    """The URL of the test's database, through PgBouncer."""
    if pgbouncer.BINARY is None:
        pytest.skip("there is no pgbouncer here")
    with pgbouncer.in_front_of(database_url) as url:
        yield url


@contextmanager
def ledger(url: str) -> Iterator[PostgresStorage]:
    """Open the ledger of a database for a block."""
    storage = PostgresStorage(open_engine(url), secret_keys=[SECRET_KEY])
    try:
        yield storage
    finally:
        storage.close()


@pytest.fixture
def postgres(database_url: str) -> Iterator[PostgresStorage]:
    """A PostgresStorage over an empty ledger."""
    with ledger(database_url) as storage:
        yield storage


@pytest.fixture
def storage(postgres: PostgresStorage) -> PostgresStorage:
    """The same, under the name that tests of one storage use."""
    return postgres


AnyStorage = InMemoryStorage | PostgresStorage


@pytest.fixture(params=["memory", *servers.names()])
def any_storage(request: pytest.FixtureRequest, clusters: Clusters) -> Iterator[AnyStorage]:
    """Each of our storages in turn, the one on PostgreSQL on each server."""
    if request.param == "memory":
        yield InMemoryStorage()
        return
    server_url, template = clusters.get(request.param)
    with (
        new_database(server_url, f"pharox_{uuid4().hex[:12]}", template) as url,
        ledger(url) as storage,
    ):
        yield storage


@pytest.fixture(scope="session")
def zoo() -> Iterator[Zoo]:
    """Proxies and sites, good and hostile."""
    with running_zoo() as zoo:
        yield zoo


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on what the person who runs it has set, but for the server."""
    for name in ("SECRET_KEY", "SECRET_KEY_FILE", "DATA_DIR", "CHECK_URL"):
        monkeypatch.delenv(f"PHAROX_{name}", raising=False)


def clock_of(storage: IStorage) -> Clock:
    """Put a clock into a storage that a test moves by hand."""
    if isinstance(storage, PostgresStorage):
        return DatabaseClock(storage)
    assert isinstance(storage, InMemoryStorage)
    clock = Clock()
    storage._state.clock = clock
    return clock


def fill(
    storage: IStorage,
    count: int = 1,
    *,
    name: str = "pool",
    lease_slow: bool = False,
    **facts: Any,
) -> tuple[ProxyPool, list[Proxy]]:
    """Register a pool with ``count`` proxies: ACTIVE, exclusive, unless ``facts`` say otherwise."""
    pool = ProxyPool(name=name, lease_slow=lease_slow)
    storage.save_pool(pool)
    proxies = proxies_of(pool, count, **facts)
    storage.add_proxies_bulk(proxies)
    return pool, proxies


def proxies_of(pool: ProxyPool, count: int, network: str = "10.0", **facts: Any) -> list[Proxy]:
    """Return new proxies for a pool: ACTIVE, exclusive, unless ``facts`` say otherwise."""
    known = {"status": ProxyStatus.ACTIVE, "max_concurrency": 1, **facts}
    return [
        Proxy(
            host=f"{network}.{n // 250}.{n % 250}",
            port=8000,
            protocol=ProxyProtocol.HTTP,
            pool_id=pool.id,
            **known,
        )
        for n in range(count)
    ]


class Broken(Exception):
    """What the callbacks of tests raise."""


def breaks(_: object) -> None:
    """Fail, as a callback may."""
    raise Broken


def run_python(
    *arguments: str, timeout_s: float = 60, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python in the project's folder, with more in its environment than we have."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Serve on a port of its own, in a thread, and yield the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def types_of(storage: AnyStorage) -> list[str]:
    """Return the types of the log's events, in order."""
    return [event.type for event in storage.events()]


def threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(n)`` in ``count`` threads at once and raise what any of them raised."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(work, n) for n in range(count)]:
            done.result()
