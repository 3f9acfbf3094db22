"""Workers are killed with SIGKILL in the middle of whatever they do."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from pharox import LeaseStatus
from pharox.ledger.rebuild import rebuild
from tests.conftest import ledger, threads
from tests.faults.cluster import Cluster
from tests.faults.conftest import TIMES, Report
from tests.faults.worker import LEASE_S, Running

ROLES = ("lease", "lease", "lease", "expire", "seal", "rebuild")
KILLS = 240 * TIMES
AT_ONCE = 4


@pytest.mark.stress
def test_killed_workers_lose_nothing(cluster: Cluster, diaries: Path, report: Report) -> None:
    """What a worker was told of is in the log once, and what it held runs out."""
    choose = random.Random(1)
    plans = [(ROLES[n % len(ROLES)], choose.uniform(0, 0.06)) for n in range(KILLS)]

    def kill_in_turn(slot: int) -> None:
        for role, after_s in plans[slot::AT_ONCE]:
            victim = Running(cluster.url, diaries, role)
            try:
                victim.wait_until_begun()
                time.sleep(after_s)
            finally:
                victim.kill()
            report.made(f"killed while it went on to {role}")

    threads(AT_ONCE, kill_in_turn)
    time.sleep(LEASE_S)
    with ledger(cluster.url) as storage:
        found = report.close(storage, diaries)
        assert all(lease.status is not LeaseStatus.ACTIVE for lease in storage.list_leases())
        assert rebuild(storage).findings == ()
        assert storage.verify() == []
    assert found.acknowledged > KILLS / 4
