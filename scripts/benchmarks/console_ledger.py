"""A long ledger to look at: two pools, a history that has just ended, and its ticks.

The history is that of 1,000 leases a second. Every 1,000 events are sealed by themselves, as with
readers that seal all the time: sealed at once, ticks would be a hundred times as long, and a
moment would be found less exactly. No state of the past is stored: whoever looks first begins with
the present, as a role that only reads does.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import make_url

import pharox
from pharox import ProxyManager
from pharox.ledger.rebuild import rebuild
from pharox.ledger.roles import Roles, grant
from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks.history import make_history
from scripts.benchmarks.parts import Bench
from scripts.benchmarks.server import connected, fill, new_database, settled

POOL, SMALL = "bench", "small"
PROXIES, FEW = 10_000, 50
READER = "console_reader"
PER_TICK = 1_000
STEP_MS = 0.5
"""Between two events of the history."""

FILLING_S = 50e-6
"""About how long an event takes until it is sealed and folded: the history ends that much later."""


@dataclass(frozen=True, slots=True)
class LongLedger:
    """A ledger with a history. ``reader_url`` is for a role that can only read.

    ``small_until`` is a moment just after the small pool was in use. ``proxies`` and ``leases`` are
    some of the busy pool, leases from all ages of the log.
    """

    url: str
    reader_url: str
    pool_id: UUID
    small_until: datetime
    proxies: tuple[UUID, ...]
    leases: tuple[UUID, ...]


def make_ledger(bench: Bench, name: str) -> LongLedger:
    """Create a database with a history of so many events as the benchmark is asked for."""
    print(f"making a ledger of {bench.history:,} events", file=sys.stderr)
    url = new_database(bench.url, name)
    storage = pharox.connect(url)
    storage.upgrade_schema()
    pool_id = fill(storage, POOL, PROXIES)
    fill(storage, SMALL, FEW)
    for number in range(8):
        storage.ensure_consumer(f"worker-{number}")  # those of the history
    length = timedelta(milliseconds=STEP_MS) * bench.history
    end = datetime.now(UTC) + timedelta(seconds=FILLING_S) * bench.history
    make_history(
        storage.engine,
        storage.schema,
        pool_id,
        bench.history,
        start=end - length,
        step_ms=STEP_MS,
        per_batch=PER_TICK // 2,
        after_batch=storage.seal,
    )
    rebuild(storage)
    settled(url)
    time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds()))
    small_until = _use(storage)
    proxies, leases = _samples(storage)
    reader_url = _reader(bench.url, storage, url)
    storage.close()
    return LongLedger(url, reader_url, pool_id, small_until, proxies, leases)


def _use(storage: PostgresStorage) -> datetime:
    """Lease all of the small pool some times, with misses in between; return when that was over."""
    manager = ProxyManager(storage)
    for _ in range(4):
        leases = manager.acquire_proxies(SMALL, FEW, "greedy", 60)
        for _ in range(5):
            manager.acquire_proxy(SMALL, "hungry")
        manager.release_proxies(leases)
    return datetime.now(UTC)


def _samples(storage: PostgresStorage) -> tuple[tuple[UUID, ...], tuple[UUID, ...]]:
    url = storage.engine.url.render_as_string(hide_password=False)
    with connected(url) as connection:
        proxies = connection.execute(
            "SELECT proxy_id FROM pharox.available_proxies TABLESAMPLE BERNOULLI (5) LIMIT 200"
        ).fetchall()
        leases = connection.execute(
            "SELECT id FROM pharox.leases TABLESAMPLE BERNOULLI (5) ORDER BY random() LIMIT 200"
        ).fetchall()
    return tuple(row[0] for row in proxies), tuple(row[0] for row in leases)


def _reader(server_url: str, storage: PostgresStorage, url: str) -> str:
    with connected(server_url) as connection:
        found = connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (READER,)).fetchone()
        if found is None:
            connection.execute(f"CREATE ROLE {READER} LOGIN")
    grant(storage, Roles(reader=[READER]))
    return make_url(url).set(username=READER).render_as_string(hide_password=False)
