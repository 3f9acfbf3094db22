"""Lease cycles: ours, pharox 0.11.0's and the floor, interleaved on one server.

A cycle is an acquisition and a release, two commits; the floor is what pgbench
makes of two commits of one single-row INSERT each, with prepared statements.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pharox
from pharox import InMemoryStorage, ProxyManager, embedded
from scripts.benchmarks.server import fill, new_database, pgbench

Figures = dict[str, Any]
HERE = Path(__file__).parent
# Isolated, so that it finds its own pharox and not ours.
PEER = [str(HERE.parents[1] / ".venv-peer" / "bin" / "python"), "-I"]
MILLION = 1_000_000

TARGETS = (
    ("1 process, 100 proxies: of pharox 0.11.0", "ours 1", "peer 1", 6),
    ("8 processes, 100 proxies: of pharox 0.11.0", "ours 8", "peer 8", 15),
    ("1 process, 100 proxies: of the floor", "ours 1", "floor 1", 0.4),
    ("8 processes, 100 proxies: of the floor", "ours 8", "floor 8", 0.4),
    ("1 process, 1,000,000 proxies: of 100 proxies", "ours 1, million", "ours 1", 0.8),
    ("in memory, 100 proxies: of 10,000 a second", "memory", "ten thousand", 1),
    ("in memory, 100,000 proxies: of 100 proxies", "memory, 100,000", "memory", 0.7),
)


def measure(*, seconds: float, rounds: int) -> Figures:
    """Return the medians of all measurements, in cycles a second, and the errors."""
    rates: dict[str, list[float]] = {}
    errors: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "data")
        try:
            measurements = _prepare(server.url, seconds)
            for number in range(rounds):
                for name, run in measurements.items():
                    print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
                    rate, failed = run()
                    rates.setdefault(name, []).append(rate)
                    errors[name] = errors.get(name, 0) + failed
        finally:
            server.close()
    medians = {name: round(median(found), 1) for name, found in rates.items()}
    return {"cycles_per_s": {**medians, "ten thousand": 10_000}, "errors": errors, "rounds": rates}


def show(figures: Figures) -> None:
    """Print the rates, then each ratio beside what it is meant to be."""
    rates, errors = figures["cycles_per_s"], figures["errors"]
    print(f"\n{'':34}{'cycles/s':>10}{'errors':>8}")
    for name, failed in errors.items():
        print(f"{name:34}{rates[name]:>10,.0f}{failed:>8}")
    print(f"\n{'':52}{'ratio':>7}{'goal':>7}")
    for label, ours, theirs, goal in TARGETS:
        ratio = rates[ours] / rates[theirs] if rates[theirs] else float("inf")
        print(f"{label:52}{ratio:>7.2f}{goal:>7} {'' if ratio >= goal else 'short'}")


Measurement = Callable[[], tuple[float, int]]


def _prepare(url: str, seconds: float) -> dict[str, Measurement]:
    storage = pharox.connect(url)
    storage.upgrade_schema()
    peer_url = new_database(url, "peer")
    fill(storage, "hundred", 100)
    print("registering a million proxies", file=sys.stderr)
    fill(storage, "million", MILLION)
    _peer("seed_peer.py", peer_url, "hundred", "100")
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE floor (id bigserial PRIMARY KEY, v int)")
        connection.exec_driver_sql("VACUUM ANALYZE")
    storage.close()
    arguments = ("hundred", "1", str(seconds)), ("hundred", "8", str(seconds))

    def ours(*asked: str) -> Measurement:
        return lambda: _cycles([sys.executable], url, *asked)

    def peer(*asked: str) -> Measurement:
        return lambda: _cycles(PEER, peer_url, *asked)

    return {
        "floor 1": lambda: _floor(url, 1, seconds),
        "ours 1": ours(*arguments[0]),
        "peer 1": peer(*arguments[0]),
        "ours 1, million": ours("million", "1", str(seconds)),
        "floor 8": lambda: _floor(url, 8, seconds),
        "ours 8": ours(*arguments[1]),
        "peer 8": peer(*arguments[1]),
        "memory": lambda: _in_memory(100, seconds),
        "memory, 100,000": lambda: _in_memory(100_000, seconds),
    }


def _cycles(
    python: list[str], url: str, pool: str, processes: str, seconds: str
) -> tuple[float, int]:
    done = subprocess.run(
        [*python, str(HERE / "cycles.py"), url, pool, processes, seconds],
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    return counts["cycles"] / float(seconds), counts["errors"] + counts["misses"]


def _floor(url: str, clients: int, seconds: float) -> tuple[float, int]:
    """Return half of pgbench's commits a second, as a cycle has two of them."""
    statement = "INSERT INTO floor (v) VALUES (1)"
    return pgbench(url, statement, clients=clients, seconds=seconds) / 2, 0


def _in_memory(count: int, seconds: float) -> tuple[float, int]:
    storage = InMemoryStorage()
    fill(storage, "pool", count)
    manager = ProxyManager(storage)
    manager.register_acquire_callback(lambda _: None)
    manager.register_release_callback(lambda _: None)
    cycles, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease)
        cycles += 1
    return cycles / seconds, 0


def _peer(script: str, *arguments: str) -> None:
    subprocess.run([*PEER, str(HERE / script), *arguments], check=True)
