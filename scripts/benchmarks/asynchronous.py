"""Lease cycles in one event loop: ours, a process of ours that blocks, and pharox 0.11.0's asyncpg.

64 tasks share 16 connections; a cycle is an acquisition and a release.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pharox
from pharox import embedded
from scripts.benchmarks.lease import HERE, PEER
from scripts.benchmarks.server import fill, new_database

Figures = dict[str, Any]
TASKS, CONNECTIONS = "64", "16"
TARGETS = (
    ("of one process that blocks, with one connection", "tasks", "blocking", 1.5),
    ("of pharox 0.11.0's asyncpg adapter", "tasks", "peer tasks", 10),
)


def run(*, seconds: float, rounds: int) -> Figures:
    """Measure in turns, print the medians and their ratios, and return the figures."""
    figures = _measure(seconds, rounds)
    rates, errors, misses = figures["cycles_per_s"], figures["errors"], figures["misses"]
    print(f"\n{'':20}{'cycles/s':>10}{'misses':>8}{'errors':>8}")
    for name, rate in rates.items():
        print(f"{name:20}{rate:>10,.0f}{misses[name]:>8}{errors[name]:>8}")
    print(f"\n{'':52}{'ratio':>7}{'goal':>7}")
    for label, ours, theirs, goal in TARGETS:
        ratio = rates[ours] / rates[theirs] if rates[theirs] else float("inf")
        print(f"{label:52}{ratio:>7.2f}{goal:>7} {'' if ratio >= goal else 'short'}")
    return figures


def _measure(seconds: float, rounds: int) -> Figures:
    found: dict[str, list[float]] = {}
    errors: dict[str, int] = {}
    misses: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "data")
        try:
            measurements = _prepare(server.url, seconds)
            for number in range(rounds):
                for name, measure in measurements.items():
                    print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                    counts = measure()
                    found.setdefault(name, []).append(counts["cycles"] / seconds)
                    errors[name] = errors.get(name, 0) + counts["errors"]
                    misses[name] = misses.get(name, 0) + counts["misses"]
        finally:
            server.close()
    rates = {name: round(median(rates), 1) for name, rates in found.items()}
    return {"cycles_per_s": rates, "errors": errors, "misses": misses, "rounds": found}


def _prepare(url: str, seconds: float) -> dict[str, Callable[[], dict[str, int]]]:
    storage = pharox.connect(url)
    storage.upgrade_schema()
    fill(storage, "hundred", 100)
    storage.close()
    peer_url = new_database(url, "peer")
    consumers = [f"worker-{number}" for number in range(int(TASKS))]
    subprocess.run(
        [*PEER, str(HERE / "seed_peer.py"), peer_url, "hundred", "100", *consumers], check=True
    )
    in_tasks = ("hundred", TASKS, CONNECTIONS, str(seconds))

    def counted(python: list[str], script: str, *arguments: str) -> Callable[[], dict[str, int]]:
        command = [*python, str(HERE / script), *arguments]

        def measure() -> dict[str, int]:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            counts: dict[str, int] = json.loads(done.stdout)
            return counts

        return measure

    return {
        "blocking": counted([sys.executable], "cycles.py", url, "hundred", "1", str(seconds)),
        "tasks": counted([sys.executable], "async_cycles.py", url, *in_tasks),
        "peer tasks": counted(PEER, "async_cycles.py", peer_url, *in_tasks),
    }
