"""Whoever bans for a moment is killed, and the server too: every ban ends, once."""

from __future__ import annotations

import random
import time
from itertools import pairwise
from pathlib import Path

import pytest

from pharox import ProxyStatus
from pharox.events import BAN_OVER, ProxyChanged
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage
from tests.conftest import ledger
from tests.faults.cluster import Cluster
from tests.faults.conftest import REPORTS, TIMES, Report
from tests.faults.worker import Running, stop_all

WORKERS = 4
KILLS = (6 if REPORTS is None else 120) * TIMES


def changes_of(storage: PostgresStorage) -> list[list[ProxyChanged]]:
    """Return the changes of each proxy, in order."""
    changes: dict[object, list[ProxyChanged]] = {}
    for event in storage.events():
        if isinstance(event, ProxyChanged):
            changes.setdefault(event.proxy_id, []).append(event)
    return list(changes.values())


@pytest.mark.stress
def test_bans_end_whoever_is_killed(cluster: Cluster, diaries: Path, report: Report) -> None:
    """No end is lost, and none is recorded twice or before its time."""
    choose = random.Random(44)
    workers = [Running(cluster.url, diaries, "ban", awaits=bool(n % 2)) for n in range(WORKERS)]
    for number in range(KILLS):
        place = choose.randrange(WORKERS)
        workers[place].wait_until_begun()
        time.sleep(choose.uniform(0, 0.2))
        if number == KILLS // 2:
            cluster.kill(with_all=True)
            cluster.start()
            report.made("killed the server while bans ended")
        workers[place].kill()
        report.made("killed a worker that banned and leased")
        workers[place] = Running(cluster.url, diaries, "ban", awaits=bool(number % 2))
    for worker in workers:
        worker.wait_until_begun()
    stop_all(workers)
    with ledger(cluster.url) as storage:
        report.close(storage, diaries)
        (pool,) = storage.list_pools()
        proxies = storage.list_proxies(str(pool.id))
        assert {(each.status, each.banned_until) for each in proxies} == {
            (ProxyStatus.ACTIVE, None)
        }
        ends = 0
        for changes in changes_of(storage):
            for before, change in pairwise(changes):
                if change.reason != BAN_OVER:
                    continue
                assert before.until is not None
                assert before.until <= change.recorded_at
                ends += 1
            assert changes[-1].reason == BAN_OVER
        assert ends
        assert rebuild(storage).findings == ()
