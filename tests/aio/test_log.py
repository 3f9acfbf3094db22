"""The log and the fleet's callbacks, awaited."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    Delivery,
    InvalidInputError,
    ProxyManager,
    Subscription,
)
from tests.aio.conftest import Kept
from tests.conftest import fill, types_of


def test_events_are_those_of_the_blocking_ledger(kept: Kept) -> None:
    """In their sealed order, all of them or from a seq on, however many pages they fill."""
    fill(kept.blocking, 1_500)
    manager = AsyncProxyManager(kept.storage)

    async def events(**choice: Any) -> list[Any]:
        async with manager.with_lease("pool"):
            return [event async for event in kept.storage.events(**choice)]  # type: ignore[attr-defined]

    everything = kept.run(events())
    assert everything == list(kept.blocking.events())[: len(everything)]
    assert len(everything) > 1_500
    later = kept.run(events(after=len(everything)))
    assert [event.type for event in later] == ["LeaseReleased", "LeaseAcquired"]


def test_following_yields_what_is_committed(in_postgres: Kept) -> None:
    """New events come as they are committed, or all from the beginning."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> list[str]:
        found = []
        followed = kept.storage.follow(poll_s=0.01)  # type: ignore[attr-defined]
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(anext(followed))
            while not reading.done():
                async with manager.with_lease("pool"):
                    await asyncio.sleep(0.01)
            found.append(reading.result().type)
        await followed.aclose()
        from_the_start = kept.storage.follow(after=0)  # type: ignore[attr-defined]
        found.append((await anext(from_the_start)).type)
        await from_the_start.aclose()
        return found

    new, first = kept.run(main())
    assert new in ("ConsumerRegistered", "LeaseAcquired", "LeaseReleased")
    assert first == types_of(kept.blocking)[0]


def test_the_whole_fleet_is_told(in_postgres: Kept) -> None:
    """``await manager.subscribe(...)`` tells of what another manager does, in this loop."""
    kept = in_postgres
    fill(kept.blocking)
    told: list[str] = []
    stop = asyncio.Event()

    async def acquired(payload: Any) -> None:
        await asyncio.sleep(0)
        told.append(payload.consumer_name)

    def released(payload: Any) -> None:
        told.append("released")
        stop.set()

    async def main() -> None:
        manager = AsyncProxyManager(kept.storage)
        fleet = await manager.subscribe(
            "board", on_acquire=acquired, on_release=released, start="beginning"
        )
        async with asyncio.timeout(20):
            await fleet.run_async(stop)

    with ProxyManager(kept.blocking).with_lease("pool", "somebody else"):
        pass
    kept.run(main())
    assert told == ["somebody else", "released"]


def test_a_subscription_reads_an_async_storage(in_postgres: Kept) -> None:
    """``Subscription.run_async`` takes the storage that the tasks use."""
    kept = in_postgres
    fill(kept.blocking, 3)
    seen: list[int] = []
    stop = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.event.seq)
        if len(seen) == 4:
            stop.set()

    async def main() -> None:
        async with asyncio.timeout(20):
            await Subscription("audit", handle).run_async(kept.storage, stop)

    kept.run(main())
    assert seen[:4] == [1, 2, 3, 4]


def test_only_postgres_keeps_subscriptions(in_memory: Kept) -> None:
    """In memory there is nothing to go on from."""
    manager = AsyncProxyManager(in_memory.storage)
    with pytest.raises(InvalidInputError, match="PostgreSQL"):
        in_memory.run(manager.subscribe(on_acquire=print))
    with pytest.raises(InvalidInputError, match="PostgreSQL"):
        in_memory.run(Subscription("x", print).run_async(in_memory.storage))


def test_what_0_11_0_offered_without_await_needs_none(in_memory: Kept) -> None:
    """A test fills an AsyncInMemoryStorage as it did."""
    storage = in_memory.storage
    assert isinstance(storage, AsyncInMemoryStorage)
    pool, (proxy,) = fill(storage.memory)
    storage.add_pool(pool)
    storage.add_proxy(proxy)
    assert storage.get_proxy_by_id(proxy.id) == proxy
    assert in_memory.run(storage.state_at(2))["pools"]
    assert in_memory.run(storage.verify()) == []
