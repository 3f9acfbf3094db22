"""A stream of work: every item once, so many at a time, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox.health import streaming
from pharox.health.streaming import MIN_HELD_BACK, in_chunks

PATIENT_S = 20.0


class Work:
    """Counts what is at work; an item takes so many turns of the event loop."""

    def __init__(self, turns: Callable[[int], int] = lambda item: item % 3) -> None:
        self._turns = turns
        self.now: Counter[int] = Counter()
        self.most = 0
        self.most_per_key = 0

    async def __call__(self, item: int) -> int:
        key = key_of(item)
        self.now[key] += 1
        self.most = max(self.most, self.now.total())
        self.most_per_key = max(self.most_per_key, self.now[key])
        try:
            for _ in range(self._turns(item)):
                await asyncio.sleep(0)
        finally:
            self.now[key] -= 1
        return item


def key_of(item: int) -> int:
    return item // 10 % 3


async def forever(item: int) -> int:
    """Be at work until cancelled."""
    await asyncio.Event().wait()
    return item


async def collected(
    source: Iterable[int] | AsyncIterator[int],
    work: Callable[[int], Awaitable[int]],
    concurrency: int = 5,
    per_key: int | None = None,
) -> list[int]:
    key = None if per_key is None else key_of
    stream = in_chunks(source, work, concurrency=concurrency, key=key, per_key=per_key)
    return [item async for chunk in stream for item in chunk]


async def nothing_left() -> bool:
    """Return whether this task is the only one, once the loop has closed others."""
    for _ in range(1000):
        if asyncio.all_tasks() == {asyncio.current_task()}:
            return True
        await asyncio.sleep(0)
    return False


@given(
    items=st.lists(st.integers(0, 60), max_size=80),
    turns=st.integers(0, 4),
    concurrency=st.integers(1, 12),
    per_key=st.none() | st.integers(1, 4),
    held_back=st.sampled_from([1, MIN_HELD_BACK]),
    lazily=st.booleans(),
)
def test_each_item_once_and_never_too_many(
    items: list[int],
    turns: int,
    concurrency: int,
    per_key: int | None,
    held_back: int,
    lazily: bool,
) -> None:
    """Whatever the bounds, and whether or not the source is asynchronous."""
    work = Work(lambda item: item % (turns + 1))

    async def one_by_one() -> AsyncIterator[int]:
        for item in items:
            await asyncio.sleep(0)
            yield item

    async def run() -> list[int]:
        async with asyncio.timeout(PATIENT_S):
            return await collected(one_by_one() if lazily else items, work, concurrency, per_key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "MIN_HELD_BACK", held_back)
        assert sorted(asyncio.run(run())) == sorted(items)
    assert work.most <= concurrency
    assert work.most_per_key <= (concurrency if per_key is None else per_key)


def test_more_of_a_busy_key_than_are_held_back() -> None:
    """The source then waits, and ends all the same."""
    items = [0] * (3 * MIN_HELD_BACK) + [10, 20]
    work = Work(lambda _: 2)
    assert sorted(asyncio.run(collected(items, work, 3, per_key=1))) == sorted(items)
    assert work.most_per_key == 1


@pytest.mark.parametrize(
    "items",
    [
        [0] * (1 + MIN_HELD_BACK) + [10, 11],
        [0] * (2 * MIN_HELD_BACK) + [10] * (2 * MIN_HELD_BACK),
    ],
)
def test_an_item_whose_key_becomes_free_while_the_source_waits(items: list[int]) -> None:
    """It is begun, however often that happens: nobody of its key is left to come for it."""
    work = Work(lambda item: 1 if item else 9)

    async def run() -> list[int]:
        async with asyncio.timeout(PATIENT_S):
            return await collected(items, work, 3, per_key=1)

    assert sorted(asyncio.run(run())) == items


def test_items_behind_a_busy_key_are_found() -> None:
    """One slow host does not stop the others."""

    async def run() -> list[int]:
        stream = in_chunks(
            [0, 1, 2, 10, 20],
            lambda item: forever(item) if item == 0 else Work()(item),
            concurrency=3,
            key=key_of,
            per_key=1,
        )
        found: list[int] = []
        async with aclosing(stream):
            async for chunk in stream:
                found += chunk
                if len(found) == 2:
                    break
        return sorted(found)

    assert asyncio.run(run()) == [10, 20]


@pytest.mark.parametrize("concurrency", [1, 7])
@pytest.mark.parametrize("per_key", [None, 2])
def test_the_source_is_read_as_needed(concurrency: int, per_key: int | None) -> None:
    """Also by a consumer that takes its time, and of a source without end."""
    bound = 2 * concurrency + (0 if per_key is None else max(MIN_HELD_BACK, concurrency))
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async def run() -> None:
        done = 0
        key = None if per_key is None else key_of
        stream = in_chunks(source(), Work(), concurrency=concurrency, key=key, per_key=per_key)
        async with aclosing(stream):
            async for chunk in stream:
                done += len(chunk)
                assert chunk
                assert taken <= done + bound
                await asyncio.sleep(0.001)
                assert taken <= done + bound
                if done > 200:
                    break

    asyncio.run(run())


def test_what_is_ready_comes_together() -> None:
    """A consumer that was away finds all of it."""

    async def run() -> list[int]:
        sizes = []
        async for chunk in in_chunks(range(60), Work(lambda _: 1), concurrency=20):
            sizes.append(len(chunk))
            await asyncio.sleep(0.01)
        return sizes

    sizes = asyncio.run(run())
    assert sum(sizes) == 60
    assert max(sizes) == 20


class OddError(Exception):
    """Raised by a source or by work."""


@pytest.mark.parametrize("concurrency", [1, 10])
def test_an_error_of_the_work_reaches_the_consumer(concurrency: int) -> None:
    """What was ready is handed out, the rest is cancelled, and the error keeps its cause."""

    async def work(item: int) -> int:
        if item == 5:
            raise OddError from ValueError("cause")
        return item if item < 5 else await forever(item)

    async def run() -> set[int]:
        found: set[int] = set()

        async def consume() -> None:
            async for chunk in in_chunks(range(1000), work, concurrency=concurrency):
                found.update(chunk)

        with pytest.raises(OddError) as raised:
            await consume()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert isinstance(raised.value.__cause__, ValueError)
        return found

    assert asyncio.run(run()) == set(range(5))


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_of_the_source_reaches_the_consumer(is_async: bool) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OddError

    async def async_source() -> AsyncIterator[int]:
        for item in source():
            yield item

    async def run() -> None:
        with pytest.raises(OddError):
            await collected(async_source() if is_async else source(), forever)
        assert await nothing_left()

    asyncio.run(run())


@given(after=st.integers(1, 30), concurrency=st.integers(1, 10), closing=st.booleans())
def test_leaving_the_loop_ends_everything(after: int, concurrency: int, closing: bool) -> None:
    """With ``aclose`` at once; with a mere break as soon as the event loop comes to it."""

    async def work(item: int) -> int:
        return await forever(item) if item % 4 == 3 and item > 40 else item

    async def run() -> None:
        stream = in_chunks(range(10_000), work, concurrency=concurrency)
        seen = 0
        async for chunk in stream:
            seen += len(chunk)
            if seen >= after:
                break
        if closing:
            await stream.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}
        del stream
        assert await nothing_left()

    asyncio.run(run())


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
def test_cancelling_the_consumer_ends_everything(turns: int) -> None:
    async def run() -> None:
        consumer = asyncio.create_task(collected(range(1000), forever))
        for _ in range(turns):
            await asyncio.sleep(0)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert await nothing_left()

    asyncio.run(run())


def test_an_error_of_the_consumer_ends_everything() -> None:
    async def run() -> None:
        async def consume() -> None:
            async with aclosing(in_chunks(range(1000), Work(), concurrency=5)) as stream:
                async for _ in stream:
                    raise OddError

        with pytest.raises(OddError):
            await consume()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_a_long_source_needs_no_more_memory_than_a_short_one() -> None:
    """A hundred times the items, and the peak is the same but for noise."""

    async def work(item: int) -> int:
        return item

    async def run(items: int) -> None:
        stream = in_chunks(range(items), work, concurrency=50, key=key_of, per_key=20)
        async for _ in stream:
            pass

    def peak(items: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            asyncio.run(run(items))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2_000)
    assert peak(200_000) < 2 * peak(2_000) + 100_000
