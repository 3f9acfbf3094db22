"""Many tasks, few proxies, fewer connections."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from pharox import AsyncProxyManager
from pharox.events import LeaseAcquired, LeaseReleased
from pharox.storage.postgres import AsyncPostgresStorage
from pharox.testing import Awaited
from tests.conftest import SECRET_KEY, fill, ledger, open_async_engine

TASKS, PROXIES, CONNECTIONS = 1_000, 20, 10


@pytest.mark.stress
def test_a_thousand_tasks_all_get_their_turn(url: str) -> None:
    """1,000 tasks on 20 exclusive proxies and a pool of 10 connections: each gets a proxy."""
    engine = open_async_engine(url, pool_size=CONNECTIONS, pool_timeout=300)
    storage = AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY])
    manager = AsyncProxyManager(storage)
    held: Counter[Any] = Counter()

    async def work(name: str) -> None:
        lease = await manager.acquire_proxy_with_retry(
            "pool", name, max_attempts=10_000, backoff_seconds=0.05, max_backoff_seconds=1.0
        )
        assert lease is not None
        held[lease.proxy_id] += 1
        assert held[lease.proxy_id] == 1
        await asyncio.sleep(0)
        held[lease.proxy_id] -= 1
        await manager.release_proxy(lease)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(TASKS):
                group.create_task(work(f"worker-{number}"))

    with ledger(url) as blocking, Awaited(storage) as loop:
        fill(blocking, PROXIES)
        loop.run(main())
        events = list(blocking.events())
        assert blocking.verify() == []
    acquired = [event for event in events if isinstance(event, LeaseAcquired)]
    released = [event for event in events if isinstance(event, LeaseReleased)]
    assert {event.consumer for event in acquired} == {f"worker-{n}" for n in range(TASKS)}
    assert len(acquired) == len(released) == TASKS
