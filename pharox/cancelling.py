"""What a cancelled task must not leave undone.

A task may be cancelled wherever it waits, and the loop may cancel all of them
when it shuts down. What cannot be stopped any more is waited for, and then the
cancellation goes on its way, with what came of it for those who must tell of it.

It stays the ``asyncio.CancelledError`` that it was: ``asyncio.timeout`` and
``TaskGroup`` look for that very class.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

CANCELLED = "cancelled"
"""The reason of a release because the task that had asked for the lease was cancelled."""


def with_outcome(
    cancelled: asyncio.CancelledError, command: str, outcome: Any
) -> asyncio.CancelledError:
    """Return a cancellation that came too late to stop a command, with what that came to.

    Whoever called the command finds it with :func:`outcome_of`.
    """
    cancelled.pharox_outcome = (command, outcome)  # type: ignore[attr-defined]
    return cancelled


def outcome_of(cancelled: asyncio.CancelledError, command: str) -> tuple[Any, ...]:
    """Return what a command came to although it was cancelled, alone in a tuple, or nothing."""
    name, outcome = getattr(cancelled, "pharox_outcome", (None, None))
    return (outcome,) if name == command else ()


async def to_the_end(
    future: asyncio.Future[T], when_cancelled: Callable[[], None] | None = None
) -> tuple[T, asyncio.CancelledError | None]:
    """Wait for a future through all cancellations of this task.

    Parameters
    ----------
    future:
        One that nobody else cancels; of a task, the loop's shutdown would.
    when_cancelled:
        Called at each cancellation, to make the end come sooner.

    Returns
    -------
    tuple
        The future's result, and the last cancellation if there was one.

    Raises
    ------
    asyncio.CancelledError
        If this task was cancelled and the future failed, which is the cause.
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
        return future.result(), cancelled
    except Exception as error:
        if cancelled is not None:
            raise cancelled from error
        raise
