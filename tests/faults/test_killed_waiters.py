"""Waiting workers, holders and keepers are killed with SIGKILL; who is left is served in turn."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pharox import LeaseStatus, ProxyManager
from pharox.ledger.rebuild import rebuild
from tests.conftest import fill, ledger, run_sql, threads
from tests.faults.cluster import Cluster
from tests.faults.conftest import TIMES, Report
from tests.faults.worker import LEASE_S, SCARCE, WAIT_S, Running
from tests.ledger.following import until

ROLES = ("wait", "keep", "wait")
KILLS = 36 * TIMES
AT_ONCE = 2
PROXIES = 3
SURVIVORS = 3


@pytest.mark.stress
def test_killed_waiters_hold_up_nobody(cluster: Cluster, diaries: Path, report: Report) -> None:
    """Nothing is lost or held twice, and each caller who lives is served, in processes and here."""
    choose = random.Random(6)
    plans = [(ROLES[n % len(ROLES)], n % 2 == 1, choose.uniform(0.3, 1)) for n in range(KILLS)]
    with ledger(cluster.url) as storage:
        fill(storage, PROXIES, name=SCARCE)

        def kill_in_turn(slot: int) -> None:
            for role, awaits, after_s in plans[slot::AT_ONCE]:
                victim = Running(cluster.url, diaries, role, awaits=awaits)
                time.sleep(after_s)
                victim.kill()
                report.made(f"killed while it went on to {role}")

        workers = [Running(cluster.url, diaries, "wait", awaits=bool(n % 2)) for n in range(4)]
        with ThreadPoolExecutor(SURVIVORS) as pool:
            ends = time.monotonic() + KILLS / AT_ONCE * 0.65 + 1
            served = [pool.submit(_served_until, storage, ends, f"s{n}") for n in range(SURVIVORS)]
            threads(AT_ONCE, kill_in_turn)
            for worker in workers:
                worker.wait_until_begun()
                worker.stop()
            assert all(each.result() > 0 for each in served)
        time.sleep(LEASE_S)
        found = report.close(storage, diaries)
        assert all(lease.status is not LeaseStatus.ACTIVE for lease in storage.list_leases())
        assert rebuild(storage).findings == ()
    assert found.acknowledged > 0


def _served_until(storage: object, ends: float, name: str) -> int:
    """Wait again and again; return how often one was served. A miss is a failure."""
    manager, times = ProxyManager(storage), 0  # type: ignore[arg-type]
    while time.monotonic() < ends:
        lease = manager.acquire_proxy(SCARCE, name, LEASE_S * 20, wait_seconds=WAIT_S)
        assert lease is not None, f"{name} was not served after {times} times"
        time.sleep(0.01)
        manager.release_proxy(lease)
        times += 1
    return times


@pytest.mark.stress
def test_the_places_of_killed_waiters_end(cluster: Cluster, diaries: Path, report: Report) -> None:
    """Those in front are killed: who comes after them is served within seconds."""
    with ledger(cluster.url) as storage:
        fill(storage, 1, name=SCARCE)
        manager = ProxyManager(storage)
        lease = manager.acquire_proxy(SCARCE, "holder", 300)
        assert lease is not None
        victims = [Running(cluster.url, diaries, "wait", awaits=bool(n % 2)) for n in range(4)]
        until(lambda: _tickets(storage) == 4, 60)
        with ThreadPoolExecutor(1) as pool:
            last = pool.submit(manager.acquire_proxy, SCARCE, "last", wait_seconds=9)
            until(lambda: _tickets(storage) == 5, 30)
            for victim in victims:
                victim.kill()
                report.made("killed while it waited in front of others")
            manager.release_proxy(lease)
            found = last.result()
        assert found is not None
        manager.release_proxy(found)
        report.close(storage, diaries)


def _tickets(storage: object) -> object:
    return run_sql(storage.engine, "SELECT count(*) FROM pharox.waiting_tickets")[0][0]  # type: ignore[attr-defined]


@pytest.mark.stress
def test_waits_outlive_a_killed_server(cluster: Cluster, diaries: Path, report: Report) -> None:
    """The server is killed while somebody waits: once it is back, they are served in order."""
    order: list[int] = []
    with ledger(cluster.url) as storage:
        fill(storage, 1, name=SCARCE)
        manager = ProxyManager(storage)
        lease = manager.acquire_proxy(SCARCE, "holder", 300)
        assert lease is not None

        def wait(number: int) -> None:
            found = manager.acquire_proxy(SCARCE, "w", 300, wait_seconds=60)
            assert found is not None
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
