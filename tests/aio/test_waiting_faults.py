"""Tasks that wait are cancelled, or their event loop ends: nothing is held or left behind."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import QueuePool

from pharox import AsyncProxyManager, Lease, ProxyFilters, ProxyManager
from pharox.storage.postgres import AsyncPostgresStorage
from tests.aio.conftest import Kept
from tests.conftest import SECRET_KEY, fill, ledger, open_async_engine, types_of
from tests.leasing.test_waiting_faults import active, assert_nothing_is_left, tickets

WAIT_S = 20


async def _cancelled_after(
    manager: AsyncProxyManager,
    waiting: Coroutine[Any, Any, Any],
    lease: Lease,
    seconds: float,
    *,
    turns: int,
    frees: bool,
) -> None:
    """Cancel somebody who waits after so long, while what it waits for becomes free or does not."""
    task = asyncio.create_task(waiting)
    if frees:
        await asyncio.sleep(seconds / 2)
        await manager.release_proxy(lease)
    await asyncio.sleep(seconds / 2)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    try:
        found = await task
    except asyncio.CancelledError:
        pass
    else:
        for each in found if isinstance(found, list) else [found]:
            await manager.release_proxy(each)
    if not frees:
        await manager.release_proxy(lease)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("frees", [True, False])
@pytest.mark.parametrize("filters", [None, ProxyFilters(predicate=lambda _: True)])
def test_a_cancelled_wait_leaves_nothing(
    kept: Kept, frees: bool, count: int, filters: ProxyFilters | None
) -> None:
    """Wherever it is cancelled: before its ticket, with it, when granted, at its end."""
    fill(kept.blocking, 1)
    options: dict[str, Any] = {"filters": filters, "wait_seconds": WAIT_S}
    for number in range(40):
        lease = kept.run(AsyncProxyManager(kept.storage).acquire_proxy("pool", "holder", 300))
        seconds, turns = (number // 8) * 0.004, number % 8
        manager = AsyncProxyManager(kept.storage)
        waiting = (
            manager.acquire_proxies("pool", count, "w", 300, **options)
            if count
            else manager.acquire_proxy("pool", "w", 300, **options)
        )
        kept.run(_cancelled_after(manager, waiting, lease, seconds, turns=turns, frees=frees))
        assert active(kept.blocking) == []
        assert tickets(kept.blocking) == 0
    assert_nothing_is_left(kept.blocking)


def test_a_wait_that_is_cancelled_at_its_end_leaves_nothing(kept: Kept) -> None:
    """Its deadline comes, and with it the cancellation; also something may become free then."""
    fill(kept.blocking, 1)

    async def one(number: int) -> None:
        manager = AsyncProxyManager(kept.storage)
        lease = await manager.acquire_proxy("pool", "holder", 300)
        assert lease is not None
        waiting = manager.acquire_proxy("pool", "w", 300, wait_seconds=0.05)
        task = asyncio.ensure_future(waiting)
        await asyncio.sleep(0.045 + number * 0.0005)
        if number % 2:
            await manager.release_proxy(lease)
        task.cancel()
        found = None
        with suppress(asyncio.CancelledError):
            found = await task
        for each in (found, None if number % 2 else lease):
            if each is not None:
                await manager.release_proxy(each)

    for number in range(40):
        kept.run(one(number))
        assert active(kept.blocking) == []
        assert tickets(kept.blocking) == 0
    assert_nothing_is_left(kept.blocking)


def test_a_loop_that_ends_leaves_no_caller(url: str) -> None:
    """asyncio.run ends while tasks wait: no lease, no ticket, no open connection is left."""
    with ledger(url) as blocking, warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(blocking, 1)
        lease = ProxyManager(blocking).acquire_proxy("pool", "holder", 300)
        assert lease is not None

        async def main() -> None:
            storage = AsyncPostgresStorage(open_async_engine(url), secret_keys=[SECRET_KEY])
            manager = AsyncProxyManager(storage)
            tasks = [
                asyncio.create_task(manager.acquire_proxy("pool", "w", wait_seconds=WAIT_S))
                for _ in range(5)
            ]
            while await asyncio.to_thread(tickets, blocking) < 5:
                await asyncio.sleep(0.01)
            try:
                await asyncio.sleep(0.1)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await storage.close()

        asyncio.run(main())
        gc.collect()
        assert tickets(blocking) == 0
        ProxyManager(blocking).release_proxy(lease)
        assert_nothing_is_left(blocking)
        assert "AcquireMissed" not in types_of(blocking)


def test_a_loop_that_is_left_leaves_no_caller(url: str) -> None:
    """The same if nobody cancels the tasks or closes the storage first."""
    with ledger(url) as blocking:
        fill(blocking, 1)
        lease = ProxyManager(blocking).acquire_proxy("pool", "holder", 300)
        assert lease is not None

        async def main() -> None:
            storage = AsyncPostgresStorage(open_async_engine(url), secret_keys=[SECRET_KEY])
            manager = AsyncProxyManager(storage)
            tasks = [
                asyncio.create_task(manager.acquire_proxy("pool", "w", wait_seconds=WAIT_S))
                for _ in range(5)
            ]
            while await asyncio.to_thread(tickets, blocking) < 5:
                await asyncio.sleep(0.01)
            assert not any(task.done() for task in tasks)

        asyncio.run(main())
        with warnings.catch_warnings():
            # Nobody closed its engine.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        assert tickets(blocking) == 0
        ProxyManager(blocking).release_proxy(lease)
        assert_nothing_is_left(blocking)


def test_a_closed_storage_keeps_no_task_waiting(url: str) -> None:
    """Whoever waits while it is closed has an answer in time, and leaves no ticket."""
    with ledger(url) as blocking:
        fill(blocking, 1)
        lease = ProxyManager(blocking).acquire_proxy("pool", "holder", 300)
        assert lease is not None

        async def main() -> None:
            storage = AsyncPostgresStorage(open_async_engine(url), secret_keys=[SECRET_KEY])
            task = asyncio.create_task(
                AsyncProxyManager(storage).acquire_proxy("pool", "w", wait_seconds=3)
            )
            pool = storage.engine.sync_engine.pool
            assert isinstance(pool, QueuePool)
            # A connection that is lent would come back to a pool that is closed.
            while await asyncio.to_thread(tickets, blocking) < 1 or pool.checkedout():
                await asyncio.sleep(0.01)
            await storage.close()
            assert await asyncio.wait_for(task, 8) is None
            await storage.close()

        asyncio.run(main())
        ProxyManager(blocking).release_proxy(lease)
        assert_nothing_is_left(blocking)
