"""Finish work that cannot be stopped when a task is cancelled.

A task may be cancelled at any await, and the loop cancels all tasks when it shuts
down. Work that can no longer be stopped is awaited. Then the cancellation is raised
again, with the work's outcome for callers that must report it.

It is the original ``asyncio.CancelledError``, because ``asyncio.timeout`` and
``TaskGroup`` look for exactly that class.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

CANCELLED = "cancelled"
"""The reason of a release if the task that requested the lease was cancelled."""


PATIENCE_S = 5.0
"""How long a cancelled task waits for a result, and again after it has asked the work to end."""


class CancelledCall:
    """A call that runs in a thread while its task may be cancelled.

    Code that waits in the thread finds it in :data:`call_in_thread`.

    Parameters
    ----------
    certain:
        Whether the call is carried out even if its task is cancelled.

    Attributes
    ----------
    since:
        The time of the first cancellation on the monotonic clock, or None.
    """

    def __init__(self, *, certain: bool = False) -> None:
        self.certain = certain
        self.since: float | None = None
        self._turn = threading.Lock()

    def begin(self) -> bool:
        """Mark the call as begun if it is still wanted. Return whether to carry it out."""
        return self._turn.acquire(blocking=False)

    def cancel(self) -> bool:
        """Record a cancellation. Return True if the call will not be carried out."""
        self.since = self.since or time.monotonic()
        return not self.certain and self._turn.acquire(blocking=False)


call_in_thread: ContextVar[CancelledCall | None] = ContextVar("call_in_thread", default=None)
"""The call that this thread carries out for a task, if any."""


def with_outcome(
    cancelled: asyncio.CancelledError, command: str, outcome: Any
) -> asyncio.CancelledError:
    """Attach the outcome of a command to a cancellation that came too late to stop it.

    The command's caller reads the outcome with :func:`outcome_of`.
    """
    cancelled.pharox_outcome = (command, outcome)  # type: ignore[attr-defined]
    return cancelled


def outcome_of(cancelled: asyncio.CancelledError, command: str) -> tuple[Any, ...]:
    """Return a 1-tuple with the outcome of a cancelled command, or an empty tuple."""
    name, outcome = getattr(cancelled, "pharox_outcome", (None, None))
    return (outcome,) if name == command else ()


async def to_the_end(
    future: asyncio.Future[T], when_cancelled: Callable[[], bool] | None = None
) -> tuple[T, asyncio.CancelledError | None]:
    """Wait for a future even if this task is cancelled, any number of times.

    Parameters
    ----------
    future:
        A future that nobody else cancels. It is not a task: the loop's shutdown cancels tasks.
    when_cancelled:
        Called at each cancellation, to make the future finish sooner. If it returns True,
        the future will never have a result, and is not waited for.

    Returns
    -------
    tuple
        The future's result, and the last cancellation if there was one.

    Raises
    ------
    asyncio.CancelledError
        If this task was cancelled and the future failed (its exception is the cause), or
        if the future is not waited for.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if when_cancelled is not None and when_cancelled():
                raise
    try:
        return future.result(), cancelled
    except Exception as error:
        if cancelled is not None:
            raise cancelled from error
        raise
