"""A pool that moves to and fro under load loses nothing, wherever its movers are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pharox import MoveStage, ProxyPool
from pharox.fleet import Fleet
from pharox.storage.postgres import PostgresStorage
from tests import servers
from tests.conftest import SECRET_KEY, Clusters, open_engine, proxies_of, run_sql

from .moving import ends

POOL = "shop"
WORKERS = 8
PROXIES = 5
PATIENCE_S = 60.0
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])

LEDGER_OF_HOLDS = """
    CREATE TABLE held (proxy_id uuid PRIMARY KEY);
    CREATE TABLE granted (
        number bigint GENERATED ALWAYS AS IDENTITY, proxy_id uuid, token bigint, lease_id uuid
    )
"""


def work(urls: dict[str, str], name: str, stops: Any) -> None:
    """Lease and release until told to stop, and note who holds what in a table of the test's own.

    Two holders of one proxy violate its primary key.
    """
    with (
        fleet_of(urls) as fleet,
        psycopg.connect(urls["a"].replace("+psycopg", ""), autocommit=True) as notes,
    ):
        while not stops.is_set():
            lease = fleet.manager.acquire_proxy(POOL, name, duration_seconds=60)
            if lease is None:
                stops.wait(0.02)
                continue
            notes.execute("INSERT INTO held VALUES (%s)", [lease.proxy_id])
            notes.execute(
                "INSERT INTO granted (proxy_id, token, lease_id) VALUES (%s, %s, %s)",
                [lease.proxy_id, lease.fencing_token, lease.id],
            )
            time.sleep(0.005)
            notes.execute("DELETE FROM held WHERE proxy_id = %s", [lease.proxy_id])
            fleet.manager.release_proxy(lease)


def move(urls: dict[str, str], to: str, dies_at: str | None) -> None:
    """Move the pool, and die of a kill after a step if told to."""

    def step(done: str) -> None:
        if done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with fleet_of(urls) as fleet:
        fleet.move(POOL, to, on_step=step)


@contextmanager
def fleet_of(urls: dict[str, str]) -> Iterator[Fleet]:
    """Open the fleet of two ledgers, of which a is home."""
    storages = {
        name: PostgresStorage(open_engine(url), secret_keys=[SECRET_KEY])
        for name, url in urls.items()
    }
    with Fleet.connect({"home": "a", "ledgers": storages}) as fleet:
        yield fleet


def test_a_pool_that_moves_under_load_loses_nothing(clusters: Clusters) -> None:
    """No proxy has two holders, and its fencing tokens grow, through five movers and four kills."""
    with ends("postgres postgres", clusters, servers.names()[0]) as (a, b):
        assert isinstance(a.storage, PostgresStorage)
        assert isinstance(b.storage, PostgresStorage)
        urls = {
            end.name: end.storage.engine.url.render_as_string(hide_password=False)
            for end in (a, b)
            if isinstance(end.storage, PostgresStorage)
        }
        run_sql(a.storage.engine, LEDGER_OF_HOLDS)
        pool = ProxyPool(name=POOL)
        a.storage.save_pool(pool)
        a.storage.add_proxies_bulk(proxies_of(pool, PROXIES))
        stops = _PROCESSES.Event()
        workers = [
            _PROCESSES.Process(target=work, args=(urls, f"w{number}", stops))
            for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        for to, dies_at in (
            ("b", "began"),
            ("b", "drained"),
            ("b", "departed"),
            ("b", "arrived"),
            ("b", None),
            ("a", "departed"),
            ("a", None),
        ):
            mover = _PROCESSES.Process(target=move, args=(urls, to, dies_at))
            mover.start()
            mover.join(60)
            assert mover.exitcode == (0 if dies_at is None else -signal.SIGKILL)
            _until_leased_again(a.storage, worked=dies_at is None)
        stops.set()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * WORKERS

        granted = run_sql(a.storage.engine, "SELECT proxy_id, token FROM granted ORDER BY number")
        for proxy in {proxy for proxy, _ in granted}:
            tokens = [int(str(token)) for each, token in granted if each == proxy]
            assert tokens == sorted(set(tokens))
        logs = [*a.storage.events(), *b.storage.events()]
        assert sum(event.type == "LeaseAcquired" for event in logs) == len(granted)
        assert sum(event.type == "LeaseReleased" for event in logs) == len(granted)
        stats = a.storage.get_pool_stats(POOL)
        assert stats is not None
        assert (stats.total_proxies, stats.available_proxies) == (PROXIES, PROXIES)
        assert b.storage.list_pool_moves(POOL)[0].stage is MoveStage.MOVED
        assert a.storage.verify() == b.storage.verify() == []


def _until_leased_again(storage: PostgresStorage, *, worked: bool) -> None:
    """Wait until the workers have got leases in the pool's ledger, if it is in one."""
    count = "SELECT count(*) FROM granted"
    (before,) = run_sql(storage.engine, count)[0]
    since = time.monotonic()
    while worked and run_sql(storage.engine, count)[0][0] < before + 3 * WORKERS:  # type: ignore[operator]
        assert time.monotonic() - since < PATIENCE_S, "the workers have found the pool no more"
        time.sleep(0.01)
