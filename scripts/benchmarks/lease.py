"""Lease cycles: ours, pharox 0.11.0's and the floor, interleaved on one server.

A cycle is an acquisition and a release, two commits; the floor is two commits of one single-row
INSERT each by pgbench, with prepared statements.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from pharox import InMemoryStorage, ProxyManager
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part, Series
from scripts.benchmarks.peers import OURS, PHAROX_0_11, seed_0_11, told_by
from scripts.benchmarks.server import (
    connected,
    fill,
    new_database,
    new_ledger,
    pgbench,
    processor_s,
    settled,
)

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
PEER_CLIENTS = (1, 8, 64)
SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
MEMORY_SIZES = (100, 100_000)

_CLIENTS_LINES = (
    Line("floor, 1 client: two commits (pgbench)", "floor 1"),
    Line("ours, 1 process", "ours 1"),
    Line("  of the floor", "ours 1", per="floor 1", goal=goals.LEASE_FLOOR_1),
    Line("pharox 0.11.0, 1 process", "peer 1"),
    Line("  ours, of that", "ours 1", per="peer 1", goal=goals.LEASE_PEER_1),
    Line("floor, 8 clients", "floor 8"),
    Line("ours, 8 processes", "ours 8"),
    Line("  of the floor", "ours 8", per="floor 8", goal=goals.LEASE_FLOOR_8),
    Line("pharox 0.11.0, 8 processes", "peer 8"),
    Line("  ours, of that", "ours 8", per="peer 8", goal=goals.LEASE_PEER_8),
    Line("misses and errors of ours, any number of clients", "amiss", "", goal=goals.NO_ERRORS),
    Line("misses and errors of pharox 0.11.0", "peer amiss", ""),
)
_TIME_LINES = (
    Line("a cycle of ours, 1 process", "cycle 1", "ms"),
    Line("  processor, in the worker", "worker cpu 1", "ms"),
    Line("  processor, in the server, with connecting", "server cpu 1", "ms"),
    Line("two commits of the floor, 1 client", "floor cycle 1", "ms"),
    Line("  processor, in the server, with connecting", "floor cpu 1", "ms"),
    Line("a cycle of ours, 8 processes", "cycle 8", "ms"),
    Line("  processor, in the worker", "worker cpu 8", "ms"),
    Line("  processor, in the server, with connecting", "server cpu 8", "ms"),
    Line("two commits of the floor, 8 clients", "floor cycle 8", "ms"),
    Line("  processor, in the server, with connecting", "floor cpu 8", "ms"),
)
_SIZE_LINES = (
    Line(
        f"{SIZES[-1]:,} proxies: of {SIZES[0]} proxies",
        f"ours of {SIZES[-1]}",
        per=f"ours of {SIZES[0]}",
        goal=goals.LEASE_FLAT_POOL,
    ),
)
_MEMORY_LINES = (
    Line("100 proxies", "memory 100", goal=goals.MEMORY_RATE),
    Line("100,000 proxies", "memory 100000"),
    Line("  of 100 proxies", "memory 100000", per="memory 100", goal=goals.MEMORY_FLAT),
)
_GROWTH = Series(
    "Lease cycles by clients, 100 proxies",
    "clients",
    CLIENTS,
    {
        "floor": tuple(f"floor {clients}" for clients in CLIENTS),
        "pharox": tuple(f"ours {clients}" for clients in CLIENTS),
        "pharox 0.11.0": tuple(
            f"peer {clients}" if clients in PEER_CLIENTS else None for clients in CLIENTS
        ),
    },
)
_SIZE_GROWTH = Series(
    "Lease cycles by the size of the pool, 1 client",
    "proxies",
    SIZES,
    {"pharox": tuple(f"ours of {size}" for size in SIZES)},
)


def prepare(bench: Bench) -> list[Part]:
    """Return the parts that measure clients, sizes of pools, and leasing in memory."""
    return [_clients_part(bench), _sizes_part(bench), _memory_part(bench)]


def _clients_part(bench: Bench) -> Part:
    url = _ledger(bench, "clients", SIZES[:1])
    peer_url = new_database(bench.url, "peer")
    seed_0_11(peer_url, pool_of(100), 100)
    with connected(url) as connection:
        connection.execute("CREATE TABLE floor (id bigserial PRIMARY KEY, v int)")

    def measure() -> Figures:
        figures: Figures = {"amiss": 0, "peer amiss": 0}
        for clients in CLIENTS:
            rate, cpu_ms = _with_server_cpu(url, partial(_floor, url, clients, bench.seconds))
            figures[f"floor {clients}"] = rate["cycles"] / bench.seconds
            figures[f"floor cycle {clients}"] = 1000 * clients * bench.seconds / rate["cycles"]
            figures[f"floor cpu {clients}"] = cpu_ms
            told, cpu_ms = _with_server_cpu(
                url, partial(cycles, OURS, url, pool_of(100), clients, bench.seconds)
            )
            figures[f"ours {clients}"] = told["cycles"] / bench.seconds
            figures[f"cycle {clients}"] = 1000 * clients * bench.seconds / told["cycles"]
            figures[f"worker cpu {clients}"] = 1000 * told["cpu_s"] / told["cycles"]
            figures[f"server cpu {clients}"] = cpu_ms
            figures["amiss"] += told["misses"] + told["errors"]
            if clients in PEER_CLIENTS:
                told = cycles(PHAROX_0_11, peer_url, pool_of(100), clients, bench.seconds)
                figures[f"peer {clients}"] = told["cycles"] / bench.seconds
                figures["peer amiss"] += told["misses"] + told["errors"]
        return figures

    tables = {
        "1. Lease cycles, 100 proxies": _CLIENTS_LINES,
        "2. Where the time of a cycle goes": _TIME_LINES,
    }
    return Part("clients", tables, measure, series=(_GROWTH,))


def _sizes_part(bench: Bench) -> Part:
    print(f"registering {sum(SIZES):,} proxies", file=sys.stderr)
    url = _ledger(bench, "sizes", SIZES)

    def measure() -> Figures:
        return {
            f"ours of {size}": cycles(OURS, url, pool_of(size), 1, bench.seconds)["cycles"]
            / bench.seconds
            for size in SIZES
        }

    return Part(
        "sizes", {"3. Larger pools, 1 process": _SIZE_LINES}, measure, series=(_SIZE_GROWTH,)
    )


def _memory_part(bench: Bench) -> Part:
    def measure() -> Figures:
        return {f"memory {size}": in_memory(size, bench.seconds) for size in MEMORY_SIZES}

    return Part("memory", {"4. In memory": _MEMORY_LINES}, measure)


def pool_of(size: int) -> str:
    """Return the name of the pool of a size."""
    return f"pool-of-{size}"


def _ledger(bench: Bench, name: str, sizes: tuple[int, ...]) -> str:
    url = new_ledger(bench.url, name, {pool_of(size): size for size in sizes})
    settled(url)
    return url


def cycles(python: list[str], url: str, pool: str, clients: int, seconds: float) -> dict[str, Any]:
    """Return the result of processes that lease with the pharox of an environment."""
    return told_by(python, "cycles.py", url, pool, clients, seconds)


def _with_server_cpu(url: str, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Return the result of some work, and the server's processor time in ms for each cycle."""
    before = processor_s(url)
    told = work()
    return told, 1000 * (processor_s(url) - before) / told["cycles"]


def _floor(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """Return half of pgbench's commits, as a cycle has two of them."""
    statement = "INSERT INTO floor (v) VALUES (1)"
    rate = pgbench(url, statement, clients=clients, seconds=seconds)
    return {"cycles": rate * seconds / 2}


def in_memory(size: int, seconds: float) -> float:
    """Return the cycles a second of a lone caller in memory, for a number of proxies."""
    storage = InMemoryStorage()
    fill(storage, "pool", size)
    manager = ProxyManager(storage)
    manager.register_acquire_callback(lambda _: None)
    manager.register_release_callback(lambda _: None)
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        lease = manager.acquire_proxy("pool")
        assert lease is not None
        manager.release_proxy(lease)
        done += 1
    return done / seconds
