"""Attend to the waiting callers of a process, in a thread or in a task.

One attendant per storage carries out the steps of :mod:`.in_turn`. While somebody waits it says
that this process is there, and serves: when it is woken, when the next lease runs out, and every
second. It listens on a connection of its own; if there can be none, as behind a pooler that lends
sessions, it looks more often instead.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context
from typing import Any
from weakref import ref

import psycopg

from ...effects import result_within, result_within_async
from ...effects.cancelling import CANCELLED, with_outcome
from ...errors import PharoxError
from ..requests import given_up
from . import in_turn
from .batch import Acquire, Unsettled, lacks_stats
from .commands import Commands
from .in_turn import Found
from .waiting import BEAT_S, UNATTENDED, Waiter, channel_of

LINGER_S = 2.0
"""How long an attendant goes on after the last waiting caller."""

POLL_S = 0.2
"""How often it looks if it cannot listen, and how long it listens at a time."""

AGAIN_S = 5.0
"""After how long it tries again to listen."""

logger = logging.getLogger("pharox")


class _Attending:
    """What attendants in threads and in tasks have in common."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.room = commands.room
        self._listens_at = 0.0

    def _is_idle(self) -> bool:
        return not self.room and time.monotonic() > self.room.emptied_at + LINGER_S

    def _leave_unattended(self) -> None:
        for waiter in self.room.queued():
            waiter.tell(UNATTENDED)

    def _channel(self) -> str:
        return channel_of(self.room.process)

    def _failed(self, what: str, error: Exception) -> None:
        logger.warning("pharox.waiting.failed: %s failed and will be tried again: %s", what, error)

    def _cannot_listen(self, error: Exception) -> None:
        self._listens_at = time.monotonic() + AGAIN_S
        logger.info("pharox.waiting.polls: cannot listen for wake-ups: %s", error)

    def _pause(self, connection: Any) -> float:
        """Return for how long to listen or sleep now; not more than 0 if it is time to look."""
        seconds = self.room.looks_at - time.monotonic()
        if connection is None:
            self.room.looks_at = min(self.room.looks_at, time.monotonic() + POLL_S)
        return min(seconds, POLL_S)


class ThreadAttendant(_Attending):
    """Attends in a daemon thread.

    Parameters
    ----------
    submit:
        Carries out a command together with those of others.
    ask:
        Runs a program.
    give_back:
        Releases a lease.
    listen:
        Opens a connection that listens to a channel.
    """

    def __init__(
        self,
        commands: Commands,
        *,
        submit: Callable[[Acquire], Any],
        ask: Callable[[Any], Any],
        give_back: Callable[..., Any],
        listen: Callable[[str], psycopg.Connection[Any]],
    ) -> None:
        super().__init__(commands)
        self._submit, self._ask = submit, ask
        self._give_back, self._listen = give_back, listen
        self._stops_at_exit = False
        self._start_alone()

    def _start_alone(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_stopped = threading.Event()
        self._process = self.room.process

    # Steps

    def ask_in_turn(self, command: Acquire) -> Any:
        """Carry out a command. Return its outcome, or that it has a ticket."""
        outcome = self._submit(command)
        if isinstance(outcome, Unsettled):
            return self._ask(self._commands.finish_acquisition(command, outcome))
        return outcome

    def look_in_turn(self, command: Acquire) -> Any:
        """Carry out a command with a predicate, as ``ask_in_turn`` does."""
        return self._ask(in_turn.look(self._commands, command))

    def attend(self) -> None:
        """Attend to the waiting callers from now on."""
        if self._process != self.room.process:  # A forked child has no thread yet.
            self._start_alone()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # Of its own: one that is ending, and may be slow to, stays told to end.
                self._is_stopped = threading.Event()
                if not self._stops_at_exit:
                    # Before the interpreter, and a server that ends with it.
                    atexit.register(_stop, ref(self))
                    self._stops_at_exit = True
                thread = threading.Thread(
                    target=self._run, args=(self._is_stopped,), name="pharox-waiting", daemon=True
                )
                thread.start()
                self._thread = thread

    def wait_for_turn(self, waiter: Waiter, seconds: float) -> Any:
        """Return what the caller is told; None if it is told nothing in time."""
        return result_within(waiter.told, seconds)

    def end_wait(self, command: Acquire) -> Any:
        """Return the outcome of a command whose time is over."""
        return self._ask(in_turn.end_wait(self._commands, command))

    def completed(self, command: Acquire, outcome: Found) -> Found:
        """Return an outcome with the statistics that were requested."""
        if lacks_stats(command, outcome):
            found: Found = self._ask(self._commands.finish_acquisition(command, outcome))
            return found
        return outcome

    def give_up_place(self, command: Acquire, *, holds: bool) -> None:
        """Give up the place of a caller who has gone, and what it was granted if it holds that."""
        try:
            held = self._ask(in_turn.give_up_place(self._commands, command, holds=holds))
        except PharoxError as error:
            self._failed("giving up a place", error)
            return
        for lease in held:
            with given_up(lease):
                self._give_back(lease, reason=CANCELLED)

    # Attending

    def stop(self) -> None:
        """End, and wait for it. Those who still wait keep their places, and have it start anew."""
        with self._lock:  # Whoever has to be attended to from now on has a thread started.
            thread, self._thread = self._thread, None
            self._is_stopped.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5)
        self._leave_unattended()

    def _run(self, is_stopped: threading.Event) -> None:
        with self._listening() as listening:
            while self._goes_on(is_stopped):
                self.room.looks_at = time.monotonic() + BEAT_S
                try:
                    self._ask(self._commands.serve())
                except (PharoxError, psycopg.Error) as error:
                    self._failed("serving", error)
                self._wait(listening(), is_stopped)

    def _goes_on(self, is_stopped: threading.Event) -> bool:
        with self._lock:
            if is_stopped.is_set():
                return False
            if self._is_idle():
                self._thread = None
                return False
            return True

    @contextmanager
    def _listening(self) -> Iterator[Callable[[], psycopg.Connection[Any] | None]]:
        """Yield what returns a connection that listens; None if there is none."""
        connection: psycopg.Connection[Any] | None = None

        def current() -> psycopg.Connection[Any] | None:
            nonlocal connection
            if connection is not None and connection.closed:
                connection = None
            if connection is None and time.monotonic() >= self._listens_at:
                try:
                    connection = self._listen(self._channel())
                except (PharoxError, psycopg.Error) as error:
                    self._cannot_listen(error)
                self.room.look_again()  # It may have been woken meanwhile.
            return connection

        try:
            yield current
        finally:
            if connection is not None:
                connection.close()

    def _wait(
        self, connection: psycopg.Connection[Any] | None, is_stopped: threading.Event
    ) -> None:
        """Wait for a wake-up, or until it is time to look."""
        while not is_stopped.is_set() and (seconds := self._pause(connection)) > 0:
            if connection is None:
                is_stopped.wait(seconds)
                continue
            try:
                if list(connection.notifies(timeout=seconds, stop_after=1)):
                    return
            except psycopg.Error as error:
                self._failed("listening", error)
                connection.close()
                return


class TaskAttendant(_Attending):
    """Attends in a task of the event loop; the parameters are as for threads."""

    def __init__(
        self,
        commands: Commands,
        *,
        submit: Callable[[Acquire], Awaitable[tuple[Any, asyncio.CancelledError | None]]],
        ask: Callable[..., Awaitable[tuple[Any, asyncio.CancelledError | None]]],
        give_back: Callable[..., Awaitable[Any]],
        listen: Callable[[str], Awaitable[psycopg.AsyncConnection[Any]]],
    ) -> None:
        super().__init__(commands)
        self._submit, self._ask = submit, ask
        self._give_back, self._listen = give_back, listen
        self._task: asyncio.Task[None] | None = None

    # Steps

    async def ask_in_turn(self, command: Acquire) -> Any:
        """Carry out a command. Return its outcome, or that it has a ticket."""
        outcome, cancelled = await self._submit(command)
        if cancelled is None and isinstance(outcome, Unsettled):
            program = self._commands.finish_acquisition(command, outcome)
            outcome, cancelled = await self._ask(program, stops="before the first step")
        return _unless(cancelled, command, outcome)

    async def look_in_turn(self, command: Acquire) -> Any:
        """Carry out a command with a predicate, as ``ask_in_turn`` does."""
        program = in_turn.look(self._commands, command)
        outcome, cancelled = await self._ask(program, stops="before the first step")
        return _unless(cancelled, command, outcome)

    def attend(self) -> None:
        """Attend to the waiting callers from now on."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            # What it takes back is attributed to nobody's job: it does so for all who wait.
            self._task = loop.create_task(self._run(), name="pharox-waiting", context=Context())

    async def wait_for_turn(self, waiter: Waiter, seconds: float) -> Any:
        """Return what the caller is told; None if it is told nothing in time."""
        return await result_within_async(waiter.told, seconds)

    async def end_wait(self, command: Acquire) -> Any:
        """Return the outcome of a command whose time is over."""
        program = in_turn.end_wait(self._commands, command)
        outcome, cancelled = await self._ask(program, stops="before the first step")
        return _unless(cancelled, command, outcome)

    async def completed(self, command: Acquire, outcome: Found) -> Found:
        """Return an outcome with the statistics that were requested."""
        if lacks_stats(command, outcome):
            program = self._commands.finish_acquisition(command, outcome)
            outcome, cancelled = await self._ask(program, stops="before the first step")
            _unless(cancelled, command, outcome)
        return outcome

    async def give_up_place(self, command: Acquire, *, holds: bool) -> None:
        """Give up the place of a caller who has gone, and what it was granted if it holds that."""
        program = in_turn.give_up_place(self._commands, command, holds=holds)
        try:
            held, _ = await self._ask(program, stops="never")
        except PharoxError as error:
            self._failed("giving up a place", error)
            return
        for lease in held:
            await self._give_back(lease)

    # Attending

    async def stop(self) -> None:
        """End, and wait for it. Those who still wait keep their places, and have it start anew."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task})
        self._leave_unattended()

    async def _run(self) -> None:
        async with self._listening() as listening:
            while not self._is_idle():
                self.room.looks_at = time.monotonic() + BEAT_S
                try:
                    _, cancelled = await self._ask(self._commands.serve(), stops="between steps")
                    if cancelled is not None:
                        raise cancelled
                except (PharoxError, psycopg.Error) as error:
                    self._failed("serving", error)
                await self._wait(await listening())

    @asynccontextmanager
    async def _listening(
        self,
    ) -> AsyncIterator[Callable[[], Awaitable[psycopg.AsyncConnection[Any] | None]]]:
        """Yield what returns a connection that listens; None if there is none."""
        connection: psycopg.AsyncConnection[Any] | None = None

        async def current() -> psycopg.AsyncConnection[Any] | None:
            nonlocal connection
            if connection is not None and connection.closed:
                connection = None
            if connection is None and time.monotonic() >= self._listens_at:
                try:
                    connection = await self._listen(self._channel())
                except (PharoxError, psycopg.Error) as error:
                    self._cannot_listen(error)
                self.room.look_again()  # It may have been woken meanwhile.
            return connection

        try:
            yield current
        finally:
            if connection is not None:
                await connection.close()

    async def _wait(self, connection: psycopg.AsyncConnection[Any] | None) -> None:
        """Wait for a wake-up, or until it is time to look."""
        while (seconds := self._pause(connection)) > 0:
            if connection is None:
                await asyncio.sleep(seconds)
                continue
            try:
                async for _ in connection.notifies(timeout=seconds, stop_after=1):
                    return
            except psycopg.Error as error:
                self._failed("listening", error)
                await connection.close()
                return


def _stop(attendant: ref[ThreadAttendant]) -> None:
    """End an attendant, if its storage is still there."""
    found = attendant()
    if found is not None:
        found.stop()


def _unless(cancelled: asyncio.CancelledError | None, command: Acquire, outcome: Any) -> Any:
    if cancelled is not None:
        if isinstance(outcome, Exception):
            raise cancelled
        raise with_outcome(cancelled, command.name, outcome)
    return outcome
