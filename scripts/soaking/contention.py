"""Lease few exclusive proxies from many tasks of many processes, and prove that nobody shared one.

No fault is made. What must hold: no call raises an error, each lease that a task
was told of is in the log once, no proxy has two holders in the log, all leases
end, and the log and the read models verify.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pharox
from pharox import AsyncProxyManager
from pharox.connecting import embedded
from scripts.benchmarks.server import fill
from scripts.soaking.accounts import Accounts
from scripts.soaking.worker import Journal

POOL = "contended"
_FEW = 5
"""How many different errors are told in words."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/soak contention", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of leasing (60)")
    parser.add_argument("--processes", type=int, default=8, help="(8)")
    parser.add_argument("--tasks", type=int, default=64, help="of each process (64)")
    parser.add_argument("--proxies", type=int, default=40, help="each for one lease at once (40)")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    asked = parser.parse_args()
    found = contend(asked.seconds, asked.processes, asked.tasks, asked.proxies)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    for name, value in found.items():
        if isinstance(value, int):
            print(f"{name:30}{value:>12,}")
    for failure in found["failures"]:
        print(f"failed: {failure}")
    print("failed" if found["failures"] else "everything held")
    return 1 if found["failures"] else 0


def contend(seconds: float, processes: int, tasks: int, proxies: int) -> dict[str, Any]:
    """Lease on a server of its own; return what came of it."""
    with tempfile.TemporaryDirectory(prefix="pharox-contention-") as folder:
        journals = Path(folder) / "journals"
        journals.mkdir()
        server = embedded.start(Path(folder) / "data")
        try:
            storage = pharox.connect(server.url)
            storage.upgrade_schema()
            fill(storage, POOL, proxies)
            done = _lease_in_processes(server.url, journals, seconds, processes, tasks)
            accounts = Accounts(journals)
            accounts.settle(storage)
            findings = storage.verify()
            storage.close()
        finally:
            server.close()
    return report(done, accounts, [str(finding) for finding in findings])


def _lease_in_processes(
    url: str, journals: Path, seconds: float, processes: int, tasks: int
) -> Counter[str]:
    """Return how many leases, misses and errors there were, the errors also by their words."""
    with ProcessPoolExecutor(processes, get_context("spawn")) as workers:
        asked = [
            workers.submit(_lease, url, str(journals / f"worker-{number}"), seconds, tasks)
            for number in range(processes)
        ]
        return sum((each.result() for each in asked), Counter[str]())


def _lease(url: str, journal: str, seconds: float, tasks: int) -> Counter[str]:
    return asyncio.run(_in_tasks(url, Journal(journal), seconds, tasks))


async def _in_tasks(url: str, journal: Journal, seconds: float, tasks: int) -> Counter[str]:
    storage = await pharox.connect_async(url)
    manager = AsyncProxyManager(storage)
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def work(consumer: str) -> None:
        while time.monotonic() < until:
            try:
                lease = await manager.acquire_proxy(POOL, consumer)
                if lease is None:
                    counts["misses"] += 1
                    continue
                journal.note("A", lease.id)
                await asyncio.sleep(0)  # others of this process ask while it is held
                await manager.release_proxy(lease)
                journal.note("R", lease.id)
                counts["leases"] += 1
            except Exception as error:
                counts["errors"] += 1
                counts[f"error: {error!r}"] += 1

    await asyncio.gather(*(work(f"worker-{number}") for number in range(tasks)))
    await storage.close()
    return counts


def report(done: Counter[str], accounts: Accounts, findings: list[str]) -> dict[str, Any]:
    """Return what was counted, and what of it must not be."""
    counted = {
        "errors": done["errors"],
        "held twice": accounts.held_twice,
        "told and not in the log": accounts.lost,
        "leases that never ended": accounts.open_leases,
        "findings of verify": len(findings),
    }
    failures = [f"{name}: {count}" for name, count in counted.items() if count]
    if not done["leases"]:
        failures.append("nobody leased anything")
    words = sorted(name for name in done if name.startswith("error: "))
    return {
        "leases": done["leases"],
        "misses": done["misses"],
        "events": accounts.last_seq,
        **counted,
        "failures": failures + words[:_FEW] + findings[:_FEW],
    }


if __name__ == "__main__":  # processes that it starts import this again
    sys.exit(main())
