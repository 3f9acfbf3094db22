"""AsyncProxyManager does what ProxyManager does, and awaits callbacks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import (
    AsyncInMemoryStorage,
    AsyncProxyManager,
    HealthCheckOrchestrator,
    HealthCheckResult,
    HealthPolicy,
    InMemoryStorage,
    InvalidInputError,
    Proxy,
    ProxyManager,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
    SelectorStrategy,
    acquire_proxy_async,
    attributed,
    bootstrap_consumer_async,
    bootstrap_pool,
    bootstrap_pool_async,
    bootstrap_proxy_async,
    with_lease_async,
)
from pharox.manager.leasing import CALLBACK_FAILED
from pharox.testing import Awaited, checked
from tests.aio.conftest import Kept
from tests.conftest import Clock, clock_of, fill, types_of

POOLS = ("pool", "other", "nowhere")


def test_every_method_of_the_manager_is_here() -> None:
    """With the same parameters and defaults, and each that asks the storage to be awaited."""
    for name, method in inspect.getmembers(ProxyManager, inspect.isfunction):
        if name.startswith("_"):
            continue
        twin = getattr(AsyncProxyManager, name)
        ours, theirs = inspect.signature(twin).parameters, inspect.signature(method).parameters
        assert [(p.name, p.default, p.kind) for p in ours.values()] == [
            (p.name, p.default, p.kind) for p in theirs.values()
        ]
        begins = inspect.unwrap(twin)  # of a context manager, its function
        without_waiting = name in (
            "client",
            "pool",
            "report_later",
            "watch_requests",
        ) or name.startswith("register_")
        is_async = inspect.iscoroutinefunction(begins) or inspect.isasyncgenfunction(begins)
        assert is_async is not without_waiting


def test_a_block_leases_and_releases(kept: Kept) -> None:
    """``async with`` has a lease inside, and none afterwards, also when the block fails."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> None:
        async with manager.with_lease("pool", "crawler") as lease:
            assert lease is not None
            assert lease.consumer_name == "crawler"
            assert await manager.acquire_proxy("pool") is None
            async with manager.with_lease("pool") as none:
                assert none is None

    async def failing() -> None:
        async with manager.with_retrying_lease("pool") as lease:
            assert lease is not None
            raise ZeroDivisionError

    kept.run(main())
    with pytest.raises(ZeroDivisionError):
        kept.run(failing())
    kept.assert_nothing_is_left()


def test_callbacks_of_both_kinds_are_told_in_order(kept: Kept) -> None:
    """A coroutine function is awaited before the next callback is called."""
    clock = clock_of(kept.blocking)
    _, (proxy,) = fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told: list[tuple[str, Any]] = []

    def telling(what: str) -> Any:
        async def later(payload: Any) -> None:
            await asyncio.sleep(0.001)
            told.append((f"later {what}", payload))

        return later

    for what in ("acquire", "release", "expire", "health"):
        register = getattr(manager, f"register_{what}_callback")
        register(telling(what))
        register(lambda payload, what=what: told.append((what, payload)))

    async def main() -> None:
        lease = await manager.acquire_proxy("pool", duration_seconds=5)
        await manager.acquire_proxy("pool")
        clock.advance(6)
        assert await manager.cleanup_expired_leases() == 1
        await manager.release_proxy(lease)  # type: ignore[arg-type]
        await manager.record_health_checks([checked(proxy, checked_at=clock.now)])
        async with manager.with_lease("pool"):
            pass

    kept.run(main())
    expected = ["acquire", "acquire", "expire", "health", "acquire", "release"]
    assert [what for what, _ in told] == [each for e in expected for each in (f"later {e}", e)]
    payloads = [payload for _, payload in told]
    assert payloads[::2] == payloads[1::2]
    assert payloads[2].miss_reason == "at_capacity"
    assert payloads[0].pool_stats.available_proxies == 0
    assert payloads[4].pool_stats.available_proxies == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_a_failing_callback_costs_the_lease(kept: Kept, *, is_async: bool) -> None:
    """The others are called, the lease is given back, and the exception reaches the caller."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told: list[Any] = []

    def fail(payload: Any) -> None:
        raise ZeroDivisionError

    async def fail_later(payload: Any) -> None:
        fail(payload)

    manager.register_acquire_callback(fail_later if is_async else fail)
    manager.register_acquire_callback(told.append)
    manager.register_release_callback(told.append)
    with pytest.raises(ZeroDivisionError):
        kept.run(manager.acquire_proxy("pool"))
    assert len(told) == 2
    assert told[1].reason == CALLBACK_FAILED
    kept.assert_nothing_is_left()


def test_a_failing_release_callback_does_not_replace_the_blocks_exception(kept: Kept) -> None:
    """What the block raised reaches the caller, with a note of what else failed."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def fail(payload: Any) -> None:
        raise RuntimeError("listener")

    manager.register_release_callback(fail)

    async def main() -> None:
        async with manager.with_lease("pool"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        kept.run(main())
    assert "listener" in raised.value.__notes__[0]
    kept.assert_nothing_is_left()


def test_retrying_waits_in_the_loop(kept: Kept) -> None:
    """Between attempts other tasks run; a ``sleep_fn`` may wait or not."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            await manager.release_proxy(first)

    first = kept.run(manager.acquire_proxy("pool"))
    again = kept.run(manager.acquire_proxy_with_retry("pool", sleep_fn=sleep, max_attempts=5))
    assert again is not None
    assert slept == [0.5, 1.0]
    none = manager.acquire_proxy_with_retry(
        "pool", sleep_fn=slept.append, max_attempts=2, backoff_seconds=9
    )
    assert kept.run(none) is None
    assert slept[2:] == [9]
    with pytest.raises(ValueError, match="max_attempts"):
        kept.run(manager.acquire_proxy_with_retry("pool", max_attempts=0))


def test_a_manager_that_blocks_refuses_coroutine_functions() -> None:
    """Nobody would await it, and it would never run."""

    async def callback(payload: Any) -> None: ...

    class Listener:
        async def __call__(self, payload: Any) -> None: ...

    manager = ProxyManager(InMemoryStorage())
    with pytest.raises(InvalidInputError, match="AsyncProxyManager"):
        manager.register_acquire_callback(Listener())
    with pytest.raises(InvalidInputError, match="AsyncProxyManager"):
        manager.acquire_proxy_with_retry("pool", sleep_fn=asyncio.sleep)  # type: ignore[arg-type]
    for what in ("acquire", "release", "expire", "health"):
        with pytest.raises(InvalidInputError, match="AsyncProxyManager"):
            getattr(manager, f"register_{what}_callback")(callback)


def test_events_are_attributed_to_the_task(kept: Kept) -> None:
    """``attributed`` holds for the task that it surrounds, whatever others do meanwhile."""
    fill(kept.blocking, 2)
    manager = AsyncProxyManager(kept.storage)

    async def job(name: str) -> None:
        with attributed(actor=name, correlation_id=f"run of {name}"):
            async with manager.with_lease("pool", name):
                await asyncio.sleep(0.001)

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("one", "two"):
                group.create_task(job(name))

    kept.run(main())
    leased = [e for e in kept.blocking.events() if e.type.startswith("Lease")]
    assert len(leased) == 4
    assert all(e.actor == e.consumer and e.correlation_id == f"run of {e.actor}" for e in leased)


def test_a_sweep_tells_the_managers_callbacks(kept: Kept) -> None:
    """Health checks are recorded through the manager, or through a storage with coroutines."""
    with pytest.raises(InvalidInputError):
        HealthCheckOrchestrator(InMemoryStorage(), manager=AsyncProxyManager(kept.storage))
    _, (proxy,) = fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told: list[Any] = []

    async def listen(payload: Any) -> None:
        told.append(payload.result.proxy_id)

    manager.register_health_callback(listen)
    orchestrator = HealthCheckOrchestrator(manager=manager)
    applied = kept.run(orchestrator.apply_result_async(checked(proxy, status=ProxyStatus.SLOW)))
    assert applied.status is ProxyStatus.SLOW
    assert told == [proxy.id]


# The same as one that blocks

ACTIONS = st.one_of(
    st.tuples(
        st.just("acquire"),
        st.sampled_from(POOLS),
        st.sampled_from([None, *SelectorStrategy]),
        st.integers(1, 9),
    ),
    st.tuples(st.just("release"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.integers(1, 9)),
    st.tuples(
        st.just("clean"),
    ),
    st.tuples(st.just("check"), st.integers(0, 3), st.sampled_from(ProxyStatus)),
)


def prepared(blocking: InMemoryStorage) -> list[UUID]:
    """Fill a storage with pools of which two runs of a test know the ids."""
    ids = []
    for number, name in enumerate(POOLS[:2], start=1):
        pool = ProxyPool(id=UUID(int=number), name=name, lease_slow=number == 2)
        blocking.save_pool(pool)
        for n in range(2):
            ids.append(UUID(int=10 * number + n))
            proxy = Proxy(
                id=ids[-1],
                pool_id=pool.id,
                host="192.0.2.1",
                port=80 + n,
                protocol=ProxyProtocol.HTTP,
                status=ProxyStatus.ACTIVE,
                max_concurrency=n + 1,
            )
            blocking.save_proxy(proxy)
    return ids


def play(
    manager: Any, blocking: InMemoryStorage, clock: Clock, actions: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Do what is asked of a manager; return what it answered and what it told."""
    told: list[Any] = []
    for what in ("acquire", "release", "expire", "health"):
        getattr(manager, f"register_{what}_callback")(told.append)
    ids, leases, answers = prepared(blocking), [], []
    for name, *given_ in actions:
        if name == "acquire":
            pool, selector, seconds = given_
            lease = manager.acquire_proxy(pool, duration_seconds=seconds, selector=selector)
            answers.append(lease and lease.proxy_id)
            leases += [lease] if lease else []
        elif name == "release" and leases:
            manager.release_proxy(leases[given_[0] % len(leases)])
        elif name == "wait":
            clock.advance(given_[0])
        elif name == "clean":
            answers.append(manager.cleanup_expired_leases())
        elif name == "check":
            result = HealthCheckResult(
                proxy_id=ids[given_[0]],
                status=given_[1],
                latency_ms=10,
                protocol=ProxyProtocol.HTTP,
                checked_at=clock.now - timedelta(seconds=1),
            )
            (outcome,) = manager.record_health_checks([result], HealthPolicy())
            answers.append((outcome.applied, outcome.status_after, outcome.leases))
    return answers, told


@given(actions=st.lists(ACTIONS, max_size=20))
def test_both_managers_do_the_same(actions: list[Any]) -> None:
    """Any sequence of calls has the same answers, tells the same, and leaves the same events."""
    one_clock, other_clock = Clock(), Clock()
    one, other = InMemoryStorage(clock=one_clock), AsyncInMemoryStorage(clock=other_clock)
    with Awaited(AsyncProxyManager(other)) as manager:  # type: ignore[arg-type]
        their_answers, they_told = play(manager, other.memory, other_clock, actions)
    answers, told = play(ProxyManager(one), one, one_clock, actions)
    assert their_answers == answers
    assert [without_ids(payload) for payload in they_told] == [without_ids(p) for p in told]
    assert types_of(other.memory) == types_of(one)
    assert other.memory.verify() == []


def without_ids(payload: Any) -> Any:
    """Return a payload without what no two runs have in common."""
    data = payload.model_dump()
    for name in ("started_at", "completed_at", "duration_ms"):
        data.pop(name, None)
    if data.get("lease"):
        data["lease"] |= {"id": None, "consumer_id": None}
    if "lease_ids" in data:
        data["lease_ids"] = len(data["lease_ids"])
    return type(payload), data


def test_what_is_unknown_is_unknown_here_as_well(kept: Kept) -> None:
    """A late release does nothing, and a result for nobody says so."""
    _, (proxy,) = fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    lease = kept.run(manager.acquire_proxy("pool"))
    kept.run(manager.release_proxy(lease))
    before = types_of(kept.blocking)
    kept.run(manager.release_proxy(lease))
    stray = checked(proxy.model_copy(update={"id": uuid4()}))
    (outcome,) = kept.run(manager.record_health_checks([stray]))
    assert not outcome.known
    assert types_of(kept.blocking) == before


class Overridden:
    """Part of a manager of somebody's own, who wants to know of every call."""

    called: list[str]

    def acquire_proxy(self, *args: Any) -> Any:
        self.called.append("acquire")
        return super().acquire_proxy(*args)  # type: ignore[misc]

    def release_proxy(self, lease: Any) -> Any:
        self.called.append("release")
        return super().release_proxy(lease)  # type: ignore[misc]


class Theirs(Overridden, ProxyManager):  # type: ignore[misc]
    pass


class TheirsAwaited(Overridden, AsyncProxyManager):  # type: ignore[misc]
    pass


def test_a_subclass_may_override_acquiring_and_releasing() -> None:
    """Blocks, retries and clients go through ``acquire_proxy`` and ``release_proxy``."""
    storage = AsyncInMemoryStorage()
    fill(storage.memory)
    theirs, awaited = Theirs(storage.memory), TheirsAwaited(storage)
    called: list[str] = []
    theirs.called = awaited.called = called

    async def main() -> None:
        async with awaited.with_lease("pool"):
            pass
        async with awaited.with_retrying_lease("pool"):
            pass
        async with with_lease_async(theirs, "pool"):
            pass

    with theirs.with_lease("pool"):
        pass
    with theirs.with_retrying_lease("pool"):
        pass
    asyncio.run(main())
    assert called == ["acquire", "release"] * 5
    theirs.client("pool").close()
    assert called[10:] == ["release"]


def test_no_pause_at_all_lets_others_have_their_turn(kept: Kept) -> None:
    """With ``backoff_seconds=0`` other tasks run between two attempts all the same."""
    fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)

    async def main() -> Any:
        lease = await manager.acquire_proxy("pool")
        assert lease is not None
        asking = asyncio.create_task(
            manager.acquire_proxy_with_retry("pool", max_attempts=10_000, backoff_seconds=0)
        )
        await asyncio.sleep(0)
        await manager.release_proxy(lease)
        return await asking

    assert kept.run(main()) is not None


def test_what_was_recorded_is_told_without_statistics(kept: Kept) -> None:
    """A task that is cancelled while these are read has told of the checks."""
    _, (proxy,) = fill(kept.blocking)
    manager = AsyncProxyManager(kept.storage)
    told: list[Any] = []
    manager.register_health_callback(told.append)

    async def cancelled(name: str) -> None:
        raise asyncio.CancelledError

    kept.storage.get_pool_stats = cancelled  # type: ignore[assignment]
    assert kept.is_cancelled(manager.record_health_checks([checked(proxy)]))
    assert [payload.pool_stats for payload in told] == [None]


def test_each_manager_takes_its_own_kind_of_storage() -> None:
    """The other kind, or what is none, is refused at once, and a URL is not repeated."""
    blocking, awaited = InMemoryStorage(), AsyncInMemoryStorage()
    kinds: list[tuple[Any, object]] = [(AsyncProxyManager, blocking), (ProxyManager, awaited)]
    for manager, storage in kinds:
        with pytest.raises(InvalidInputError, match=type(storage).__name__):
            manager(storage)
        for none in (None, "postgresql://u:hunter2@h/d"):
            with pytest.raises(InvalidInputError, match="a storage is needed") as refused:
                manager(none)
            assert "hunter2" not in str(refused.value)
    with pytest.raises(InvalidInputError, match="_async"):
        bootstrap_pool(awaited)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="without a helper"):
        asyncio.run(acquire_proxy_async(AsyncProxyManager(awaited), "pool"))  # type: ignore[arg-type]
    for not_callable in (None, "print"):
        with pytest.raises(InvalidInputError, match="function"):
            ProxyManager(blocking).register_acquire_callback(not_callable)  # type: ignore[arg-type]


def test_a_storage_is_filled_in_a_line_or_two(kept: Kept) -> None:
    """The twins of the bootstrap functions do as these."""

    async def main() -> None:
        storage = kept.storage
        pool = await bootstrap_pool_async(storage, name="pool")
        assert await bootstrap_pool_async(storage, name="pool") == pool
        proxy = await bootstrap_proxy_async(storage, pool=pool, host="192.0.2.1", port=80)
        assert proxy.status is ProxyStatus.ACTIVE
        consumer = await bootstrap_consumer_async(storage, name="crawler")
        assert consumer.id == await storage.ensure_consumer("crawler")

    kept.run(main())
    assert kept.run(AsyncProxyManager(kept.storage).acquire_proxy("pool")) is not None
