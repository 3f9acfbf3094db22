"""The block of a task that holds leases: it ends when one of them is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ..errors import LeaseLostError
from ..models import Lease
from .keeper import notify
from .leasing import lost_of
from .options import OnLost


@asynccontextmanager
async def held_by_task(
    storage: Any,
    leases: Sequence[Lease],
    on_lost: OnLost,
    *,
    release: Callable[[], Awaitable[None]],
    release_after: Callable[[BaseException], Awaitable[None]],
) -> AsyncIterator[None]:
    """Hold leases for a block and release them, also if the task is cancelled.

    Parameters
    ----------
    storage:
        Where the leases are from: its keeper knows if one is lost.
    leases:
        What the block holds.
    on_lost:
        Whether the task is then cancelled.
    release, release_after:
        Release the leases after the block, or after its exception.

    Raises
    ------
    LeaseLostError
        If a lease was lost, instead of the cancellation that came of it.
    """
    block = _Block()
    if on_lost == "cancel":
        for lease in leases:
            notify(storage, lease, block.lose)
    try:
        yield
    except BaseException as error:
        block.end()
        await release_after(error)
        if (lost := block.reason_of(error)) is not None:
            raise lost from error
        raise
    block.end()
    outlived = lost_of(leases)
    try:
        await release()
    except asyncio.CancelledError as error:  # They are released in any case.
        if (lost := block.reason_of(error)) is not None:
            raise lost from error
        raise
    if (lost := block.error or outlived) is not None and on_lost == "cancel":
        raise lost


class _Block:
    """Cancels its task, once, as ``asyncio.timeout`` does."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._requested = 0 if self._task is None else self._task.cancelling()
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._is_inside = self._task is not None
        self.error: LeaseLostError | None = None

    def lose(self, lease: Lease, error: LeaseLostError) -> None:
        """Cancel the task, unless its block has ended. Any thread may call it."""
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self.lose, lease, error)
        elif self._is_inside and asyncio.current_task() is self._task:
            # It would be cancelled where it waits next, and that may be after the block.
            self._loop.call_soon(self.lose, lease, error)
        elif self._is_inside and self._task is not None and self.error is None:
            self.error = error
            self._task.cancel(str(error))

    def end(self) -> None:
        """Take back a cancellation that was requested."""
        self._is_inside = False
        if self.error is not None and self._task is not None:
            self._task.uncancel()

    def reason_of(self, error: BaseException) -> LeaseLostError | None:
        """Return why the block was cancelled, if it was cancelled because of a lease alone."""
        if self._task is None or not isinstance(error, asyncio.CancelledError):
            return None
        return self.error if self._task.cancelling() <= self._requested else None
