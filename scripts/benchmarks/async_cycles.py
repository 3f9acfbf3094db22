"""Acquire and release in one event loop as fast as it goes, with the pharox of its environment.

    async_cycles.py URL POOL TASKS CONNECTIONS SECONDS

The manager of 0.11.0 blocks, so its cycle uses the asyncpg adapter: find, create, release. Ours
uses the manager with callbacks, as cycles.py does. Prints one JSON object: cycles, misses and
errors.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import pharox

IS_OURS = hasattr(pharox, "AsyncProxyManager")
Cycle = Callable[[str, str], Awaitable[str]]


def our_cycle(engine: Any) -> Cycle:
    from pharox.storage.postgres import AsyncPostgresStorage

    manager = pharox.AsyncProxyManager(AsyncPostgresStorage(engine))
    told: list[int] = []
    manager.register_acquire_callback(lambda payload: told.append(payload.duration_ms))
    manager.register_release_callback(lambda payload: told.append(0))

    async def cycle(pool: str, consumer: str) -> str:
        lease = await manager.acquire_proxy(pool, consumer)
        if lease is None:
            return "misses"
        await manager.release_proxy(lease)
        return "cycles"

    return cycle


def their_cycle(engine: Any) -> Cycle:
    from pharox.storage.postgres import AsyncPostgresStorage

    storage: Any = AsyncPostgresStorage(engine)

    async def cycle(pool: str, consumer: str) -> str:
        proxy = await storage.find_available_proxy(pool)
        if proxy is None:
            return "misses"
        lease = await storage.create_lease(proxy, consumer, 300)
        await storage.release_lease(lease)
        return "cycles"

    return cycle


async def main() -> None:
    url, pool, tasks, connections, seconds = sys.argv[1:]
    driver = "psycopg" if IS_OURS else "asyncpg"
    engine = create_async_engine(
        make_url(url).set(drivername=f"postgresql+{driver}"),
        pool_size=int(connections),
        max_overflow=0,
        pool_timeout=300,
        **({"isolation_level": "AUTOCOMMIT"} if IS_OURS else {}),
    )
    cycle = our_cycle(engine) if IS_OURS else their_cycle(engine)
    counts: Counter[str] = Counter(cycles=0, misses=0, errors=0)

    async def work(consumer: str, until: float) -> None:
        while time.monotonic() < until:
            try:
                outcome = await cycle(pool, consumer)
            except Exception:
                outcome = "errors"
            counts[outcome] += 1

    async def all_of_them(duration: float) -> None:
        until = time.monotonic() + duration
        async with asyncio.TaskGroup() as group:
            for number in range(int(tasks)):
                group.create_task(work(f"worker-{number}", until))

    await all_of_them(1)  # connections are opened, plans prepared, caches filled
    counts.clear()
    began_cpu = time.process_time()
    await all_of_them(float(seconds))
    cpu_s = time.process_time() - began_cpu
    await engine.dispose()
    told = {name: counts[name] for name in ("cycles", "misses", "errors")}
    print(json.dumps({**told, "cpu_s": cpu_s}))


asyncio.run(main())
