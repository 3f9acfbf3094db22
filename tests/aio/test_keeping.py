"""A task keeps its lease, and is cancelled when it is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any
from weakref import ref

import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    ExpireEventPayload,
    Lease,
    LeaseLostError,
    LeaseStatus,
    LostEventPayload,
    attributed,
)
from pharox.manager.keeper import AsyncKeeper, keeper_of
from tests.aio.conftest import Kept as Storages
from tests.conftest import fill, types_of
from tests.leasing.test_keeping import end, renewals
from tests.leasing.test_leased_proxy import LOGIN, filled


def test_a_task_keeps_its_lease(kept: Storages) -> None:
    """The same in an event loop, which has no thread for it."""
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)
    before = threading.active_count()

    async def work() -> Lease:
        async with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            assert lease is not None
            for _ in range(30):
                await asyncio.sleep(0.1)
                assert await manager.acquire_proxy("pool", "greedy") is None
            assert not lease.is_lost
            return lease

    lease = kept.run(work())
    assert lease.status is LeaseStatus.RELEASED
    assert renewals(kept.blocking) >= 5
    assert threading.active_count() <= before + 1
    kept.assert_nothing_is_left()


def test_what_others_lost_is_taken_back_when_it_is_due(kept: Storages) -> None:
    """The loop's keeper looks as well, and awaits callbacks."""
    fill(kept.blocking, 2)
    manager, told = AsyncProxyManager(kept.storage), list[ExpireEventPayload]()

    async def tell(payload: ExpireEventPayload) -> None:
        await asyncio.sleep(0)
        told.append(payload)

    async def work() -> None:
        manager.register_expire_callback(tell)
        async with manager.with_lease("pool", "w", 60, keep_alive=True):
            dead = await AsyncProxyManager(kept.storage).acquire_proxy("pool", "dead", 1)
            while not told:
                await asyncio.sleep(0.05)
            assert dead is not None
            assert [payload.lease.id for payload in told] == [dead.id]

    kept.run(asyncio.wait_for(work(), 30))
    kept.assert_nothing_is_left()


def test_a_loops_keeper_works_for_nobodys_job(kept: Storages) -> None:
    """What it records is not attributed to the job whose lease it kept first."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)

    async def work() -> None:
        with attributed(actor="nightly-crawl", correlation_id="run-8812"):
            lease = await manager.acquire_proxy("pool", "w", 1, keep_alive=True)
        await manager.acquire_proxy("pool", "dead", 1)
        while not {"LeaseRenewed", "LeaseExpired"} <= {*types_of(kept.blocking)}:
            await asyncio.sleep(0.05)
        assert lease is not None
        await manager.release_proxy(lease)

    kept.run(asyncio.wait_for(work(), 30))
    found = [e for e in kept.blocking.events() if e.type in ("LeaseRenewed", "LeaseExpired")]
    assert {each.correlation_id for each in found} == {None}
    assert "nightly-crawl" not in {each.actor for each in found}
    kept.assert_nothing_is_left()


def test_no_cancellation_outlives_a_block(kept: Storages) -> None:
    """A task that revokes its own lease, and ends its block, can wait afterwards."""
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)

    async def block(error: Exception | None) -> None:
        async with manager.with_lease("pool", "w", 60, keep_alive=True) as lease:
            assert lease is not None
            await manager.revoke_lease(lease.id, "it hung")
            if error is not None:
                raise error

    async def work() -> None:
        for error, raised in ((None, LeaseLostError), (ValueError(), ValueError)):
            with pytest.raises(raised):
                await block(error)
            await asyncio.sleep(0.01)

    kept.run(work())
    kept.assert_nothing_is_left()


def test_a_cancelled_renewal_is_repeated(in_memory: Storages) -> None:
    """Somebody cancels all other tasks of the loop, the keeper's as well."""
    fill(in_memory.blocking, 1)
    storage, original = in_memory.storage, in_memory.storage.renew_leases
    manager, asked = AsyncProxyManager(storage), asyncio.Event()

    async def hanging(*_: Any, **__: Any) -> Any:
        asked.set()
        await asyncio.sleep(60)

    async def work() -> None:
        async with manager.with_lease("pool", "w", 3, keep_alive=True) as lease:
            storage.renew_leases = hanging  # type: ignore[method-assign]
            await asked.wait()
            keeper = keeper_of(storage, AsyncKeeper)
            assert isinstance(keeper, AsyncKeeper)
            for task in keeper._tasks:
                task.cancel()
            storage.renew_leases = original  # type: ignore[method-assign]
            while not renewals(in_memory.blocking):
                await asyncio.sleep(0.05)
            assert lease is not None
            assert not lease.is_lost

    in_memory.run(asyncio.wait_for(work(), 10))


def test_what_an_ended_loop_kept_is_forgotten() -> None:
    """Else its storage lived for ever: a lease that is kept refers to its manager."""

    def job() -> tuple[ref[AsyncInMemoryStorage], Lease]:
        storage = AsyncInMemoryStorage()
        fill(storage.memory, 1)

        async def work() -> Lease:
            manager = AsyncProxyManager(storage)
            lease = await manager.acquire_proxy("pool", "w", 60, keep_alive=True)
            assert lease is not None
            return lease

        return ref(storage), asyncio.run(work())

    first, lease = job()
    job()
    gc.collect()
    assert first() is None
    assert not lease.is_lost


@pytest.mark.parametrize("on_lost", ["cancel", "tell"])
def test_a_task_whose_lease_is_lost_is_cancelled(kept: Storages, on_lost: Any) -> None:
    """It is cancelled where it waits, and the block raises; other tasks and it go on."""
    fill(kept.blocking, 1)
    manager, told = AsyncProxyManager(kept.storage), list[LostEventPayload]()

    async def tell(payload: LostEventPayload) -> None:
        await asyncio.sleep(0)
        told.append(payload)

    manager.register_lost_callback(tell)

    async def hold() -> None:
        async with manager.with_lease("pool", "w", 1, keep_alive=True, on_lost=on_lost) as lease:
            assert lease is not None
            end(kept.blocking, lease)
            await asyncio.sleep(3)
            assert lease.is_lost

    async def work() -> None:
        if on_lost == "tell":
            await hold()
            return
        begun, task = time.monotonic(), asyncio.current_task()
        with pytest.raises(LeaseLostError, match="was released at") as lost:
            await hold()
        assert isinstance(lost.value.__cause__, asyncio.CancelledError)
        assert time.monotonic() - begun < 2.5
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0.01)

    kept.run(work())
    assert len(told) == 1
    kept.assert_nothing_is_left()


def test_a_cancellation_of_somebody_else_stays_one(kept: Storages) -> None:
    """asyncio.timeout around the block ends it as ever."""
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)

    async def work() -> None:
        async with (
            asyncio.timeout(0.2),
            manager.with_lease("pool", "w", 1, keep_alive=True),
        ):
            await asyncio.sleep(3)

    with pytest.raises(TimeoutError):
        kept.run(work())
    kept.assert_nothing_is_left()


def test_a_block_that_never_waits_raises_at_its_end(in_memory: Storages) -> None:
    """The loop was blocked for longer than the lease: nobody could cancel the task."""
    fill(in_memory.blocking, 1)
    manager = AsyncProxyManager(in_memory.storage)

    async def work() -> None:
        async with manager.with_lease("pool", "w", 1, keep_alive=True):
            time.sleep(1.1)

    with pytest.raises(LeaseLostError, match="could not be renewed in time"):
        in_memory.run(work())


def test_another_event_loop_keeps_leases_as_well() -> None:
    """A storage in memory may be used in one loop after the other."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory, 1)

    async def work() -> None:
        manager = AsyncProxyManager(storage)
        async with manager.with_lease("pool", "w", 1, keep_alive=True) as lease:
            await asyncio.sleep(1.5)
            assert lease is not None
            assert not lease.is_lost

    for _ in range(2):
        asyncio.run(work())
    assert renewals(storage.memory) >= 4


def test_a_tasks_lease_has_its_proxy(kept: Storages) -> None:
    """The same from coroutines."""
    filled(kept.blocking, 3, **LOGIN)
    manager = AsyncProxyManager(kept.storage)

    async def lease() -> list[Lease]:
        one = await manager.acquire_proxy("pool")
        assert one is not None
        return [one, *await manager.acquire_proxies("pool", 2)]

    for each in kept.run(lease()):
        assert each.proxy.url == kept.blocking.get_proxy(str(each.proxy_id)).url
