"""Do something once, or at an interval until a signal.

The first SIGINT or SIGTERM asks for the end, and a later one has its default effect.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Self, TypeVar

from ..errors import DatabaseUnavailableError
from .showing import say

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 0.25
"""Signals within this time count as one: parents often forward what the terminal sent to both."""


async def repeat_until_stopped(
    stop: Stop, once: Callable[[], Awaitable[None]], every: timedelta | None
) -> int | None:
    """Do something once, or at intervals until a signal; return the signal's number, or None.

    Parameters
    ----------
    every:
        The interval between two starts; the next one is at once if the last took longer. None
        does it once.

    Raises
    ------
    DatabaseUnavailableError
        If it is done only once; what is repeated tries again.
    """
    due_at = time.monotonic()
    while True:
        try:
            await once()
        except DatabaseUnavailableError as error:
            if every is None:
                raise
            say(str(error))
        if every is None:
            return stop.signal
        due_at = max(due_at + every.total_seconds(), time.monotonic())
        if await stop.within(due_at - time.monotonic()):
            return stop.signal


class Stop:
    """Whether a signal requested the program to end; handles signals during a block."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requested = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._ask, number)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.signal is not None:
            await asyncio.sleep(_ECHO_S)
        self._let_go()

    def _ask(self, number: int) -> None:
        self.signal = self.signal or number
        self._requested.set()
        asyncio.get_running_loop().call_later(_ECHO_S, self._let_go)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    async def within(self, seconds: float) -> bool:
        """Wait for at most so many seconds, and return whether the end was requested."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        return self._requested.is_set()

    async def cutting(self, chunks: AsyncGenerator[list[T], None]) -> AsyncGenerator[list[T], None]:
        """Yield from ``chunks`` until the end is requested, then close it."""
        requested = asyncio.create_task(self._requested.wait())
        try:
            async with aclosing(chunks):
                while not self._requested.is_set() and (chunk := await _unless(requested, chunks)):
                    yield chunk
        finally:
            requested.cancel()


async def _unless(requested: asyncio.Task[bool], chunks: AsyncGenerator[list[T], None]) -> list[T]:
    """Return the next chunk; an empty one at the end, or if ``requested`` is done first."""
    chunk = asyncio.ensure_future(anext(chunks, []))
    try:
        await asyncio.wait({chunk, requested}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        chunk.cancel()
        await asyncio.wait({chunk})
    return [] if chunk.cancelled() else chunk.result()
