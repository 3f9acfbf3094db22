"""A task that leases several proxies at once keeps none of them when it is cancelled."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import pytest

from pharox import AsyncProxyManager, LeaseStatus
from pharox.testing import Interrupted
from tests.aio.conftest import Kept, RunsOut
from tests.aio.test_cancelling import telling
from tests.conftest import fill, types_of


@pytest.mark.parametrize("as_it_wakes", [False, True])
@pytest.mark.parametrize("name", ["block", "cycle"])
def test_wherever_it_is_cancelled_no_lease_of_a_set_is_left(
    kept: Kept, name: str, *, as_it_wakes: bool
) -> None:
    """Cancelled at the first step, the second, and so on to the last: both proxies are free."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)
    telling(manager)

    async def block() -> None:
        async with manager.with_leases("pool", 2) as leases:
            assert len(leases) == 2
            await asyncio.sleep(0)

    async def cycle() -> None:
        leases = await manager.acquire_proxies("pool", 2)
        try:
            await asyncio.sleep(0)
        finally:
            await manager.release_proxies(leases)

    scenario = {"block": block, "cycle": cycle}[name]
    cancelled = 0
    for step in count(1):
        interrupted = Interrupted(scenario(), [step], as_it_wakes=as_it_wakes)
        cancelled += kept.is_cancelled(interrupted)
        kept.assert_nothing_is_left()
        if interrupted.steps < step:
            break
    assert cancelled >= 1


def test_a_set_is_told_of_and_given_back(kept: Kept) -> None:
    """Each lease has its payloads, in order, and a callback that waits is awaited."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)
    told = telling(manager)

    async def main() -> list[Any]:
        async with manager.with_leases("pool", 2) as leases:
            return leases

    leases = kept.run(main())
    assert {lease.status for lease in leases} == {LeaseStatus.RELEASED}
    assert told == [*["acquired", "later acquired"] * 2, *["later released None", "released"] * 2]


def test_a_set_whose_callback_is_cancelled_is_given_back(kept: Kept) -> None:
    """A task cancelled while an acquire callback waits has no lease; callbacks get all of them."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)
    told = telling(manager)
    time_out = RunsOut()
    manager.register_acquire_callback(time_out.callback)
    with pytest.raises(TimeoutError):
        kept.run(time_out.over(manager.acquire_proxies("pool", 2)))
    assert told.count("later released cancelled") == told.count("released") == 2
    kept.assert_nothing_is_left()


def test_too_few_is_an_empty_list(kept: Kept) -> None:
    """A set that cannot be had leaves nothing leased."""
    fill(kept.blocking, 1)
    manager = AsyncProxyManager(kept.storage)
    assert kept.run(manager.acquire_proxies("pool", 2)) == []
    kept.run(manager.release_proxies([]))
    kept.assert_nothing_is_left()
    assert "AcquireMissed" in types_of(kept.blocking)
