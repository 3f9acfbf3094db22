"""Make a cancelled task wait for the answer to the statement that it has sent.

If it stopped at once, nobody would know what was committed: psycopg asks the
server to cancel an interrupted statement, but a statement that finishes first
has leased a proxy without anyone knowing. The ledger's statements take
milliseconds. So the cancellation is noted and the answer is awaited. Then the sender
knows what to undo before it raises the cancellation.

If a cancelled task gets no answer for :data:`PATIENCE_S`, or another task within its
command's timeout (:mod:`.deadline`), the server is asked to cancel the statement, and its
reply decides. A release is not cancelled for a cancelled task: it must happen. If
the server does not reply at all, the connection is closed and the outcome of the
statement is unknown. A lease may be left, and expires.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import waiting

from ...effects import cancelling
from ...effects.limiting import limited
from .deadline import (
    SILENT,
    LateError,
    answer_timeout,
    check_replicated,
    log_given_up,
    log_late,
    warnings_of,
    within,
)

T = TypeVar("T")

PATIENCE_S = cancelling.PATIENCE_S
"""How long a cancelled task waits for an answer, and again after asking to cancel."""

_LOOK_S = 0.002


class CancellationGuard:
    """Keeps a cancellation for later: as a context manager, it ends its block and notes it.

    Parameters
    ----------
    certain:
        Whether the work must be completed, so that a cancellation never cancels it on the server.
    within_s:
        How many seconds the server has for an answer, unless
        :func:`~pharox.effects.limiting.answers_within` says less; no limit if None.
    is_abandoned:
        Returns whether nobody waits for the answer any more; None if only this task does.

    Attributes
    ----------
    cancelled:
        The last cancellation that was noted, or None.
    is_late:
        Whether the server was asked to cancel a statement because no answer came in time.
    """

    __slots__ = ("_is_abandoned", "cancelled", "certain", "is_late", "within_s")

    def __init__(
        self,
        *,
        certain: bool = False,
        within_s: float | None = None,
        is_abandoned: Callable[[], bool] | None = None,
    ) -> None:
        self._is_abandoned = is_abandoned
        self.certain = certain
        self.within_s = limited(within_s)
        self.cancelled: asyncio.CancelledError | None = None
        self.is_late = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> bool:
        if isinstance(error, asyncio.CancelledError):
            self.cancelled = error
            return True
        return False

    @contextmanager
    def translating_timeout(self) -> Iterator[None]:
        """Translate the error of a statement that was cancelled because it was late.

        Raises
        ------
        AnswerTimeoutError
            If the server has cancelled a late statement.
        """
        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            if self.is_late and self.within_s is not None:
                raise answer_timeout(self.within_s) from error
            raise

    def obey(self) -> None:
        """Raise the cancellation that was noted, if any."""
        if self.cancelled is not None:
            raise self.cancelled

    async def outlast(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine to its end in a separate task. Note all cancellations of this one.

        A cancelled anyio scope cancels this task in each iteration of the loop, so nothing
        that waits could finish in it.
        """
        task = asyncio.create_task(coroutine)
        while not task.done():
            with self:
                await asyncio.wait([task])
        return task

    def teach(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Replace the ``wait`` of a connection, until :func:`forget` is called."""

        def wait(gen: Generator[Any, Any, T], interval: float = 0.1, **_: Any) -> Awaitable[T]:
            return self._wait(connection, gen, interval)

        connection.wait = wait  # type: ignore[method-assign, assignment]

    async def _wait(
        self, connection: psycopg.AsyncConnection[Any], gen: Generator[Any, Any, T], interval: float
    ) -> T:
        """Do as ``connection.wait``, but return the server's answer even if cancelled."""
        answer: list[T] = []

        def arriving() -> Generator[Any, Any, None]:
            answer.append((yield from gen))

        until_it_is_here = arriving()
        with self:
            await self._wait_in_time(until_it_is_here, connection.pgconn.socket, interval)
        if not answer:
            await self._outlast(connection, until_it_is_here)
        return answer[0]

    async def _wait_in_time(
        self, arriving: Generator[Any, Any, None], socket: int, interval: float
    ) -> None:
        if self.within_s is None:
            await waiting.wait_async(arriving, socket, interval)
            return
        try:
            await waiting.wait_async(within(arriving, self.within_s), socket, interval)
        except LateError:
            self.is_late = True
            log_late(self.within_s)

    async def _outlast(
        self, connection: psycopg.AsyncConnection[Any], arriving: Generator[Any, Any, None]
    ) -> None:
        # A cancelled task has not waited yet, so it waits before it asks to cancel. A late task
        # has waited. Its caller gets an error, so even a release may then be cancelled.
        if self.cancelled is not None and await self._has_come(connection, arriving):
            return
        with warnings_of(connection) as warnings:
            if self.cancelled is None or not self.certain or self._is_given_up():
                with suppress(psycopg.Error, asyncio.CancelledError):
                    (await self.outlast(connection.cancel_safe(timeout=PATIENCE_S))).result()
            has_come = await self._has_come(connection, arriving)
        check_replicated(connection, warnings)
        if has_come:
            return
        log_given_up()
        connection.pgconn.finish()
        raise psycopg.OperationalError(SILENT)

    def _is_wanted(self, waited_s: float) -> bool:
        """Return whether others still wait for the answer, and it is not late yet."""
        is_late = self.is_late or (self.within_s is not None and waited_s >= self.within_s)
        return self._is_abandoned is not None and not (is_late or self._is_abandoned())

    def _is_given_up(self) -> bool:
        return self._is_abandoned is not None and self._is_abandoned()

    async def _has_come(
        self, connection: psycopg.AsyncConnection[Any], arriving: Generator[Any, Any, None]
    ) -> bool:
        """Wait for an answer, ignoring further cancellations. Return whether it came.

        The socket is polled instead of awaited: a cancelled anyio scope cancels in each
        iteration of the loop, so waiting for the socket would never finish.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        deadline = began + PATIENCE_S
        try:
            wanted = next(arriving)
            while True:
                while not (ready := _ready(connection.pgconn.socket, wanted)):
                    if loop.time() >= deadline and not self._is_wanted(loop.time() - began):
                        return False
                    with self:
                        await asyncio.sleep(_LOOK_S)
                wanted = arriving.send(ready)
        except StopIteration:
            return True


def _ready(socket: int, wanted: int) -> int:
    """Return which of the wanted operations, in psycopg's terms, a socket is ready for."""
    events = (select.POLLIN if wanted & waiting.Wait.R else 0) | (
        select.POLLOUT if wanted & waiting.Wait.W else 0
    )
    poll = select.poll()
    poll.register(socket, events)
    found = sum(event for _, event in poll.poll(0))
    broken = found & ~(select.POLLIN | select.POLLOUT)
    ready = waiting.Ready.R if found & select.POLLIN or broken else 0
    return ready | (waiting.Ready.W if found & select.POLLOUT else 0)


def forget(connection: psycopg.AsyncConnection[Any]) -> None:
    """Restore psycopg's own ``wait`` of a connection."""
    del connection.wait
