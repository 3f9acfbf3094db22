"""The primary is killed under load, and its synchronous standby takes over."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from pharox import AsyncProxyManager, OutcomeUnknownError, ProxyManager, connect, connect_async
from tests.conftest import fill, ledger
from tests.faults import cluster as clusters
from tests.faults.cluster import Cluster
from tests.faults.conftest import PROXIES, TIMES, Report
from tests.faults.worker import POOL, Running, stop_all

WORKERS = 4


@pytest.mark.stress
@pytest.mark.parametrize("number", range(TIMES))
@pytest.mark.parametrize("stalls", [False, True], ids=["follows", "stalls"])
def test_a_failover_loses_nothing_that_was_acknowledged(
    diaries: Path, report: Report, stalls: bool, number: int
) -> None:
    """What a worker was told of is on the standby when the primary is gone, and leasing goes on.

    Where the standby stalls before that, nothing may be acknowledged any more; what the
    network still held for it is gone as well.
    """
    del number
    with clusters.running() as primary, tempfile.TemporaryDirectory() as folder:
        standby = Cluster(Path(folder))
        standby.clone(primary)
        standby.start()
        try:
            _commit_on_both(primary)
            with ledger(primary.url) as storage:
                fill(storage, PROXIES)
            workers = [Running(primary.url, diaries, awaits=bool(n % 2)) for n in range(WORKERS)]
            for worker in workers:
                worker.wait_until_begun()
            time.sleep(1)
            if stalls:
                standby.stall()
                time.sleep(0.5)
            primary.kill(with_all=True)
            if stalls:
                standby.kill(with_all=True)
                standby.start()
            standby.promote()
            which = "stalled" if stalls else "following"
            report.made(f"killed the primary, and promoted its {which} standby")
            stop_all(workers)
            with ledger(standby.url) as storage:
                found = report.close(storage, diaries)
                with ProxyManager(storage).with_lease(POOL) as lease:
                    assert lease is not None
                assert storage.verify() == []
        finally:
            standby.stop()
    assert found.acknowledged > 0


def _commit_on_both(primary: Cluster) -> None:
    """Have a commit be acknowledged only when the standby has it as well."""
    with psycopg.connect(primary.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'standby'")
        connection.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 30
        while True:
            query = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            if connection.execute(query).fetchone() == (1,):
                return
            assert time.monotonic() < deadline, "the standby does not follow"
            time.sleep(0.05)


@pytest.mark.stress
@pytest.mark.parametrize("awaits", [False, True], ids=["blocks", "awaits"])
def test_what_no_standby_has_is_in_doubt(awaits: bool) -> None:
    """A COMMIT that is cancelled while it waits for one is told as a success by the server."""
    with clusters.running() as primary:
        with ledger(primary.url) as storage:
            fill(storage, 2)
            storage.ensure_consumer(ProxyManager.DEFAULT_CONSUMER_NAME)
        with psycopg.connect(primary.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            connection.execute("SELECT pg_reload_conf()")
        with pytest.raises(OutcomeUnknownError) as doubt:
            asyncio.run(_await_a_lease(primary.url)) if awaits else _lease(primary.url)
        with psycopg.connect(primary.url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        with ledger(primary.url) as storage:
            found = storage.get_lease(str(doubt.value.data["lease_id"]))
            assert found is not None
            assert storage.verify() == []


def _lease(url: str) -> None:
    with closing(connect(url, answer_timeout_s=1)) as storage:
        ProxyManager(storage).acquire_proxy(POOL)


async def _await_a_lease(url: str) -> None:
    async with await connect_async(url, answer_timeout_s=1) as storage:
        await AsyncProxyManager(storage).acquire_proxy(POOL)
