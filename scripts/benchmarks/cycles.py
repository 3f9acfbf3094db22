"""Acquire and release as fast as possible, with the pharox of this environment.

    cycles.py URL POOL PROCESSES SECONDS

Each process has its own connections and a listening callback, as a worker that
reports metrics would; all begin at once. Prints one JSON object: cycles, misses,
errors, and the seconds of processor time that all processes took together.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from typing import Any

import pharox

_PATIENCE_S = 120


def open_storage(url: str) -> Any:
    if hasattr(pharox, "connect"):
        return pharox.connect(url)
    from sqlalchemy import create_engine

    from pharox.storage.postgres import PostgresStorage

    return PostgresStorage(create_engine(url))  # type: ignore[no-untyped-call,unused-ignore]


def lease_and_release(url: str, pool: str, seconds: float, ready: Any, told: Any) -> None:
    manager = pharox.ProxyManager(open_storage(url))
    durations: list[int] = []
    manager.register_acquire_callback(lambda payload: durations.append(payload.duration_ms))
    manager.register_release_callback(lambda payload: durations.append(0))
    counts: dict[str, float] = {"cycles": 0, "misses": 0, "errors": 0}
    for _ in range(20):  # plans are prepared, caches filled
        step(manager, pool)
    ready.wait(_PATIENCE_S)
    began_cpu, end = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        counts[step(manager, pool)] += 1
    told.put({**counts, "cpu_s": time.process_time() - began_cpu})


def step(manager: Any, pool: str) -> str:
    try:
        lease = manager.acquire_proxy(pool)
        if lease is None:
            return "misses"
        manager.release_proxy(lease)
    except Exception:
        return "errors"
    return "cycles"


def main() -> None:
    url, pool, processes, seconds = sys.argv[1:]
    context = multiprocessing.get_context("spawn")
    ready, told = context.Barrier(int(processes)), context.Queue()
    arguments = (url, pool, float(seconds), ready, told)
    workers = [
        context.Process(target=lease_and_release, args=arguments, daemon=True)
        for _ in range(int(processes))
    ]
    for worker in workers:
        worker.start()
    counts = [told.get(timeout=_PATIENCE_S + float(seconds)) for _ in workers]
    for worker in workers:
        worker.join()
    print(json.dumps({name: sum(count[name] for count in counts) for name in counts[0]}))


if __name__ == "__main__":
    main()
