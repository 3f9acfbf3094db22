"""The server has no connection left, no time, or no space."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from pharox import (
    DatabaseError,
    DatabaseUnavailableError,
    Lease,
    OutcomeUnknownError,
    ProxyManager,
)
from pharox.storage.postgres import PostgresStorage
from tests.conftest import SECRET_KEY, fill, ledger, open_engine
from tests.faults import cluster as clusters
from tests.faults.cluster import Cluster
from tests.faults.conftest import PROXIES, TIMES, Report
from tests.faults.diary import HELD, RELEASED, Diary
from tests.faults.worker import POOL, Running, stop_all

DISK_MB = 80


def test_a_server_without_connections_is_told(
    cluster: Cluster, diaries: Path, report: Report
) -> None:
    """Who gets none has asked for nothing, and goes on when there is one."""
    url, diary = cluster.url.replace("+psycopg", ""), Diary(diaries / "caller.diary")
    with ledger(cluster.url) as storage:
        manager = ProxyManager(storage)
        for _ in range(5 * TIMES):
            with ExitStack() as taken:
                with suppress(psycopg.OperationalError):
                    while True:
                        taken.enter_context(psycopg.connect(url))
                with pytest.raises(DatabaseUnavailableError) as told:
                    manager.acquire_proxy(POOL)
                assert not isinstance(told.value, OutcomeUnknownError)
                report.made("all of the server's connections taken")
            deadline = time.monotonic() + 10
            while (lease := _lease_if_possible(manager)) is None:
                assert time.monotonic() < deadline
            diary.note(HELD, lease.id)
            manager.release_proxy(lease)
            diary.note(RELEASED, lease.id)
            storage.close()  # so that the next one has to connect again
        report.close(storage, diaries)


def _lease_if_possible(manager: ProxyManager) -> Lease | None:
    with suppress(DatabaseUnavailableError):
        return manager.acquire_proxy(POOL)
    return None


def test_a_statement_that_times_out_has_done_nothing(
    cluster: Cluster, diaries: Path, report: Report
) -> None:
    """The server's own time-out is told as such, and neither leases nor releases."""
    url = make_url(cluster.url).update_query_dict({"options": "-c statement_timeout=100"})
    diary = Diary(diaries / "caller.diary")
    with ledger(cluster.url) as storage, ledger(url.render_as_string()) as limited:
        manager = ProxyManager(limited)
        held = manager.acquire_proxy(POOL)
        assert held is not None
        diary.note(HELD, held.id)
        before = [event.type for event in storage.events()]
        plain = storage.engine.execution_options(isolation_level="READ COMMITTED")
        with plain.begin() as other:
            other.exec_driver_sql("LOCK TABLE pharox.leases IN ACCESS EXCLUSIVE MODE")
            for _ in range(5 * TIMES):
                for ask in (
                    lambda: manager.acquire_proxy(POOL),
                    lambda: manager.release_proxy(held),
                    manager.cleanup_expired_leases,
                ):
                    with pytest.raises(DatabaseError) as told:
                        ask()
                    assert isinstance(told.value.__cause__, psycopg.errors.QueryCanceled)
                    report.made("statement timed out behind a lock")
        assert [event.type for event in storage.events()] == before
        manager.release_proxy(held)
        diary.note(RELEASED, held.id)
        report.close(storage, diaries)


@contextmanager
def small_disk() -> Iterator[Path]:
    """Mount a small file system for a block, or skip the test where one may not."""
    with tempfile.TemporaryDirectory(prefix="pharox-fault-") as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount command here")
        if done.returncode != 0:
            pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", "--lazy", name], check=True)


@pytest.mark.stress
@pytest.mark.parametrize("number", range(2 * TIMES))
def test_a_full_disk_loses_nothing_that_was_acknowledged(
    diaries: Path, report: Report, number: int
) -> None:
    """Commands fail with an error of ours while it is full, and go on when there is space."""
    with (
        small_disk() as disk,
        clusters.running(disk, "--wal-segsize=1", min_wal_size="2MB", max_wal_size="4MB") as server,
    ):
        with ledger(server.url) as storage:
            fill(storage, PROXIES)
        workers = [Running(server.url, diaries) for _ in range(3)]
        for worker in workers:
            worker.wait_until_begun()
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        refused = _lease_until_refused(server)
        report.made(f"disk filled; then {refused}")
        ballast.unlink()
        _start_again_if_down(server)
        stop_all(workers)
        with ledger(server.url) as storage:
            found = report.close(storage, diaries)
            with ProxyManager(storage).with_lease(POOL) as lease:
                assert lease is not None
    assert found.acknowledged > 0
    del number


def _lease_until_refused(server: Cluster) -> str:
    """Lease on a full disk until that is refused, and say what was told."""
    storage = PostgresStorage(open_engine(server.url), secret_keys=[SECRET_KEY])
    manager, deadline = ProxyManager(storage), time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            lease = manager.acquire_proxy(POOL, "filler")
            if lease is not None:
                manager.release_proxy(lease)
    except DatabaseError as error:
        is_refused = isinstance(error.__cause__, psycopg.errors.DiskFull)
        return "a command was refused" if is_refused else "the server went down"
    finally:
        storage.close()
    raise AssertionError("the disk did not fill up")


def _start_again_if_down(server: Cluster) -> None:
    with ledger(server.url) as storage:
        try:
            storage.list_pools()
        except DatabaseUnavailableError:
            server.stop()
            server.start()
