"""On a standby the ledger can be read; what would write says that it is a standby."""

from __future__ import annotations

import asyncio
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pharox import (
    AsyncProxyManager,
    DatabaseUnavailableError,
    ProxyManager,
    ProxyPool,
    ReadOnlyDatabaseError,
    connect,
    connect_async,
)
from pharox.observability.counting import FleetCounter
from pharox.observability.fleet import FleetServer
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill
from tests.faults import cluster as clusters
from tests.faults.cluster import Cluster


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary with a ledger of two proxies, and its standby."""
    with clusters.running() as primary, tempfile.TemporaryDirectory() as folder:
        with closing(connect(primary.url)) as storage:
            fill(storage, 2)
            with ProxyManager(storage).with_lease("pool"):
                pass
            storage.seal()
        standby = Cluster(Path(folder))
        standby.clone(primary)
        standby.start()
        try:
            yield primary, standby
        finally:
            standby.stop()


@pytest.fixture
def standby(servers: tuple[Cluster, Cluster]) -> Iterator[PostgresStorage]:
    """The ledger as the standby has it."""
    _, standby = servers
    with closing(connect(standby.url)) as storage:
        yield storage


def test_what_reads_works(standby: PostgresStorage) -> None:
    """Pools, proxies, leases, statistics, the log and its seals."""
    (pool,) = standby.list_pools()
    assert len(standby.list_proxies(str(pool.id))) == 2
    assert [lease.status for lease in standby.list_leases()] == ["released"]
    assert standby.get_pool_stats("pool") is not None
    assert standby.queue_stats() == []
    assert standby.list_held_leases() == []
    assert [event.type for event in standby.events()][-1] == "LeaseReleased"
    assert standby.find_available_proxy("pool") is not None
    assert standby.verify_log() == []


def test_metrics_are_those_that_the_primary_counts(
    servers: tuple[Cluster, Cluster], standby: PostgresStorage
) -> None:
    """A server at the standby counts nothing, and shows the counts and the read models."""
    with closing(connect(servers[0].url)) as storage, FleetServer(storage, port=0):
        counter = FleetCounter(standby)
        while not any(name == "leases_acquired" for name, _ in counter.counts()):
            time.sleep(0.02)
    with FleetServer(standby, port=0) as server:
        assert not server.is_counting
        shown = httpx.get(f"http://127.0.0.1:{server.port}/metrics", trust_env=False).text
    assert "pharox_fleet_up 1.0" in shown
    assert "pharox_fleet_counting 0.0" in shown
    assert 'pharox_fleet_pool_total_proxies{pool="pool"} 2.0' in shown
    assert re.search(r"pharox_fleet_leases_acquired_total\{.*\} [1-9]", shown)


@pytest.mark.parametrize(
    "write",
    [
        lambda storage: ProxyManager(storage).acquire_proxy("pool"),
        lambda storage: ProxyManager(storage).cleanup_expired_leases(),
        lambda storage: storage.prune_leases(datetime(2020, 1, 1, tzinfo=UTC)),
        lambda storage: storage.rotate_secrets(),
        lambda storage: storage.save_pool(ProxyPool(name="other")),
        lambda storage: storage.ensure_consumer("somebody"),
        lambda storage: storage.verify(),
        lambda storage: storage.state_at(3),
        lambda storage: PostgresStorage(storage.engine, schema="new").upgrade_schema(),
    ],
    ids=[
        *("acquire", "cleanup", "prune", "rotate", "save a pool", "register a consumer"),
        *("verify", "fold", "upgrade"),
    ],
)
def test_what_writes_says_that_it_is_a_standby(
    standby: PostgresStorage, write: Callable[[PostgresStorage], Any]
) -> None:
    """Also where there is nothing to do, and where tables for the moment are needed."""
    with pytest.raises(ReadOnlyDatabaseError, match="is a standby"):
        write(standby)


def test_tasks_are_told_the_same(servers: tuple[Cluster, Cluster]) -> None:
    """For code that awaits."""

    async def main() -> None:
        async with await connect_async(servers[1].url) as storage:
            assert len(await storage.list_pools()) == 1
            manager = AsyncProxyManager(storage)
            for write in (manager.cleanup_expired_leases, lambda: manager.acquire_proxy("pool")):
                with pytest.raises(ReadOnlyDatabaseError, match="is a standby"):
                    await write()

    asyncio.run(main())


def test_of_several_hosts_the_one_that_can_be_written_is_found(
    servers: tuple[Cluster, Cluster],
) -> None:
    """With ``target_session_attrs``, whichever comes first."""
    primary, standby = (str(each.data).replace("/", "%2F") for each in servers)
    url = f"postgresql://postgres@{standby},{primary}/postgres?target_session_attrs=read-write"
    with closing(connect(url)) as storage, ProxyManager(storage).with_lease("pool") as lease:
        assert lease is not None


def test_an_idle_transaction_that_is_ended_is_an_error_of_ours(
    servers: tuple[Cluster, Cluster],
) -> None:
    """The server ends it with an error of a class that no other lost connection has."""
    options = "options=-c%20idle_in_transaction_session_timeout%3D100"
    with closing(connect(f"{servers[0].url}&{options}")) as storage:
        events = storage.events()
        next(events)
        time.sleep(0.5)
        with pytest.raises(DatabaseUnavailableError) as told:
            list(events)
        assert isinstance(told.value.__cause__, psycopg.errors.IdleInTransactionSessionTimeout)
