"""Acquire and release as fast as it goes; runs with whatever pharox its environment has.

    cycles.py URL POOL PROCESSES SECONDS

Each process has its own connections and a listening callback, as a worker that
reports metrics would. Prints one JSON object: cycles, misses and errors.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from typing import Any

import pharox


def open_storage(url: str) -> Any:
    if hasattr(pharox, "connect"):
        return pharox.connect(url)
    from sqlalchemy import create_engine

    from pharox.storage.postgres import PostgresStorage

    return PostgresStorage(create_engine(url))  # type: ignore[no-untyped-call,unused-ignore]


def lease_and_release(url: str, pool: str, start: float, seconds: float) -> dict[str, int]:
    manager = pharox.ProxyManager(open_storage(url))
    told: list[int] = []
    manager.register_acquire_callback(lambda payload: told.append(payload.duration_ms))
    manager.register_release_callback(lambda payload: told.append(0))
    counts = {"cycles": 0, "misses": 0, "errors": 0}
    for _ in range(20):  # plans are prepared, caches filled
        step(manager, pool)
    time.sleep(max(0.0, start - time.time()))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        counts[step(manager, pool)] += 1
    return counts


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
    start = time.time() + 3
    work = [(url, pool, start, float(seconds))] * int(processes)
    with multiprocessing.get_context("spawn").Pool(int(processes)) as workers:
        counts = workers.starmap(lease_and_release, work)
    print(json.dumps({name: sum(count[name] for count in counts) for name in counts[0]}))


if __name__ == "__main__":
    main()
