"""A cancelled task leaves no lease behind, wherever the cancellation finds it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    LeaseStatus,
    ProxyManager,
    acquire_proxy_async,
    acquire_proxy_with_retry_async,
    release_proxy_async,
    with_lease_async,
    with_retrying_lease_async,
)
from pharox.events import LeaseAcquired, LeaseReleased
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from pharox.testing import Awaited, Interrupted
from tests.aio.conftest import Kept, RunsOut
from tests.conftest import SECRET_KEY, fill, ledger, types_of

Scenario = Callable[[], Awaitable[Any]]


def telling(manager: AsyncProxyManager) -> list[str]:
    """Register callbacks that wait and some that do not; return what they will have heard."""
    told: list[str] = []

    async def later(what: str) -> None:
        await asyncio.sleep(0)
        told.append(what)

    async def of_release(payload: Any) -> None:
        await later(f"later released {payload.reason}")

    async def of_acquisition(payload: Any) -> None:
        await later("later acquired")

    manager.register_acquire_callback(lambda payload: told.append("acquired"))
    manager.register_acquire_callback(of_acquisition)
    manager.register_release_callback(of_release)
    manager.register_release_callback(lambda payload: told.append("released"))
    return told


def scenarios(kept: Kept) -> dict[str, Scenario]:
    """What a task may be at when it is cancelled; one exclusive proxy is free."""
    manager = AsyncProxyManager(kept.storage)
    telling(manager)
    helped = ProxyManager(kept.blocking)

    async def cycle() -> None:
        lease = await manager.acquire_proxy("pool")
        assert lease is not None
        try:
            await asyncio.sleep(0)
        finally:
            await manager.release_proxy(lease)

    async def block() -> None:
        async with manager.with_lease("pool") as lease:
            assert lease is not None
            await asyncio.sleep(0)

    async def waiting_block() -> None:
        async with manager.with_retrying_lease(
            "pool", max_attempts=3, backoff_seconds=0.001
        ) as lease:
            assert lease is not None

    async def waiting_in_vain() -> None:
        async with manager.with_lease("pool") as lease:
            assert lease is not None
            again = await manager.acquire_proxy_with_retry("pool", backoff_seconds=0.001)
            assert again is None

    async def failing_block() -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with manager.with_lease("pool"):
                raise ZeroDivisionError

    async def client() -> None:
        async with manager.client("pool") as client:
            assert client.lease is not None

    async def awaited_client() -> None:
        client = await manager.client("pool")
        try:
            await asyncio.sleep(0)
        finally:
            await client.aclose()

    async def helped_block() -> None:
        async with with_lease_async(helped, "pool") as lease:
            assert lease is not None
            await asyncio.sleep(0)

    async def helped_cycle() -> None:
        lease = await acquire_proxy_async(helped, "pool")
        assert lease is not None
        await release_proxy_async(helped, lease)

    async def helped_waiting_block() -> None:
        async with with_retrying_lease_async(
            helped, "pool", max_attempts=2, backoff_seconds=0.01
        ) as lease:
            assert lease is not None
            assert (
                await acquire_proxy_with_retry_async(helped, "pool", backoff_seconds=0.01) is None
            )

    return {
        scenario.__name__: scenario
        for scenario in (
            cycle,
            block,
            waiting_block,
            waiting_in_vain,
            failing_block,
            client,
            awaited_client,
            helped_block,
            helped_cycle,
            helped_waiting_block,
        )
    }


NAMES = (
    "cycle",
    "block",
    "waiting_block",
    "waiting_in_vain",
    "failing_block",
    "client",
    "awaited_client",
    "helped_block",
    "helped_cycle",
    "helped_waiting_block",
)


@pytest.mark.parametrize("as_it_wakes", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_wherever_it_is_cancelled_no_lease_is_left(
    kept: Kept, name: str, *, as_it_wakes: bool
) -> None:
    """Cancelled at the first step, the second, and so on to the last: the proxy is free again."""
    fill(kept.blocking)
    assert set(scenarios(kept)) == set(NAMES)
    scenario = scenarios(kept)[name]
    cancelled = 0
    for step in count(1):
        interrupted = Interrupted(scenario(), [step], as_it_wakes=as_it_wakes)
        if kept.is_cancelled(interrupted):
            cancelled += 1
        kept.assert_nothing_is_left()
        if interrupted.steps < step:
            break
    assert cancelled >= 1


@settings(max_examples=40)
@given(
    tasks=st.lists(
        st.tuples(
            st.sampled_from(("block", "waiting_block", "failing_block", "client", "helped_block")),
            st.sets(st.integers(1, 14), max_size=4),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_many_tasks_cancelled_many_times_leave_nothing(
    in_postgres: Kept, tasks: list[tuple[str, set[int], bool]]
) -> None:
    """Tasks that share proxies and connections, each cancelled at any steps, again and again."""
    kept = in_postgres
    if not kept.blocking.list_pools():
        fill(kept.blocking, 8)
    known = scenarios(kept)

    async def main() -> list[Any]:
        async def task(name: str, at: set[int], as_it_wakes: bool) -> None:
            await Interrupted(known[name](), at, as_it_wakes=as_it_wakes)

        started = [asyncio.create_task(task(*each)) for each in tasks]
        return await asyncio.gather(*started, return_exceptions=True)

    for outcome in kept.run(main()):
        assert outcome is None or isinstance(outcome, asyncio.CancelledError)
    kept.assert_nothing_is_left()


def test_the_log_says_that_a_task_was_cancelled(in_postgres: Kept) -> None:
    """What was granted to a cancelled task is in the log, with its release and the reason."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    kept.run(manager.release_proxy(kept.run(manager.acquire_proxy("pool"))))  # it is warm now
    assert kept.is_cancelled(Interrupted(manager.acquire_proxy("pool"), [1]))
    *_, acquired, released = kept.blocking.events()
    assert isinstance(acquired, LeaseAcquired)
    assert isinstance(released, LeaseReleased)
    assert (released.lease_id, released.reason) == (acquired.lease_id, "cancelled")
    with pytest.raises(asyncio.CancelledError) as raised:
        kept.run(asyncio.wait_for(_cancelled(manager.acquire_proxy("pool")), 20))
    assert type(raised.value) is asyncio.CancelledError


async def _cancelled(awaitable: Awaitable[Any]) -> None:
    await Interrupted(awaitable, [1])


def test_the_log_says_so_of_a_client_as_well(in_postgres: Kept) -> None:
    """Cancelled while it reads the proxy that it was granted, it says why it gave it back."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    kept.run(kept.run(manager.client("pool")).aclose())  # it is warm now
    reasons = set()
    for step in count(1):
        opening = Interrupted(manager.client("pool"), [step])

        async def main(opening: Any = opening) -> None:
            await (await opening).aclose()

        if not kept.is_cancelled(main()):
            break
        *_, released = kept.blocking.events()
        assert isinstance(released, LeaseReleased)
        reasons.add(released.reason)
    assert reasons == {"cancelled"}


def test_a_task_that_waits_for_a_connection_is_cancelled_at_once(in_postgres: Kept) -> None:
    """Nothing was asked yet, so nothing is in the log."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    before = types_of(kept.blocking)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as lent:
            for _ in range(4):
                await lent.enter_async_context(kept.storage.engine.connect())  # type: ignore[attr-defined]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await manager.acquire_proxy("pool")

    kept.run(main())
    assert types_of(kept.blocking) == before


def test_a_release_that_waits_for_a_connection_goes_on_waiting(in_postgres: Kept) -> None:
    """Cancelled before it has a connection, it releases when it gets one."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        lease = await manager.acquire_proxy("pool")
        assert lease is not None
        async with contextlib.AsyncExitStack() as lent:
            for _ in range(4):
                await lent.enter_async_context(kept.storage.engine.connect())  # type: ignore[attr-defined]
            releasing = asyncio.create_task(manager.release_proxy(lease))
            for _ in range(3):
                await asyncio.sleep(0.01)
                releasing.cancel()
            assert not releasing.done()
        with pytest.raises(asyncio.CancelledError):
            await releasing

    kept.run(main())
    kept.assert_nothing_is_left()


def test_callbacks_are_told_of_a_release_that_was_cancelled(in_postgres: Kept) -> None:
    """Wherever a release is cancelled, each callback that does not wait is called once."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told = telling(manager)
    for step in count(1):
        lease = kept.run(manager.acquire_proxy("pool"))
        told.clear()
        releasing = Interrupted(manager.release_proxy(lease), [step])
        kept.is_cancelled(releasing)
        assert told.count("released") == 1
        if releasing.steps < step:
            break
    assert told == ["later released None", "released"]


def test_a_callback_that_is_cancelled_costs_the_lease(kept: Kept) -> None:
    """A task cancelled while an acquire callback waits has no lease; the callbacks hear of both."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told = telling(manager)
    time_out = RunsOut()
    manager.register_acquire_callback(time_out.callback)
    with pytest.raises(TimeoutError):
        kept.run(time_out.over(manager.acquire_proxy("pool")))
    assert told == ["acquired", "later acquired", "later released cancelled", "released"]
    kept.assert_nothing_is_left()


def test_a_listener_to_failures_that_is_cancelled_keeps_nobody_from_being_told(
    in_memory: Kept,
) -> None:
    """The callbacks after the one that failed hear of the release all the same."""
    kept = in_memory
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told: list[Any] = []
    time_out = RunsOut()

    def fail(payload: Any) -> None:
        raise ZeroDivisionError

    manager.register_release_callback(fail)
    manager.register_release_callback(told.append)
    manager.register_failure_callback(time_out.callback)

    lease = kept.run(manager.acquire_proxy("pool"))
    assert lease is not None
    with pytest.raises(TimeoutError):
        kept.run(time_out.over(manager.release_proxy(lease)))
    assert len(told) == 1


# As asyncio cancels


def test_a_failing_task_group_leaves_nothing(kept: Kept) -> None:
    """When one task of a group fails, the others are cancelled wherever they are."""
    fill(kept.blocking, 8)
    manager = AsyncProxyManager(kept.storage)

    async def work() -> None:
        while True:
            async with manager.with_lease("pool"):
                await asyncio.sleep(0)

    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise ZeroDivisionError

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(7):
                group.create_task(work())
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as raised:
        kept.run(main())
    assert raised.group_contains(ZeroDivisionError)
    kept.assert_nothing_is_left()


def test_a_timeout_leaves_nothing(kept: Kept) -> None:
    """``asyncio.timeout`` ends a task in the middle, in ever other places, with a TimeoutError."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)
    outcomes: Counter[str] = Counter()

    async def once(seconds: float) -> None:
        async with asyncio.timeout(seconds):
            async with manager.with_lease("pool") as one, manager.with_lease("pool") as other:
                assert one
                assert other
                await asyncio.sleep(0.001)

    async def main() -> None:
        await once(20)
        for step in range(60):
            try:
                await once(step / 5_000)
                outcomes["in time"] += 1
            except TimeoutError:
                outcomes["too late"] += 1
            current = asyncio.current_task()
            assert current is not None
            assert current.cancelling() == 0

    kept.run(main())
    assert outcomes["too late"] > 0
    reasons = [e.reason for e in kept.blocking.events() if isinstance(e, LeaseReleased)]
    assert len(reasons) >= 4  # leases were granted, and not only to the first
    kept.assert_nothing_is_left()


def test_a_timeout_that_has_passed_is_a_timeout(in_postgres: Kept) -> None:
    """Also of a statement that goes on to its end, in the same coroutine."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def in_no_time(ask: Callable[[str], Awaitable[Any]]) -> None:
        async with asyncio.timeout(0):
            await ask("pool")

    async def main() -> None:
        await kept.storage.get_pool_stats("pool")
        for ask in (manager.acquire_proxy, kept.storage.get_pool_stats, manager.client):
            with pytest.raises(TimeoutError):
                await in_no_time(ask)

    kept.run(main())
    kept.assert_nothing_is_left()


def test_the_body_of_a_task_group_may_lease(in_postgres: Kept) -> None:
    """A child that fails while the body acquires is the only error of the group."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        await kept.storage.get_pool_stats("pool")
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            await manager.acquire_proxy("pool")

    with pytest.raises(ExceptionGroup) as raised:
        kept.run(main())
    assert [type(error) for error in raised.value.exceptions] == [ZeroDivisionError]
    kept.assert_nothing_is_left()


@pytest.mark.parametrize("name", NAMES)
def test_a_scope_of_anyio_leaves_nothing(kept: Kept, name: str) -> None:
    """It cancels in each turn of the loop until its task has left; many frameworks use it."""
    fill(kept.blocking)
    scenario = scenarios(kept)[name]

    async def main() -> None:
        await scenario()
        for step in range(30):
            with anyio.move_on_after(step / 3_000):
                await scenario()

    kept.run(asyncio.wait_for(main(), 60))
    kept.assert_nothing_is_left()


def test_a_release_waits_for_a_connection_under_anyio_too(in_postgres: Kept) -> None:
    """Cancelled in each turn of the loop, it still gets one when it is there."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def release(lease: Any) -> None:
        with anyio.move_on_after(0):
            await manager.release_proxy(lease)

    async def main() -> None:
        lease = await manager.acquire_proxy("pool")
        async with contextlib.AsyncExitStack() as lent:
            for _ in range(4):
                await lent.enter_async_context(kept.storage.engine.connect())  # type: ignore[attr-defined]
            releasing = asyncio.create_task(release(lease))
            await asyncio.sleep(0.05)
            assert not releasing.done()
        await asyncio.wait_for(releasing, 20)

    kept.run(main())
    kept.assert_nothing_is_left()


class Wrapping(AsyncInMemoryStorage):
    """An adapter around another storage, whose methods ask for more than their own."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    async def acquire_lease(self, request: Any) -> Any:
        await self.inner.get_pool_stats(request.pool_name)
        return await self.inner.acquire_lease(request)

    async def return_lease(self, lease: Any, **options: Any) -> Any:
        return await self.inner.return_lease(lease, **options)


def test_an_adapter_around_ours_may_be_cancelled_too(in_postgres: Kept) -> None:
    """What another command came to is not taken for the outcome of the adapter's."""
    kept = in_postgres
    fill(kept.blocking)
    manager = AsyncProxyManager(Wrapping(kept.storage))
    manager.register_expire_callback(print)
    kept.run(manager.release_proxy(kept.run(manager.acquire_proxy("pool"))))
    for step in count(1):
        if not kept.is_cancelled(Interrupted(manager.acquire_proxy("pool"), [step])):
            break
        kept.assert_nothing_is_left()
    assert step > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_loop_that_shuts_down_leaves_nothing(url: str, name: str) -> None:
    """At whatever step of a task its loop ends, the lease is given back before it is closed."""
    with ledger(url) as blocking:
        fill(blocking)
        shut_down_at_each_step(url, blocking, name)
        assert blocking.verify() == []


def shut_down_at_each_step(url: str, blocking: PostgresStorage, name: str) -> None:
    for step in count(1):
        # No connection outlives its use, as nobody is there to close it.
        engine = create_async_engine(url, poolclass=NullPool)
        storage = AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY])
        interrupted = Interrupted(scenarios(Kept(storage, blocking, Awaited(storage)))[name](), ())

        async def main(step: int = step, interrupted: Any = interrupted) -> bool:
            async def work() -> None:
                await interrupted

            running = asyncio.create_task(work())
            while interrupted.steps < step and not running.done():
                await asyncio.sleep(0)
            return running.done()

        was_done = asyncio.run(main())
        assert [x for x in blocking.list_leases() if x.status is LeaseStatus.ACTIVE] == []
        if was_done:
            break
    assert step > 1
