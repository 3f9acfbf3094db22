"""A handle of a pool for tasks: the same defaults and errors, awaited."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pharox import (
    AsyncProxyManager,
    LeaseLostError,
    LeaseStatus,
    MissReason,
    ProxyFilters,
    ProxyStatus,
    ProxyUnavailableError,
)
from pharox.manager.keeper import AsyncKeeper, keeper_of
from tests.aio.conftest import Kept
from tests.conftest import fill, types_of
from tests.leasing.test_keeping import end


def test_a_task_leases_with_the_defaults(kept: Kept) -> None:
    """One, several, and a client; each is kept alive, and released at the end."""
    fill(kept.blocking, 3)
    pool = AsyncProxyManager(kept.storage).pool("pool", consumer="w", duration_seconds=30)

    async def work() -> None:
        keeper = keeper_of(kept.storage, AsyncKeeper)
        async with pool.lease() as lease, pool.leases(3, at_least=1, consumer="v") as leases:
            assert lease.consumer_name == "w"
            assert (lease.expires_at - lease.acquired_at).total_seconds() == 30
            assert [each.consumer_name for each in leases] == ["v", "v"]
            assert len(keeper) == 3
            leases.clear()
        async with pool.client(client_options={"timeout": 3}) as client:
            assert client.lease.consumer_name == "w"
        assert (client.lease.status, len(keeper)) == (LeaseStatus.RELEASED, 0)

    kept.run(work())
    kept.assert_nothing_is_left()


def test_a_miss_says_why(kept: Kept) -> None:
    """The reason is the event's; waiting for a lease helps at capacity, or with too few."""
    fill(kept.blocking, 0, name="empty")
    fill(kept.blocking, 1, name="banned", status=ProxyStatus.BANNED)
    fill(kept.blocking, 2)
    manager, errors = AsyncProxyManager(kept.storage), list[ProxyUnavailableError]()

    async def miss(pool_name: str, **options: Any) -> None:
        with pytest.raises(ProxyUnavailableError) as raised:
            async with manager.pool(pool_name, wait_seconds=None).lease(**options):
                pass
        errors.append(raised.value)

    async def work() -> None:
        await miss("nowhere")
        await miss("empty")
        await miss("banned")
        await miss("pool", filters=ProxyFilters(country="NZ"))
        async with manager.pool("pool", wait_seconds=None).lease():
            with pytest.raises(ProxyUnavailableError) as raised:
                async with manager.pool("pool", wait_seconds=None).leases(2):
                    pass
            errors.append(raised.value)
            async with manager.pool("pool", wait_seconds=None).lease():
                await miss("pool")

    kept.run(work())
    assert [error.reason for error in errors] == [
        MissReason.UNKNOWN_POOL,
        MissReason.EMPTY_POOL,
        MissReason.NONE_HEALTHY,
        MissReason.NO_MATCH,
        MissReason.TOO_FEW,
        MissReason.AT_CAPACITY,
    ]
    assert [error.retry_after_seconds for error in errors[:4]] == [None] * 4
    for error in errors[4:]:
        assert error.retry_after_seconds is not None
        assert 0 < error.retry_after_seconds <= 60
    assert errors[4].data["free"] == 1
    kept.assert_nothing_is_left()


def test_a_task_whose_lease_is_lost_is_cancelled(kept: Kept) -> None:
    """As the handle says, unless the call says otherwise."""
    fill(kept.blocking, 1)
    pool = AsyncProxyManager(kept.storage).pool("pool", duration_seconds=1)

    async def hold(**options: Any) -> None:
        async with pool.lease(**options) as lease:
            end(kept.blocking, lease)
            await asyncio.sleep(3)
            assert lease.is_lost

    async def work() -> None:
        with pytest.raises(LeaseLostError):
            await hold()
        await hold(on_lost="tell")

    kept.run(work())
    kept.assert_nothing_is_left()


def test_a_task_cancelled_anywhere_leaves_nothing(kept: Kept) -> None:
    """Cancelled after any number of its steps, a task has no lease."""
    fill(kept.blocking, 1)
    pool = AsyncProxyManager(kept.storage).pool("pool")

    async def work() -> None:
        async with pool.lease():
            try:
                async with pool.lease():
                    pass
            except ProxyUnavailableError:
                pass

    async def after(steps: int) -> bool:
        task = asyncio.create_task(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    cancelled = [kept.run(after(steps)) for steps in range(25)]
    assert any(cancelled)
    kept.assert_nothing_is_left()


def test_a_wrong_name_is_told(kept: Kept) -> None:
    """An option that there is not is named, and nothing is recorded."""
    manager = AsyncProxyManager(kept.storage)
    wrong: dict[str, Any] = {"keepalive": True}
    with pytest.raises(TypeError, match="keepalive"):
        manager.pool("pool", **wrong)

    async def work() -> None:
        async with manager.pool("pool").lease(**wrong):
            pass

    with pytest.raises(TypeError, match="keepalive"):
        kept.run(work())
    assert types_of(kept.blocking) == []
