"""Who waits for a proxy, asked for in a task."""

from __future__ import annotations

import asyncio

from pharox import AsyncProxyManager, QueueStats
from tests.aio.conftest import Kept
from tests.conftest import fill


def test_it_says_who_waits(kept: Kept) -> None:
    """As long as a task waits it is counted, and no longer."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> tuple[QueueStats, list[QueueStats]]:
        held = await manager.acquire_proxy("pool", "early")
        assert held is not None
        waiting = asyncio.create_task(manager.acquire_proxy("pool", "late", wait_seconds=60))
        while not (found := await kept.storage.queue_stats("pool")):
            await asyncio.sleep(0.01)
        await manager.release_proxy(held)
        assert await waiting is not None
        return found[0], await kept.storage.queue_stats()

    found, after = kept.run(main())
    assert (found.pool_name, found.waiting, found.consumers) == ("pool", 1, {"late": 1})
    assert after == []
