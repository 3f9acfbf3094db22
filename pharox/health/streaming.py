"""Process a source of any length with bounded concurrency, and yield the results.

An item is taken from the source only when it can be started, and results wait for the
consumer in a bounded buffer: the source may be endless and the consumer slow. The
number of running items per key is limited too. Items of a busy key are held back, also
a bounded number of them.

Not known here: what the work is, and how long it may take.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
)
from contextlib import aclosing
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

MIN_HELD_BACK = 100
"""The minimum number of items of busy keys to hold back while looking for other keys."""

_END: Any = object()


async def in_chunks(
    source: Iterable[T] | AsyncIterable[T],
    work: Callable[[T], Awaitable[R]],
    *,
    concurrency: int,
    key: Callable[[T], Hashable] | None = None,
    per_key: int | None = None,
) -> AsyncGenerator[list[R], None]:
    """Yield the results of ``work`` on every item, in the order of completion.

    Each list has all ready results, at least one. Leaving the loop cancels all running
    work first. The event loop closes an iterator that nobody else closes.

    Parameters
    ----------
    concurrency:
        How many items run at once; the same number of results may wait.
    key, per_key:
        At most ``per_key`` items of one key run at once. Items of busy keys are held
        back, at most ``max(100, concurrency)`` of them.

    Raises
    ------
    Exception
        The first exception of the source or the work. All other work has been
        cancelled by then.
    """
    run = _Run(work, concurrency, key, per_key)
    runner = asyncio.create_task(run.to_the_end_of(source))
    runner.add_done_callback(lambda _: run.news.set())
    try:
        while run.ready or not runner.done():
            if run.ready:
                yield run.take()
            else:
                run.news.clear()
                await run.news.wait()
    finally:
        runner.cancel()
        await asyncio.wait([runner])
        error = _failure_of(runner)
    if error is not None:
        raise error


def _failure_of(runner: asyncio.Task[None]) -> BaseException | None:
    try:
        error = runner.exception()
    except asyncio.CancelledError as cancelled:
        return cancelled
    # Raise the first one: the others failed while they were cancelled because of it.
    return error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error


class _Run(Generic[T, R]):
    """One pass through a source: its running, held back and ready items."""

    def __init__(
        self,
        work: Callable[[T], Awaitable[R]],
        concurrency: int,
        key: Callable[[T], Hashable] | None,
        per_key: int | None,
    ) -> None:
        self._work = work
        self._key_of = key or (lambda _: None)
        self._per_key = math.inf if per_key is None else per_key
        self._slots = asyncio.Semaphore(concurrency)
        self._room = asyncio.Semaphore(concurrency)
        self._room_behind = asyncio.Semaphore(max(MIN_HELD_BACK, concurrency))
        self._at_work: Counter[Hashable] = Counter()
        self._held_back: defaultdict[Hashable, deque[T]] = defaultdict(deque)
        self.ready: list[R] = []
        self.news = asyncio.Event()

    def take(self) -> list[R]:
        """Return the ready results and make room for more."""
        taken, self.ready = self.ready, []
        for _ in taken:
            self._room.release()
        return taken

    async def to_the_end_of(self, source: Iterable[T] | AsyncIterable[T]) -> None:
        """Start all items, and return when the last one is done."""
        async with aclosing(each_of(source)) as items, asyncio.TaskGroup() as tasks:
            while True:
                await self._slots.acquire()
                item = await self._next(items)
                if item is _END:
                    break
                key = self._key_of(item)
                self._at_work[key] += 1
                tasks.create_task(self._work_from(item, key))

    async def _next(self, items: AsyncIterator[T]) -> T:
        """Return the next item whose key is free, and hold back the items before it."""
        while (item := await anext(items, _END)) is not _END:
            key = self._key_of(item)
            if not self._is_busy(key):
                break
            await self._room_behind.acquire()
            # The key may have become free meanwhile; nobody would start the item then.
            if not self._is_busy(key):
                self._room_behind.release()
                break
            self._held_back[key].append(item)
        return item

    def _is_busy(self, key: Hashable) -> bool:
        return self._at_work[key] >= self._per_key

    async def _work_from(self, item: T, key: Hashable) -> None:
        """Work on an item, then on the held back items of its key."""
        while item is not _END:
            result = await self._work(item)
            await self._room.acquire()
            self.ready.append(result)
            self.news.set()
            item = self._next_of(key)
        self._at_work[key] -= 1
        if not self._at_work[key]:
            del self._at_work[key]
        self._slots.release()

    def _next_of(self, key: Hashable) -> T:
        waiting = self._held_back.get(key)
        if not waiting:
            answer: T = _END
            return answer
        item = waiting.popleft()
        if not waiting:
            del self._held_back[key]
        self._room_behind.release()
        return item


async def each_of(source: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """Yield the items of a sync or async source; close an async generator at the end."""
    if isinstance(source, AsyncGenerator):
        async with aclosing(source):
            async for item in source:
                yield item
    elif isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item
