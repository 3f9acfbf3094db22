"""The helpers of 0.11.0: a manager that blocks, awaited in threads."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

import pharox
from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    InMemoryStorage,
    InvalidInputError,
    LeaseStatus,
    ProxyManager,
    acquire_proxy_async,
    acquire_proxy_with_retry_async,
    attributed,
    release_proxy_async,
    with_lease_async,
    with_retrying_lease_async,
)
from pharox.storage.postgres import deadline
from tests.conftest import fill, ledger, types_of


@pytest.fixture
def manager() -> ProxyManager:
    """A manager with one exclusive proxy in its pool."""
    storage = InMemoryStorage()
    fill(storage)
    return ProxyManager(storage)


def active(manager: ProxyManager) -> int:
    leases = manager.storage.list_leases()
    return len([lease for lease in leases if lease.status is LeaseStatus.ACTIVE])


def test_they_take_what_the_manager_takes() -> None:
    """A manager first, then the parameters and defaults of the method that they stand for."""
    for helper, name in (
        (acquire_proxy_async, "acquire_proxy"),
        (acquire_proxy_with_retry_async, "acquire_proxy_with_retry"),
        (release_proxy_async, "release_proxy"),
        (with_lease_async, "with_lease"),
        (with_retrying_lease_async, "with_retrying_lease"),
    ):
        _, *ours = inspect.signature(helper).parameters.values()
        _, *theirs = inspect.signature(getattr(ProxyManager, name)).parameters.values()
        assert [(p.name, p.default) for p in ours] == [(p.name, p.default) for p in theirs]


def test_they_lease_and_release_beside_the_loop(manager: ProxyManager) -> None:
    """In another thread, with the context of the task."""
    threads: list[str] = []
    manager.register_acquire_callback(lambda _: threads.append(threading.current_thread().name))

    async def main() -> None:
        with attributed(actor="nightly"):
            async with with_lease_async(manager, "pool", "crawler") as lease:
                assert lease is not None
                assert lease.consumer_name == "crawler"
                assert await acquire_proxy_async(manager, "pool") is None
                async with with_retrying_lease_async(
                    manager, "pool", max_attempts=2, backoff_seconds=0
                ) as none:
                    assert none is None
        lease = await acquire_proxy_async(manager, "pool")
        assert lease is not None
        await release_proxy_async(manager, lease)

    asyncio.run(main())
    assert active(manager) == 0
    assert threading.current_thread().name not in threads
    acquired = [e for e in manager.storage.events() if e.type == "LeaseAcquired"]  # type: ignore[attr-defined]
    assert acquired[0].actor == "nightly"
    assert acquired[1].actor != "nightly"


def test_retrying_waits_until_something_is_free(manager: ProxyManager) -> None:
    """Its own pauses are those of the manager; a ``sleep_fn`` is called in the thread."""
    held = manager.acquire_proxy("pool")
    assert held is not None
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            manager.release_proxy(held)

    async def main() -> Any:
        return await acquire_proxy_with_retry_async(manager, "pool", sleep_fn=sleep, max_attempts=9)

    assert asyncio.run(main()) is not None
    assert slept == [0.5, 1.0]


def test_a_pause_ends_when_the_task_is_cancelled(manager: ProxyManager) -> None:
    """A task that waits for minutes between two attempts is gone at once."""
    manager.acquire_proxy("pool")

    async def main() -> None:
        async with asyncio.timeout(0.1):
            await acquire_proxy_with_retry_async(manager, "pool", backoff_seconds=600)

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(main())
    assert time.monotonic() - begun < 60
    assert types_of(manager.storage).count("AcquireMissed") == 1  # type: ignore[arg-type]


def test_a_task_cancelled_before_a_thread_was_free_asks_for_nothing(manager: ProxyManager) -> None:
    """Where all threads are taken, its turn comes and it does nothing."""
    before = types_of(manager.storage)  # type: ignore[arg-type]
    busy = threading.Event()

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        blocker = asyncio.create_task(asyncio.to_thread(busy.wait))
        await asyncio.sleep(0)
        asking = asyncio.create_task(acquire_proxy_async(manager, "pool"))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.sleep(0.01)
        busy.set()
        await blocker
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(main())
    assert types_of(manager.storage) == before  # type: ignore[arg-type]


def test_a_failing_callback_does_not_replace_the_blocks_exception(manager: ProxyManager) -> None:
    """What the block raised reaches the caller."""

    def fail(payload: Any) -> None:
        raise RuntimeError("listener")

    async def main() -> None:
        async with with_lease_async(manager, "pool"):
            raise ZeroDivisionError

    manager.register_release_callback(fail)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert active(manager) == 0


def test_a_lease_granted_to_a_cancelled_task_is_given_back_with_the_reason(
    manager: ProxyManager,
) -> None:
    """The thread cannot be stopped; what it was granted is not kept."""
    asked = threading.Event()

    def slow(payload: Any) -> None:
        asked.set()
        time.sleep(0.1)

    manager.register_acquire_callback(slow)

    async def main() -> None:
        asking = asyncio.create_task(pharox.acquire_proxy_async(manager, "pool"))
        await asyncio.to_thread(asked.wait)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(main())
    assert active(manager) == 0
    *_, released = manager.storage.events()  # type: ignore[attr-defined]
    assert released.reason == "cancelled"


def test_those_who_wait_do_not_keep_others_from_releasing() -> None:
    """More tasks than threads, and fewer proxies: pauses take no thread, so all have their turn."""
    storage = InMemoryStorage()
    fill(storage, 2)
    manager = ProxyManager(storage)

    async def work() -> None:
        async with with_retrying_lease_async(
            manager, "pool", max_attempts=10_000, backoff_seconds=0.01, max_backoff_seconds=0.02
        ) as lease:
            assert lease is not None
            await asyncio.sleep(0.01)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(work())

    asyncio.run(main())
    assert active(manager) == 0


def test_a_manager_to_be_awaited_needs_no_helper() -> None:
    """Instead of a coroutine that nobody awaits, and a lease that stays."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory)
    awaited: Any = AsyncProxyManager(storage)

    async def main() -> None:
        lease = await awaited.acquire_proxy("pool")
        with pytest.raises(InvalidInputError, match="without a helper"):
            await release_proxy_async(awaited, lease)
        with pytest.raises(InvalidInputError, match="without a helper"):
            await acquire_proxy_async(awaited, "pool")

    asyncio.run(main())


def test_an_id_is_asked_for_once(manager: ProxyManager) -> None:
    """However often a helper asks under it, there is one lease."""
    lease_id = pharox.new_lease_id()
    (pool,) = (pool.name for pool in manager.storage.list_pools())

    async def ask() -> set[UUID]:
        async with with_lease_async(manager, pool, "c", lease_id=lease_id) as first:
            again = await acquire_proxy_async(manager, pool, "c", lease_id=lease_id)
            retried = await acquire_proxy_with_retry_async(manager, pool, "c", lease_id=lease_id)
            return {lease.id for lease in (first, again, retried) if lease is not None}

    assert asyncio.run(ask()) == {lease_id}


@pytest.mark.parametrize("what", ["acquire", "release"])
def test_a_lock_of_somebody_s_does_not_keep_a_cancelled_task(
    url: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up as native tasks give up; a release is carried out all the same."""
    monkeypatch.setattr(deadline, "PATIENCE_S", 0.3)
    monkeypatch.setattr(deadline, "CANCEL_S", 0.3)
    with ledger(url) as storage:
        fill(storage)
        manager = ProxyManager(storage)
        held = manager.acquire_proxy("pool") if what == "release" else None

        async def main() -> None:
            work: Any = (
                acquire_proxy_async(manager, "pool")
                if held is None
                else release_proxy_async(manager, held)
            )
            task = asyncio.create_task(work)
            await asyncio.sleep(0.3)
            task.cancel()
            # The lock is held until it is over: without an end of its own it never were.
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await task
            assert isinstance(cancelled.value.__cause__, pharox.DatabaseError)

        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute("LOCK TABLE pharox.leases IN ACCESS EXCLUSIVE MODE")
            asyncio.run(main())
        end = time.monotonic() + 30
        while active(manager) and time.monotonic() < end:
            time.sleep(0.05)
        assert active(manager) == 0
        assert storage.verify() == []
