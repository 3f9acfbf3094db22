"""What a cancelled task must not leave undone.

A task may be cancelled wherever it waits, and the loop may cancel all of them
when it shuts down. What cannot be stopped any more is waited for, and then the
cancellation goes on its way, together with what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CANCELLED = "cancelled"
"""The reason of a release because the task that had asked for the lease was cancelled."""


class CancelledLate(asyncio.CancelledError):
    """The task was cancelled when its command could not be stopped any more.

    Parameters
    ----------
    outcome:
        What the command would have returned. A lease in it has been given back.
    args:
        Those of the cancellation.
    """

    def __init__(self, outcome: Any, *args: Any) -> None:
        super().__init__(*args)
        self.outcome = outcome


def settled(outcome: T, cancelled: asyncio.CancelledError | None) -> T:
    """Return what a command came to, unless its task was cancelled on the way."""
    if cancelled is not None:
        raise CancelledLate(outcome, *cancelled.args) from cancelled
    return outcome


async def to_the_end(
    future: asyncio.Future[T], when_cancelled: Callable[[], None] | None = None
) -> T:
    """Wait for a future through all cancellations of this task.

    Parameters
    ----------
    future:
        One that nobody else cancels; of a task, the loop's shutdown would.
    when_cancelled:
        Called at each cancellation, to make the end come sooner.

    Raises
    ------
    CancelledLate
        If this task was cancelled and the future has a result.
    asyncio.CancelledError
        If it was cancelled and the future failed, which is the cause.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if when_cancelled is not None:
                when_cancelled()
    try:
        outcome = future.result()
    except Exception as error:
        if cancelled is not None:
            raise cancelled from error
        raise
    return settled(outcome, cancelled)
