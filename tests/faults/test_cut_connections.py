"""Connections between workers and server are cut or frozen, at every point of a request.

Half of the workers block, half of them await.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import fill, ledger
from tests.faults.cluster import Cluster
from tests.faults.conftest import TIMES, Report
from tests.faults.diary import Account
from tests.faults.relay import CUTS, FREEZES, Fault, Relay, in_front_of
from tests.faults.worker import LEASE_S, SCARCE, Running

CUT_TIMES = 40 * TIMES
FREEZE_TIMES = 5 * TIMES
WORKERS = 4
ANSWER_TIMEOUT_S = 0.5


@pytest.mark.stress
def test_cut_connections_lose_nothing(cluster: Cluster, diaries: Path, report: Report) -> None:
    """Whatever a worker was told of is in the log once; what it was not told of is asked again."""
    faults = [fault for fault in CUTS for _ in range(CUT_TIMES)]
    found = _leased_under(faults, 3, cluster, diaries, report)
    assert found.acknowledged > 0
    assert found.in_doubt > 0


@pytest.mark.stress
@pytest.mark.parametrize("role", ["wait", "keep"])
def test_cut_connections_lose_no_waiter(
    role: str, cluster: Cluster, diaries: Path, report: Report
) -> None:
    """The same for workers who wait for one of few proxies; each is served or misses in time."""
    faults = [fault for fault in CUTS for _ in range(CUT_TIMES // 4)]
    with ledger(cluster.url) as storage:
        fill(storage, 2, name=SCARCE)
    found = _leased_under(faults, 5, cluster, diaries, report, role=role)
    assert found.acknowledged > 0


@pytest.mark.stress
def test_frozen_connections_end_in_time(cluster: Cluster, diaries: Path, report: Report) -> None:
    """A worker that is told nothing gives up by itself, and goes on when the network does."""
    faults = [fault for fault in FREEZES for _ in range(FREEZE_TIMES)]
    found = _leased_under(faults, 4, cluster, diaries, report, then=_thaw)
    assert found.acknowledged > 0
    assert found.in_doubt > 0


def _leased_under(
    faults: list[Fault],
    seed: int,
    cluster: Cluster,
    diaries: Path,
    report: Report,
    *,
    role: str = "lease",
    then: Callable[[Relay], None] = lambda _: None,
) -> Account:
    """Have workers lease while all faults are made, in some order; return what came of it."""
    choose = random.Random(seed)
    choose.shuffle(faults)
    with in_front_of(cluster.url) as relay:
        workers = _workers(relay.url.render_as_string(hide_password=False), diaries, role)
        for fault in faults:
            relay.arm(fault, skip=choose.randrange(20))
            _wait_until_made(relay)
            report.made(fault)
            then(relay)
        for worker in workers:
            worker.stop()
    time.sleep(LEASE_S)
    with ledger(cluster.url) as storage:
        return report.close(storage, diaries)


def _thaw(relay: Relay) -> None:
    """Let the network go on once the statement is late, its cancelling as well, and then some."""
    time.sleep(3 * ANSWER_TIMEOUT_S + 0.5)
    relay.thaw()
    time.sleep(0.3)


def _workers(url: str, diaries: Path, role: str) -> list[Running]:
    workers = [
        Running(
            f"{url}?connect_timeout=2",
            diaries,
            role,
            answer_timeout_s=ANSWER_TIMEOUT_S,
            awaits=bool(number % 2),
        )
        for number in range(WORKERS)
    ]
    for worker in workers:
        worker.wait_until_begun()
    return workers


def _wait_until_made(relay: Relay) -> None:
    deadline = time.monotonic() + 60
    while relay.is_armed:
        assert time.monotonic() < deadline, "no request arrived"
        time.sleep(0.002)
