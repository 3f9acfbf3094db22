"""Lease, sweep, subscribe and rebuild together under faults, and verify it every minute.

On a server of its own. What must hold: the log verifies, no exclusive proxy is
leased twice at once, everything that a worker was told is in the log, every event
reaches a subscription exactly once, and memory, connections and tables stay level.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psycopg

import pharox
from pharox import DatabaseError, ProxyManager
from pharox.connecting import embedded
from scripts.benchmarks.machine import describe
from scripts.benchmarks.server import connected, fill
from scripts.soaking.accounts import Accounts
from scripts.soaking.faults import Faults
from scripts.soaking.levels import Levels
from scripts.soaking.worker import LEASE_S, POOL
from scripts.soaking.workers import Worker

T = TypeVar("T")

PROXIES = 40
STEADY = {
    "blocking": "a blocking worker",
    "tasks": "a worker with tasks",
    "sweeper": "a sweeper",
    "follower": "a subscription",
    "rebuilder": "a rebuilder",
}
"""Processes that no fault ends, by kind: their memory is looked at."""

MORTAL = ("blocking", "tasks", "follower")

SAMPLE_S = 2
FAULT_S = 2
SERVER_KILL_S = 50
CHECK_S = 60
_PATIENCE_S = 60


class Soak:
    """A soak from its server to its report."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.failures: list[str] = []
        self.checks: list[dict[str, Any]] = []
        self._chance = random.Random(seed)
        data_dir, journals = folder / "data", folder / "journals"
        journals.mkdir()
        self.server = embedded.start(data_dir)
        self.url = self.server.url
        self.storage = pharox.connect(self.url)
        self.storage.upgrade_schema()
        fill(self.storage, POOL, PROXIES)
        with connected(self.url) as connection:
            connection.execute("CREATE TABLE followed (seq bigint NOT NULL)")
        processes = len(STEADY) + len(MORTAL) + 1
        self.accounts, self.levels = Accounts(journals), Levels(processes)
        self.steady = {
            name: Worker(kind, f"steady-{kind}", self.url, journals)
            for kind, name in STEADY.items()
        }
        self.mortal = [Worker(kind, f"mortal-{kind}", self.url, journals) for kind in MORTAL]
        self.faults = Faults(data_dir, self.url, self.mortal, self._chance)

    def run(self, seconds: float) -> None:
        """Go on for so long, then end the workers, and see that nothing is left open."""
        began = time.monotonic()
        self._repeat(began + seconds)
        for worker in (*self.steady.values(), *self.mortal):
            worker.kill()
        time.sleep(LEASE_S + 1)
        manager = ProxyManager(self.storage)
        self._patiently(manager.cleanup_expired_leases)
        self.check()
        if self.accounts.open_leases:
            self._fail(f"{self.accounts.open_leases} leases were never ended")

    def _repeat(self, end: float) -> None:
        now = time.monotonic()
        due = {
            self.sample: (SAMPLE_S, now + SAMPLE_S),
            self.harm: (FAULT_S, now + 5),
            self.faults.kill_server: (SERVER_KILL_S, now + SERVER_KILL_S / 2),
            self.check: (CHECK_S, now + CHECK_S),
        }
        while time.monotonic() < end:
            for act, (pause_s, at) in list(due.items()):
                if time.monotonic() >= at:
                    act()
                    due[act] = (pause_s, time.monotonic() + pause_s)
            time.sleep(0.1)

    def harm(self) -> None:
        """Do one of the smaller faults."""
        self._chance.choice((self.faults.kill_worker, self.faults.cut_connection))()

    def sample(self) -> None:
        """Look at the levels, and whether all processes are there that should be."""
        for name, worker in self.steady.items():
            if worker.runs:
                self.levels.sample_process(name, worker.pid)
            else:
                self._fail(f"{name} ended by itself")
                worker.start()
        with suppress(psycopg.OperationalError), connected(self.url) as connection:
            self.levels.sample_server(connection)

    def check(self) -> None:
        """Verify the ledger, settle the accounts, and look at what the subscription wrote."""
        began = time.monotonic()
        findings = self._patiently(self.storage.verify)
        verified_s = time.monotonic() - began
        self._patiently(lambda: self.accounts.settle(self.storage))
        repeated = self._patiently(self._followed_twice)
        accounts = self.accounts
        told = {
            "leases": accounts.leases,
            "acknowledged": accounts.acknowledged,
            "lost": accounts.lost,
            "held twice": accounts.held_twice,
            "findings": len(findings),
            "followed twice or never": repeated,
            "errors for lost connections": accounts.errors,
            "verify took s": round(verified_s, 1),
            **self.faults.done,
        }
        self.checks.append(told)
        print(json.dumps(told), flush=True)
        for finding in findings[:5]:
            self._fail(f"verify: {finding}")
        for name in ("lost", "held twice", "followed twice or never"):
            if told[name]:
                self._fail(f"{name}: {told[name]}")
        for what in accounts.unexplained:
            self._fail(f"a worker failed: {what}")

    def _followed_twice(self) -> int:
        """Return how many events the subscription had twice, or left out on its way."""
        with connected(self.url) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT seq), coalesce(max(seq), 0) FROM followed"
            ).fetchone()
        assert row is not None
        written, different, last = map(int, row)
        return abs(last - different) + (written - different)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask again while a fault of ours is in the way."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask()
            except (DatabaseError, psycopg.OperationalError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.2)

    def _fail(self, what: str) -> None:
        if what not in self.failures:
            self.failures.append(what)

    def close(self) -> None:
        """End everything that was started."""
        for worker in (*self.steady.values(), *self.mortal):
            worker.kill()
        self.storage.close()
        self.server.close()

    def report(self, seconds: float, seed: int) -> dict[str, Any]:
        """Return what came of it."""
        levels = self.levels.judged()
        for level in levels:
            if not level["held"]:
                before, after = level["second third"], level["last third"]
                self._fail(f"{level['level']} rose from {before} to {after} {level['unit']}")
        if not self.accounts.acknowledged:
            self._fail("nobody leased anything")
        last = self.checks[-1]
        return {
            "test": "soak",
            "fact": "Under all faults together nothing is lost or leased twice, and levels hold.",
            "area": "A soak: leasing, sweeps, subscriptions and rebuilds at once, with faults",
            "tried": dict(self.faults.done),
            "acknowledged": last["acknowledged"],
            "in_doubt": last["errors for lost connections"],
            "lost": last["lost"],
            "doubled": last["followed twice or never"],
            "held_twice": last["held twice"],
            "findings": last["findings"],
            "seconds": round(seconds, 1),
            "outcome": "failed" if self.failures else "passed",
            "events": self.accounts.last_seq,
            "seed": seed,
            "failures": self.failures,
            "levels": levels,
            "checks": self.checks,
            "machine": describe(self.url),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the faults")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pharox-soak-", ignore_cleanup_errors=True) as folder:
        began = time.monotonic()
        soak = Soak(Path(folder), asked.seed)
        try:
            soak.run(60 * asked.minutes)
            report = soak.report(time.monotonic() - began, asked.seed)
        finally:
            soak.close()
    write(report, asked.json)
    show(report)
    return 1 if report["failures"] else 0


def write(report: dict[str, Any], file: Path | None) -> None:
    """Write the report to a file, and for the page of reliability where that is asked for."""
    folder = os.environ.get("PHAROX_REPORTS")
    for path in (file, Path(folder) / "soak.json" if folder else None):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(report, indent=1) + "\n")


def show(report: dict[str, Any]) -> None:
    """Print the levels, and whether everything held."""
    print(f"\n{'level':52}{'second third':>13}{'last third':>12}{'at most':>10}")
    for level in report["levels"]:
        note = "" if level["judged"] else "too few samples to judge"
        print(
            f"{level['level']:52}{level['second third']:>13}{level['last third']:>12}"
            f"{level['at most']:>10} {level['unit']:4}{note}".rstrip()
        )
    for failure in report["failures"]:
        print(f"failed: {failure}")
    print("failed" if report["failures"] else "everything held")


if __name__ == "__main__":
    sys.exit(main())
