"""Tasks wait in turn as threads do; one that is cancelled holds and keeps nothing."""

from __future__ import annotations

import asyncio

from pharox import AsyncProxyManager, Lease
from pharox.events import AcquireMissed
from tests.conftest import fill

from .conftest import Kept

LONG = 60.0


async def _waiting(manager: AsyncProxyManager) -> int:
    return sum(stats.waiting for stats in await manager.storage.queue_stats())


async def _begin(manager: AsyncProxyManager, consumer: str = "w") -> asyncio.Task[Lease | None]:
    """Have a task wait, after it has its place."""
    before = await _waiting(manager)
    task = asyncio.create_task(manager.acquire_proxy("pool", consumer, wait_seconds=LONG))
    async with asyncio.timeout(10):
        while await _waiting(manager) == before:
            await asyncio.sleep(0.005)
    return task


def test_tasks_are_served_in_turn(kept: Kept) -> None:
    """Each release serves the task that waits longest."""
    fill(kept.blocking, 1)

    async def main() -> None:
        manager = AsyncProxyManager(kept.storage)
        held = await manager.acquire_proxy("pool", "holder")
        tasks = [await _begin(manager) for _ in range(3)]
        for number, task in enumerate(tasks):
            assert held is not None
            await manager.release_proxy(held)
            held = await asyncio.wait_for(task, 10)
            assert not any(each.done() for each in tasks[number + 1 :])
        assert held is not None
        await manager.release_proxy(held)

    kept.run(main())
    kept.assert_nothing_is_left()


def test_a_cancelled_task_gives_its_place_to_the_next(kept: Kept) -> None:
    """Nothing is recorded of it, and what comes free goes on."""
    fill(kept.blocking, 1)

    async def main() -> None:
        manager = AsyncProxyManager(kept.storage)
        held = await manager.acquire_proxy("pool", "holder")
        first, second = await _begin(manager), await _begin(manager)
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        assert await _waiting(manager) == 1
        assert held is not None
        await manager.release_proxy(held)
        lease = await asyncio.wait_for(second, 10)
        assert lease is not None
        await manager.release_proxy(lease)

    kept.run(main())
    kept.assert_nothing_is_left()
    assert not [each for each in kept.blocking.events() if isinstance(each, AcquireMissed)]


def test_a_timeout_of_the_task_ends_its_wait(kept: Kept) -> None:
    """As any other cancellation does."""
    fill(kept.blocking, 1)

    async def main() -> None:
        manager = AsyncProxyManager(kept.storage)
        async with manager.with_lease("pool"):
            try:
                async with asyncio.timeout(0.3):
                    await manager.acquire_proxy("pool", "w", wait_seconds=LONG)
            except TimeoutError:
                assert await _waiting(manager) == 0
            else:
                raise AssertionError("it was granted something")

    kept.run(main())
    kept.assert_nothing_is_left()


def test_a_hundred_tasks_wait_on_four_connections(kept: Kept) -> None:
    """A task that waits holds no connection."""
    fill(kept.blocking, 2)

    async def main() -> None:
        manager = AsyncProxyManager(kept.storage)

        async def work(number: int) -> None:
            lease = await manager.acquire_proxy("pool", f"w{number % 7}", wait_seconds=LONG)
            assert lease is not None
            await manager.release_proxy(lease)

        await asyncio.gather(*(work(number) for number in range(100)))

    kept.run(main())
    kept.assert_nothing_is_left()
