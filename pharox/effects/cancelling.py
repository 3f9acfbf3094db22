"""What a cancelled task must not leave undone.

A task may be cancelled wherever it waits, and the loop may cancel all of them
when it shuts down. What cannot be stopped any more is waited for, and then the
cancellation goes on its way, with what came of it for those who must tell of it.

It stays the ``asyncio.CancelledError`` that it was: ``asyncio.timeout`` and
``TaskGroup`` look for that very class.
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
"""The reason of a release because the task that had asked for the lease was cancelled."""


PATIENCE_S = 5.0
"""How long a cancelled task waits for an answer, and again after it has asked for its end."""


class CancelledCall:
    """A call in a thread whose task may be cancelled meanwhile.

    What waits in that thread finds it in :data:`call_in_thread`.

    Parameters
    ----------
    certain:
        What the call does is to happen in any case.

    Attributes
    ----------
    since:
        The moment of the first cancellation, by the monotonic clock, or None.
    """

    def __init__(self, *, certain: bool = False) -> None:
        self.certain = certain
        self.since: float | None = None
        self._turn = threading.Lock()

    def begin(self) -> bool:
        """Tell the thread whether the call is still wanted; then it is carried out."""
        return self._turn.acquire(blocking=False)

    def cancel(self) -> bool:
        """Note a cancellation, and tell whether the call will not be carried out any more."""
        self.since = self.since or time.monotonic()
        return not self.certain and self._turn.acquire(blocking=False)


call_in_thread: ContextVar[CancelledCall | None] = ContextVar("call_in_thread", default=None)
"""The call that this thread carries out for a task, if there is one."""


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
    future: asyncio.Future[T], when_cancelled: Callable[[], bool] | None = None
) -> tuple[T, asyncio.CancelledError | None]:
    """Wait for a future through all cancellations of this task.

    Parameters
    ----------
    future:
        One that nobody else cancels; of a task, the loop's shutdown would.
    when_cancelled:
        Called at each cancellation, to make the end come sooner. If it returns True,
        nothing will come of the future, and it is not waited for.

    Returns
    -------
    tuple
        The future's result, and the last cancellation if there was one.

    Raises
    ------
    asyncio.CancelledError
        If this task was cancelled and the future failed, which is the cause; or if the
        future is not waited for.
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
