"""Checks a second that are recorded: a sweep of a whole pool, in memory and on PostgreSQL.

Each is measured in a new process, and each round begins with another one: the order has a larger
effect than the difference to be measured.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

import pharox
from pharox import (
    HealthChecker,
    HealthCheckOrchestrator,
    InMemoryStorage,
    ProxyPool,
)
from pharox.storage.interface import IStorage
from scripts.benchmarks.health_process import in_new_process
from scripts.benchmarks.health_proxies import Ports, options, proxy
from scripts.benchmarks.parts import Figures, Line, Part
from scripts.benchmarks.server import new_database

PROXIES = 10_000
AT_ONCE = 100

LINES = (
    Line("the stream alone", "alone"),
    Line("into memory", "memory"),
    Line("  of the stream alone", "memory", per="alone"),
    Line("into PostgreSQL", "postgres"),
    Line("  of the stream alone", "postgres", per="alone"),
)


def part(ports: Ports, server: str) -> Part:
    """Return the part that measures sweeps, with its own database."""
    url = new_database(server, "sweeping")
    storage = pharox.connect(url)
    storage.upgrade_schema()
    _fill(storage, ports["good"])
    storage.close()
    order = deque(("alone", "memory", "postgres"))

    def measure() -> Figures:
        order.rotate()
        return {what: in_new_process(_rate, what, url, ports["good"]) for what in order}

    title = f"3. A sweep of {PROXIES:,} proxies, {AT_ONCE} at once, recorded"
    return Part("recording", {title: LINES}, measure)


def _rate(what: str, url: str, port: int) -> float:
    storage: IStorage
    if what == "postgres":
        storage = pharox.connect(url)
    else:
        storage = InMemoryStorage()
        _fill(storage, port)
    return asyncio.run((_stream_rate if what == "alone" else _sweep_rate)(storage))


def _fill(storage: IStorage, port: int) -> None:
    pool = ProxyPool(name="swept")
    storage.save_pool(pool)
    storage.add_proxies_bulk([proxy(number, port, pool.id) for number in range(PROXIES)])


async def _stream_rate(storage: IStorage) -> float:
    began = time.perf_counter()
    due = storage.load_proxies_for_healthchecks()
    results = HealthChecker().stream_health_checks(due, options(), concurrency=AT_ONCE)
    count = 0
    async for _ in results:
        count += 1
    return count / (time.perf_counter() - began)


async def _sweep_rate(storage: IStorage) -> float:
    began = time.perf_counter()
    outcomes = HealthCheckOrchestrator(storage).sweep(options=options(), concurrency=AT_ONCE)
    applied = 0
    async for outcome in outcomes:
        applied += outcome.applied
    return applied / (time.perf_counter() - began)
