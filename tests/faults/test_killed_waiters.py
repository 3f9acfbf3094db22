"""Waiting workers, holders and keepers are killed with SIGKILL; who is left is served in turn."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pharox import LeaseStatus, ProxyManager
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage
from tests.conftest import fill, ledger, run_sql, threads
from tests.faults.cluster import Cluster
from tests.faults.conftest import REPORTS, TIMES, Report
from tests.faults.diary import Diary
from tests.faults.free import longest_free_s
from tests.faults.worker import LEASE_S, SCARCE, WAIT_S, Running
from tests.ledger.following import until

KILLED = {
    "wait": "killed while it waited, or soon after",
    "crowd": "killed while several of its threads waited, or soon after",
    "hold": "killed while it held a lease, or soon after",
    "keep": "killed while it kept a lease alive, or soon after",
}
HOLDERS = ("hold", "keep")
KILLS = (36 if REPORTS is None else 350) * TIMES
AT_ONCE = 4
PROXIES = 6
SURVIVORS = 3


@pytest.mark.stress
def test_killed_waiters_hold_up_nobody(cluster: Cluster, diaries: Path, report: Report) -> None:
    """Nothing is lost or held twice, and each caller who lives is served, in processes and here."""
    choose = random.Random(6)
    roles = tuple(KILLED)
    plans = [(roles[n % 4], n % 8 < 4, choose.uniform(0.1, 1)) for n in range(KILLS)]
    choose.shuffle(plans)
    is_over = threading.Event()
    with ledger(cluster.url) as storage:
        pool, _ = fill(storage, PROXIES, name=SCARCE)

        def kill_in_turn(slot: int) -> None:
            for role, awaits, after_s in plans[slot::AT_ONCE]:
                victim = Running(cluster.url, diaries, role, awaits=awaits and role != "crowd")
                if role in HOLDERS:
                    victim.wait_until_holding()
                time.sleep(after_s)
                victim.kill()
                report.made(KILLED[role])

        workers = [
            Running(cluster.url, diaries, role, awaits=awaits)
            for role in ("wait", "keep")
            for awaits in (False, True)
        ]
        with ThreadPoolExecutor(SURVIVORS) as pool_of_threads:
            served = [
                pool_of_threads.submit(_served_until, is_over, storage, f"s{n}", diaries)
                for n in range(SURVIVORS)
            ]
            try:
                threads(AT_ONCE, kill_in_turn)
                for worker in workers:
                    worker.wait_until_begun()
            finally:
                is_over.set()
            for worker in workers:
                worker.stop()
            assert all(each.result() > 0 for each in served)
        time.sleep(LEASE_S)
        found = report.close(storage, diaries)
        assert all(lease.status is not LeaseStatus.ACTIVE for lease in storage.list_leases())
        events = list(storage.events())
        assert not [event for event in events if event.type == "AcquireMissed"]
        report.free_s = longest_free_s(events, pool.id)
        assert rebuild(storage).findings == ()
    assert found.acknowledged > 0


def _served_until(
    is_over: threading.Event, storage: PostgresStorage, name: str, diaries: Path
) -> int:
    """Wait again and again; return how often one was served. A miss is a failure."""
    manager, diary, times = ProxyManager(storage), Diary(diaries / f"{name}.diary"), 0
    while not is_over.is_set():
        lease = manager.acquire_proxy(SCARCE, name, LEASE_S * 20, wait_seconds=WAIT_S)
        assert lease is not None, f"{name} was not served after {times} times"
        diary.hold(lease)
        time.sleep(0.01)
        manager.release_proxy(lease)
        times += 1
    return times


@pytest.mark.stress
def test_the_places_of_killed_waiters_end(cluster: Cluster, diaries: Path, report: Report) -> None:
    """Those in front are killed: who comes after them is served within seconds."""
    with ledger(cluster.url) as storage:
        fill(storage, 2, name=SCARCE)
        manager = ProxyManager(storage)
        held = manager.acquire_proxies(SCARCE, 2, "holder", 300)
        assert len(held) == 2
        victims = [
            Running(cluster.url, diaries, role, awaits=awaits)
            for role in ("pair", "wait")
            for awaits in (False, True)
        ]
        until(lambda: _tickets(storage) == 4, 60)
        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(manager.acquire_proxies, SCARCE, 2, "last", wait_seconds=WAIT_S)
            until(lambda: _tickets(storage) == 5, 30)
            for victim in victims:
                victim.kill()
                report.made("killed while it waited in front of others")
            manager.release_proxies(held)
            found = last.result()
        assert len(found) == 2
        diary = Diary(diaries / "last.diary")
        for lease in found:
            diary.hold(lease)
        manager.release_proxies(found)
        report.close(storage, diaries)


def _tickets(storage: PostgresStorage) -> object:
    return run_sql(storage.engine, "SELECT count(*) FROM pharox.waiting_tickets")[0][0]


@pytest.mark.stress
def test_waits_outlive_a_killed_server(cluster: Cluster, diaries: Path, report: Report) -> None:
    """The server is killed while somebody waits: once it is back, they are served in order."""
    order: list[int] = []
    diary = Diary(diaries / "threads.diary")
    with ledger(cluster.url) as storage:
        fill(storage, 1, name=SCARCE)
        manager = ProxyManager(storage)
        lease = manager.acquire_proxy(SCARCE, "holder", 300)
        assert lease is not None

        def wait(number: int) -> None:
            found = manager.acquire_proxy(SCARCE, "w", 300, wait_seconds=60)
            assert found is not None
            diary.hold(found)
            order.append(number)
            manager.release_proxy(found)

        with ThreadPoolExecutor(4) as pool:
            done = []
            for number in range(4):
                done.append(pool.submit(wait, number))
                until(lambda number=number: _tickets(storage) == number + 1, 30)  # type: ignore[misc]
            for with_all in (False, True):
                cluster.kill(with_all=with_all)
                report.made("killed the server while somebody waited")
                time.sleep(1.5)
                cluster.start()
                time.sleep(1.5)
                assert not any(each.done() for each in done)
            manager.release_proxy(lease)
            for each in done:
                each.result()
        assert order == [0, 1, 2, 3]
        report.close(storage, diaries)
