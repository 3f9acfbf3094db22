"""The server is killed with SIGKILL under load, and started again."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.conftest import ledger
from tests.faults.cluster import Cluster
from tests.faults.conftest import TIMES, Report
from tests.faults.worker import Running, stop_all

KILLS = 6 * TIMES
WORKERS = 4


@pytest.mark.stress
def test_a_killed_server_keeps_what_it_acknowledged(
    cluster: Cluster, diaries: Path, report: Report
) -> None:
    """Workers ask again under their ids until it is back; nothing is lost, nothing leased twice."""
    choose = random.Random(2)
    workers = [Running(cluster.url, diaries, awaits=bool(n % 2)) for n in range(WORKERS)]
    for worker in workers:
        worker.wait_until_begun()
    for number in range(KILLS):
        time.sleep(choose.uniform(0.3, 1.0))
        with_all = bool(number % 2)
        cluster.kill(with_all=with_all)
        what = "all of the server's processes" if with_all else "the postmaster"
        report.made(f"killed {what}, and started the server again")
        cluster.start()
    time.sleep(0.5)
    stop_all(workers)
    with ledger(cluster.url) as storage:
        found = report.close(storage, diaries)
    assert found.acknowledged > KILLS
    assert found.in_doubt > 0
