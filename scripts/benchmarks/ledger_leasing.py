"""Processes that lease and release as fast as possible while something else is measured."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from typing import Any, NamedTuple

from pharox import ProxyManager
from scripts.benchmarks.cycles import open_storage, step

_PATIENCE_S = 60


class Tally(NamedTuple):
    """The joint result of the processes; ``longest_s`` is the time of the longest cycle."""

    seconds: float
    cycles: int
    misses: int
    errors: int
    longest_s: float


class Leasing:
    """Leases in other processes for a block; afterwards ``tally`` has the result."""

    tally: Tally

    def __init__(self, url: str, pool: str, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ready = context.Barrier(processes + 1)
        self._stop = context.Event()
        self._told: multiprocessing.Queue[tuple[Counter[str], float]] = context.Queue()
        arguments = (url, pool, self._ready, self._stop, self._told)
        self._workers = [
            context.Process(target=_lease, args=arguments, daemon=True) for _ in range(processes)
        ]

    def __enter__(self) -> Leasing:
        for worker in self._workers:
            worker.start()
        self._ready.wait(_PATIENCE_S)
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        seconds = time.monotonic() - self._began
        told = [self._told.get(timeout=_PATIENCE_S) for _ in self._workers]
        for worker in self._workers:
            worker.join()
        total = sum((counts for counts, _ in told), Counter[str]())
        longest_s = max(longest for _, longest in told)
        self.tally = Tally(seconds, total["cycles"], total["misses"], total["errors"], longest_s)


def _lease(url: str, pool: str, ready: Any, stop: Any, told: Any) -> None:
    manager = ProxyManager(open_storage(url))
    for _ in range(20):  # plans are prepared, caches filled
        step(manager, pool)
    counts: Counter[str] = Counter()
    longest_s = 0.0
    ready.wait(_PATIENCE_S)
    while not stop.is_set():
        began = time.perf_counter()
        counts[step(manager, pool)] += 1
        longest_s = max(longest_s, time.perf_counter() - began)
    told.put((counts, longest_s))
