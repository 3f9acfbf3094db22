"""Combine the commands of concurrent callers into batches: group commit.

A commit costs the same for one command as for many. Commands that are submitted while a
batch is running are therefore run together, in the next one. A caller that finds a free
lane starts at once: a single caller never waits, and there is no timer.

There is no worker thread or task. A caller leads: it takes the waiting commands, its own
first, runs the batch, gives each caller the outcome of its command, hands the lane to
the first caller in the queue, and returns. It leads only one batch.

A command that takes long, such as a search with a slow predicate or a wait for a
lock, delays its whole batch and the next one. It should not be submitted here: its caller
runs it alone, on its own connection.

This module does not know what a command is or how a batch is run.
"""

from __future__ import annotations

import asyncio
import copy
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from .. import effects
from ..effects.cancelling import CancelledCall, call_in_thread
from ..errors import InvalidInputError, OutcomeUnknownError

Command = TypeVar("Command")
Value = TypeVar("Value")

MAX_BATCH = 128
"""The default maximum number of commands in a batch."""

_PENDING: Any = object()


class _Caller:
    """One command, the means to wake its caller, and finally its outcome."""

    __slots__ = (
        "batch",
        "call",
        "cancelled",
        "certain",
        "command",
        "key",
        "outcome",
        "successor",
        "taken",
        "wake",
    )

    def __init__(self, command: Any, *, certain: bool) -> None:
        self.command = command
        self.certain = certain
        self.key: Any = None
        self.wake: Any = None
        self.call: CancelledCall | None = None
        self.cancelled: BaseException | None = None
        self.taken = False
        self.outcome = _PENDING
        # While it leads: the callers in its batch, then the next leader.
        self.batch: list[_Caller] = []
        self.successor: _Caller | None = None

    def take_outcome(self) -> Any:
        """Return the outcome and drop the reference to it."""
        outcome, self.outcome = self.outcome, None
        return outcome

    def is_abandoned(self) -> bool:
        """Return whether the caller was cancelled and the command need not be carried out."""
        if self.certain:
            return False
        return self.cancelled is not None or (self.call is not None and self.call.since is not None)


class Batch(Generic[Command]):
    """Commands that are to be run together.

    Attributes
    ----------
    commands:
        In the order of submission, or sorted by the combiner's key.
    """

    __slots__ = ("_callers", "_leader", "commands")

    def __init__(self, callers: Sequence[_Caller], leader: _Caller) -> None:
        self.commands: Sequence[Command] = [caller.command for caller in callers]
        self._callers = callers
        self._leader = leader

    @property
    def certain(self) -> bool:
        """Whether one of the commands must be carried out even if its caller is cancelled."""
        return any(caller.certain for caller in self._callers)

    def abandoned(self) -> bool:
        """Return whether every caller was cancelled and no command is certain.

        It may become true at any time. Then the batch need not be waited for.
        """
        return all(caller.is_abandoned() for caller in self._callers)

    def note(self, cancelled: asyncio.CancelledError) -> None:
        """Keep a cancellation of the leading task until its batch is done."""
        self._leader.cancelled = cancelled


class _Queue:
    """The waiting callers in order of submission, and the leader of each lane.

    While a caller waits, each lane has a leader. Threads must hold the lock to call these
    methods. An interrupted call can be made again.
    """

    def __init__(self, lanes: int, max_batch: int) -> None:
        self.lock = threading.Lock()
        self.waiting: dict[_Caller, None] = {}
        self._lanes: list[_Caller | None] = [None] * lanes
        self._max_batch = max_batch

    def enter(self, caller: _Caller) -> bool:
        """Take a free lane and return True, or join the queue and return False."""
        if None in self._lanes:
            self._lanes[self._lanes.index(None)] = caller
            return True
        self.waiting[caller] = None
        return False

    def leave(self, caller: _Caller) -> bool:
        """Leave the queue. Return whether the caller was in it."""
        return self.waiting.pop(caller, _PENDING) is None

    def leads(self, caller: _Caller) -> bool:
        """Return whether a caller has a lane."""
        return caller in self._lanes

    def has(self, caller: _Caller) -> bool:
        """Return whether a caller waits or has a lane."""
        return caller in self.waiting or self.leads(caller)

    def take(self, leader: _Caller) -> None:
        """Give a leader its batch: its own command, and as many others as fit."""
        leader.batch = [leader, *islice(self.waiting, self._max_batch - 1)]
        for caller in leader.batch:
            caller.taken = True
            self.waiting.pop(caller, None)

    def hand_over(self, leader: _Caller) -> None:
        """Give a leader's lane to the first waiting caller, if there is one."""
        leader.successor = next(iter(self.waiting), None)
        self._lanes[self._lanes.index(leader)] = leader.successor
        if leader.successor is not None:
            del self.waiting[leader.successor]


class _Combining(ABC, Generic[Command, Value]):
    """The logic common to threads and tasks: running a batch and setting its outcomes."""

    def __init__(
        self,
        *,
        max_batch: int,
        lanes: int,
        splits: Callable[[Exception], bool],
        error_for: Callable[[Command, BaseException], Exception] | None,
        key: Callable[[Command], Any] | None,
    ) -> None:
        if max_batch < 1 or lanes < 1:
            raise InvalidInputError("max_batch and lanes must be at least 1")
        self._max_batch = max_batch
        self._lanes = lanes
        self._splits = splits
        self._error_for = error_for or _default_error
        self._key = key
        self._queue = _Queue(lanes, max_batch)

    @property
    def waiting(self) -> int:
        """How many commands are waiting for a batch."""
        return len(self._queue.waiting)

    @abstractmethod
    def _wake(self, caller: _Caller) -> None:
        """Wake a waiting caller. It has no effect on one that is awake."""

    def _caller(self, command: Command, *, certain: bool) -> _Caller:
        caller = _Caller(command, certain=certain)
        if self._key is not None:
            # Computed here, so that an invalid command raises in its own caller only.
            caller.key = self._key(command)
        return caller

    def _parts(
        self, leader: _Caller
    ) -> Generator[Batch[Command], Sequence[Value | Exception], None]:
        """Request that a batch be run, as a whole, and in halves if it failed without effect."""
        if self._key is not None:
            leader.batch.sort(key=attrgetter("key"))
        parts = [leader.batch]
        while parts:
            part = parts.pop()
            try:
                outcomes = yield Batch(part, leader)
            except Exception as error:
                if not self._splits(error):
                    self._fail(part, error)
                elif len(part) == 1:
                    self._deliver(part[0], error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                self._deliver_all(part, outcomes)

    def _deliver_all(
        self, callers: Sequence[_Caller], outcomes: Sequence[Value | Exception]
    ) -> None:
        if len(outcomes) != len(callers):
            wrong = f"{len(outcomes)} outcomes were returned for {len(callers)} commands"
            self._fail(callers, RuntimeError(wrong))
            return
        for caller, outcome in zip(callers, outcomes, strict=True):
            self._deliver(caller, outcome)

    def _fail(self, callers: Sequence[_Caller], error: BaseException) -> None:
        """Set each caller's outcome to its version of an error."""
        for caller in callers:
            try:
                known = self._error_for(caller.command, error)
            except Exception as bug:
                known = bug
            # A traceback grows each time the error is raised, so callers must not share one.
            self._deliver(
                caller, _own_copy(known) if known is error and len(callers) > 1 else known
            )

    def _deliver(self, caller: _Caller, outcome: Value | Exception) -> None:
        caller.outcome = outcome
        self._wake(caller)

    def _abort(self, queue: _Queue, leader: _Caller, interruption: BaseException) -> None:
        """Make sure that nobody waits for an interrupted leader, wherever it was interrupted."""
        others = [caller for caller in leader.batch if caller is not leader]
        self._fail([caller for caller in others if caller.outcome is _PENDING], interruption)
        leader.outcome = None  # The leader raises the interruption.
        with queue.lock:
            for caller in others:
                queue.leave(caller)
            if queue.leads(leader):
                queue.hand_over(leader)
        for caller in others:
            self._wake(caller)  # again, in case the first wake-up was interrupted
        self._wake_successor(leader)

    def _wake_successor(self, leader: _Caller) -> None:
        if leader.successor is not None:
            self._wake(leader.successor)
        # An error's traceback refers to the leader. It must not keep the whole batch alive.
        leader.batch, leader.successor = [], None


class Combiner(_Combining[Command, Value]):
    """Runs the commands of threads in batches.

    It must not be called while the same thread runs a batch: not from ``run_batch``, and not from
    a signal handler or a finalizer. They would wait for the thread that they interrupt.

    Parameters
    ----------
    run_batch:
        Runs a batch in the leading thread and returns the outcome of each command in the
        order of ``batch.commands``. A returned exception is that command's own error. A
        raised exception concerns the whole batch. ``run_batch`` chooses the order of
        execution, such as releases before acquisitions.
    max_batch:
        The maximum number of commands in a batch.
    lanes:
        How many batches may run at once.
    splits:
        Returns whether a raised error means that the batch had no effect. Then it is run
        again in halves, down to the command that caused the error. By default no batch
        is split.
    error_for:
        Makes the error for one caller from what was raised for a batch that cannot be split. It
        is also called with a KeyboardInterrupt or a cancellation that interrupted the leader,
        for the commands of the others. By default each caller gets a copy of an ``Exception``,
        and an :class:`.OutcomeUnknownError` for anything else.
    key:
        Commands of a batch are sorted by this key, equal ones in the order of submission.
    """

    def __init__(
        self,
        run_batch: Callable[[Batch[Command]], Sequence[Value | Exception]],
        *,
        max_batch: int = MAX_BATCH,
        lanes: int = 1,
        splits: Callable[[Exception], bool] = lambda _: False,
        error_for: Callable[[Command, BaseException], Exception] | None = None,
        key: Callable[[Command], Any] | None = None,
    ) -> None:
        super().__init__(
            max_batch=max_batch, lanes=lanes, splits=splits, error_for=error_for, key=key
        )
        self._run_batch = run_batch
        _combiners.add(self)

    def submit(self, command: Command, *, certain: bool = False) -> Value:
        """Run a command in a batch, and return its outcome or raise its error.

        An interrupted thread leaves the queue if its command was not taken into a batch.
        Otherwise it waits for the outcome before the interruption is raised again.

        Parameters
        ----------
        certain:
            Whether to carry out the command even if the thread is interrupted while it waits.
        """
        queue = self._queue
        caller = self._caller(command, certain=certain)
        caller.call = call_in_thread.get()
        caller.wake = threading.Lock()
        caller.wake.acquire()
        try:
            with queue.lock:
                leads = queue.enter(caller)
            if not leads:
                caller.wake.acquire()
            if caller.outcome is _PENDING:
                self._lead(queue, caller)
        except BaseException as interruption:
            # A second signal may follow, such as SIGTERM, and other callers wait for this thread.
            while True:
                try:
                    self._obey(queue, caller, interruption)
                    break
                except Exception:
                    raise
                except BaseException:  # noqa: S112 - the first interruption is raised
                    continue
            raise
        outcome = caller.take_outcome()
        if isinstance(outcome, Exception):
            try:
                raise outcome
            finally:
                del outcome  # An error must not be held by its own traceback.
        answer: Value = outcome
        return answer

    def _lead(self, queue: _Queue, leader: _Caller) -> None:
        with queue.lock:
            queue.take(leader)
        effects.run(self._parts(leader), self._run_batch)
        with queue.lock:
            queue.hand_over(leader)
        self._wake_successor(leader)

    def _obey(self, queue: _Queue, caller: _Caller, interruption: BaseException) -> None:
        """Act on an interruption as soon as no other caller depends on this thread."""
        caller.cancelled = interruption
        with queue.lock:
            has_left = not caller.certain and queue.leave(caller)
            will_run = caller.taken or (caller.certain and queue.has(caller))
            must_go_on = will_run and not caller.batch
        if must_go_on:
            self._outlast(queue, caller)
        elif not has_left:
            self._abort(queue, caller, interruption)

    def _outlast(self, queue: _Queue, caller: _Caller) -> None:
        """Wait for an outcome or for the lead, ignoring further interruptions."""
        while caller.outcome is _PENDING and not queue.leads(caller):
            with suppress(BaseException):
                caller.wake.acquire()
        if caller.outcome is _PENDING:
            try:
                self._lead(queue, caller)
            except BaseException as interruption:
                self._abort(queue, caller, interruption)

    def _wake(self, caller: _Caller) -> None:
        with suppress(RuntimeError):  # The caller is awake.
            caller.wake.release()

    def start_empty(self) -> None:
        """Drop all callers and leaders: their threads do not exist in a forked child."""
        self._queue = _Queue(self._lanes, self._max_batch)


class AsyncCombiner(_Combining[Command, Value]):
    """Runs the commands of tasks of one event loop in batches.

    The parameters are those of :class:`Combiner`, but ``run_batch`` is a coroutine function.

    ``run_batch`` runs in the leading task. If that task is cancelled, ``CancelledError`` is
    raised where ``run_batch`` waits. It must keep the error with ``batch.note(error)`` and
    finish the batch, as others wait for it too. Once ``batch.abandoned()`` is true it may
    end the batch early. If it raises ``CancelledError``, the other callers of the batch get
    the error that ``error_for`` makes, and remaining parts of the batch are not run.
    """

    def __init__(
        self,
        run_batch: Callable[[Batch[Command]], Awaitable[Sequence[Value | Exception]]],
        *,
        max_batch: int = MAX_BATCH,
        lanes: int = 1,
        splits: Callable[[Exception], bool] = lambda _: False,
        error_for: Callable[[Command, BaseException], Exception] | None = None,
        key: Callable[[Command], Any] | None = None,
    ) -> None:
        super().__init__(
            max_batch=max_batch, lanes=lanes, splits=splits, error_for=error_for, key=key
        )
        self._run_batch = run_batch
        self._loop: asyncio.AbstractEventLoop | None = None

    async def submit(
        self, command: Command, *, certain: bool = False
    ) -> tuple[Value, asyncio.CancelledError | None]:
        """Run a command in a batch, or raise its error.

        Parameters
        ----------
        certain:
            Whether to carry out the command even if the task is cancelled while it waits.

        Returns
        -------
        tuple
            The outcome, and the cancellation that came too late to stop the command, or None.
            The caller raises the cancellation after it has undone the command if needed.

        Raises
        ------
        asyncio.CancelledError
            If the task was cancelled before the command was taken into a batch, so that it had
            no effect, or if the command failed, with its error as the cause.
        """
        self._check_loop()
        caller = self._caller(command, certain=certain)
        try:
            if not self._queue.enter(caller):
                await self._wait(caller)
            if caller.outcome is _PENDING:
                await self._lead(caller)
        except BaseException as interruption:
            if not self._queue.leave(caller):
                self._abort(self._queue, caller, interruption)
            raise
        outcome, cancelled = caller.take_outcome(), caller.cancelled
        if isinstance(outcome, Exception):
            try:
                if cancelled is not None:
                    raise cancelled from outcome
                raise outcome
            finally:
                del caller, outcome, cancelled  # An error must not be held by its own traceback.
        return outcome, cancelled  # type: ignore[return-value]

    async def _wait(self, caller: _Caller) -> None:
        """Wait for an outcome or for the lead."""
        caller.wake = self._loop.create_future()  # type: ignore[union-attr]
        try:
            await caller.wake
        except asyncio.CancelledError as cancelled:
            if not (caller.certain or caller.taken):
                raise
            caller.cancelled = cancelled
            await self._outlast(caller)

    async def _outlast(self, caller: _Caller) -> None:
        """Wait for an outcome or for the lead, ignoring further cancellations."""
        import anyio  # noqa: PLC0415 - only needed after a cancellation

        # A cancelled anyio scope cancels in each iteration of the loop, unless shielded.
        with anyio.CancelScope(shield=True):
            while caller.outcome is _PENDING and not self._queue.leads(caller):
                caller.wake = self._loop.create_future()  # type: ignore[union-attr]
                try:
                    await caller.wake
                except asyncio.CancelledError as cancelled:
                    caller.cancelled = cancelled

    async def _lead(self, leader: _Caller) -> None:
        self._queue.take(leader)
        await effects.run_async(self._parts(leader), self._run_batch)
        # The callers are awake, so their next commands go into the successor's batch.
        self._queue.hand_over(leader)
        self._wake_successor(leader)

    def _wake(self, caller: _Caller) -> None:
        if caller.wake is not None and not caller.wake.done():
            with suppress(RuntimeError):  # Its loop is closed.
                caller.wake.set_result(None)

    def _check_loop(self) -> None:
        """Raise an error if this is not the event loop of the first call: callers wait there."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise InvalidInputError(
                "commands are combined in the event loop of the first command; create another "
                "storage for another loop"
            )


def _default_error(_: Any, error: BaseException) -> Exception:
    """Return a caller's error if no ``error_for`` was given."""
    if isinstance(error, Exception):
        return error
    unknown = OutcomeUnknownError(
        f"the caller that carried this out was interrupted ({type(error).__name__}) before the "
        "answer, so the outcome is unknown",
        lease_id=None,
    )
    unknown.__cause__ = error
    return unknown


def _own_copy(error: Exception) -> Exception:
    """Return a copy of an error with its own traceback, or the error if it cannot be copied."""
    try:
        copied = copy.copy(error)
    except Exception:
        return error
    if type(copied) is not type(error) or copied.args != error.args:
        return error
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    if hasattr(copied, "__notes__"):
        copied.__notes__ = list(copied.__notes__)
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)


_combiners: WeakSet[Combiner[Any, Any]] = WeakSet()


def _start_empty_in_child() -> None:
    for combiner in list(_combiners):
        combiner.start_empty()


os.register_at_fork(after_in_child=_start_empty_in_child)
