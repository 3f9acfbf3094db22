"""Wrap an async storage as a blocking one.

Each call runs in the wrapper's own event loop, so the suite for blocking storages runs
unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator
from inspect import isasyncgen, isawaitable
from typing import Any, TypeVar

from ..storage.async_interface import IAsyncStorage

T = TypeVar("T")


class Awaited:
    """A context manager with every method of an async storage, awaited.

    Parameters
    ----------
    storage:
        The storage, created while no loop was running. It is closed at the end if it
        has a ``close``.
    """

    def __init__(self, storage: IAsyncStorage) -> None:
        self.awaitable = storage
        self._runner = asyncio.Runner()

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            if hasattr(self.awaitable, "close"):
                self.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.awaitable, name)
        if not callable(found):
            return found

        def method(*args: Any, **options: Any) -> Any:
            answer = found(*args, **options)
            if isasyncgen(answer):
                return self._each(answer)
            return self.run(answer) if isawaitable(answer) else answer

        return method

    def run(self, awaitable: Awaitable[T]) -> T:
        """Await an awaitable in the storage's loop."""

        async def main() -> T:
            return await awaitable

        return self._runner.run(main())

    def is_cancelled(self, awaitable: Awaitable[Any]) -> bool:
        """Await an awaitable in a new task; return whether the task was cancelled."""

        async def main() -> Any:
            return await awaitable

        async def outside() -> bool:
            task = asyncio.create_task(main())
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
            return task.cancelled()

        return self.run(outside())

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        end = object()
        while (item := self.run(anext(items, end))) is not end:
            yield item  # type: ignore[misc]
