"""Commands that are asked for while a batch is under way go out together, in the next one."""

from __future__ import annotations

import asyncio
import dis
import functools
import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from types import CodeType, FrameType
from typing import Any

import anyio
import pytest

from pharox import effects
from pharox.effects.cancelling import CancelledCall, call_in_thread
from pharox.errors import DatabaseError, InvalidInputError, OutcomeUnknownError
from pharox.storage import combining
from pharox.storage.combining import AsyncCombiner, Batch, Combiner
from pharox.testing import Interrupted
from tests.batches import steps


class Refused(Exception):
    """Nothing came of the batch."""


def splits(error: Exception) -> bool:
    return isinstance(error, Refused)


def turned(command: Any) -> str:
    return f"{command} done"


def in_three_steps(ran: list[str]) -> Callable[[Batch[str]], Awaitable[list[str]]]:
    """Return what runs batches, in three steps each, and adds their commands to a list."""

    async def run(batch: Batch[str]) -> list[str]:
        await steps(batch, 3)
        ran.extend(batch.commands)
        return [turned(each) for each in batch.commands]

    return run


class Server:
    """Runs batches of tasks, each when the test says so, through all cancellations."""

    def __init__(self) -> None:
        self.batches: list[Batch[Any]] = []
        self.gates: list[asyncio.Future[Any]] = []

    async def __call__(self, batch: Batch[Any]) -> Sequence[Any]:
        gate = asyncio.get_running_loop().create_future()
        self.batches.append(batch)
        self.gates.append(gate)
        while not gate.done():
            try:
                await asyncio.wait([gate])
            except asyncio.CancelledError as cancelled:
                batch.note(cancelled)
        return gate.result()  # type: ignore[no-any-return]

    @property
    def asked(self) -> list[list[Any]]:
        return [list(batch.commands) for batch in self.batches]

    async def answer(self, outcome: Any = None, *, batch: int = -1) -> None:
        """Answer a batch, the last one if not told which, and let the tasks go on."""
        answers = [turned(each) for each in self.batches[batch].commands]
        if isinstance(outcome, BaseException):
            self.gates[batch].set_exception(outcome)
        else:
            self.gates[batch].set_result(answers if outcome is None else outcome)
        await settled()


async def settled() -> None:
    """Let all tasks run until each waits for something that the test decides."""
    for _ in range(10):
        await asyncio.sleep(0)


async def asking(
    combiner: AsyncCombiner[Any, Any], *commands: Any, **options: Any
) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(combiner.submit(each, **options)) for each in commands]
    await settled()
    return tasks


def in_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), 60))

    return run


class TestTasks:
    @in_a_loop
    async def test_a_lone_caller_waits_for_nothing(self) -> None:
        """If its batch does not wait, it has its outcome within one step of its task."""

        async def run(batch: Batch[str]) -> list[str]:
            return [turned(each) for each in batch.commands]

        combiner = AsyncCombiner(run)
        for command in ("a", "b"):
            with pytest.raises(StopIteration) as end:
                combiner.submit(command).send(None)
            assert end.value.value == (turned(command), None)

    @in_a_loop
    async def test_what_is_asked_meanwhile_goes_out_together(self) -> None:
        """In the order of asking, and each caller has the outcome of its own command."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        tasks = await asking(combiner, *"abcd")
        assert server.asked == [["a"]]
        assert combiner.waiting == 3
        await server.answer()
        assert server.asked == [["a"], ["b", "c", "d"]]
        assert combiner.waiting == 0
        await server.answer()
        assert await asyncio.gather(*tasks) == [(turned(each), None) for each in "abcd"]

    @in_a_loop
    async def test_a_leader_serves_one_batch(self) -> None:
        """Then it returns, though others wait, and the first of them leads."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, max_batch=2)
        first, *others = await asking(combiner, *"abcd")
        await server.answer()
        assert first.done()
        assert server.asked == [["a"], ["b", "c"]]
        late = await asking(combiner, "e")
        await server.answer()
        assert [each.done() for each in others] == [True, True, False]
        assert server.asked[2:] == [["d", "e"]]
        await server.answer()
        await asyncio.gather(*others, *late)

    @in_a_loop
    async def test_as_many_batches_are_under_way_as_there_are_lanes(self) -> None:
        """A lane that gets free takes what waits; no batch goes out beside them."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, lanes=2)
        tasks = await asking(combiner, *"abcd")
        assert server.asked == [["a"], ["b"]]
        await server.answer(batch=1)
        assert server.asked[2:] == [["c", "d"]]
        late = await asking(combiner, "e")
        assert len(server.asked) == 3
        await server.answer(batch=0)
        assert server.asked[3:] == [["e"]]
        await server.answer(batch=2)
        await server.answer(batch=3)
        assert await asyncio.gather(*tasks, *late) == [(turned(each), None) for each in "abcde"]

    @in_a_loop
    async def test_alike_commands_stand_together(self) -> None:
        """They are sorted by the key, and otherwise stay in the order of asking."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, key=lambda command: command[0])
        tasks = await asking(combiner, "x", "b1", "a2", "b3", "a4")
        await server.answer()
        assert server.asked[1] == ["a2", "a4", "b1", "b3"]
        await server.answer()
        assert [outcome for outcome, _ in await asyncio.gather(*tasks[1:])] == [
            turned(each) for each in ("b1", "a2", "b3", "a4")
        ]
        with pytest.raises(IndexError):
            await combiner.submit("")

    @in_a_loop
    async def test_a_command_may_fail_alone(self) -> None:
        """An exception among the outcomes is raised for the caller of that command."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        lead, *tasks = await asking(combiner, *"abc")
        await server.answer()
        await server.answer([DatabaseError("not b"), "c is done"])
        assert await lead == (turned("a"), None)
        with pytest.raises(DatabaseError, match="not b"):
            await tasks[0]
        assert await tasks[1] == ("c is done", None)

    @in_a_loop
    async def test_a_batch_that_comes_to_nothing_is_halved(self) -> None:
        """Down to the command that is to blame, in the order of asking; the others succeed."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, splits=splits)
        tasks = await asking(combiner, *"xabcde")
        await server.answer()
        for _ in range(9):
            if not tasks[-1].done():
                refused = "d" in server.batches[-1].commands
                await server.answer(Refused() if refused else None)
        asked = ["".join(each) for each in server.asked]
        assert asked == ["x", "abcde", "ab", "cde", "c", "de", "d", "e"]
        with pytest.raises(Refused):
            await tasks.pop(4)
        assert [outcome for outcome, _ in await asyncio.gather(*tasks)] == [
            turned(each) for each in "xabce"
        ]

    @in_a_loop
    async def test_a_batch_that_cannot_be_split_fails_each_caller(self) -> None:
        """Each is told what that means for its own command, and nothing is asked again."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(
            server,
            splits=splits,
            error_for=lambda command, error: OutcomeUnknownError(f"{error}", lease_id=command),
        )
        tasks = await asking(combiner, *"xabc")
        await server.answer()
        await server.answer(ConnectionError("it broke"))
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [getattr(each, "lease_id", None) for each in outcomes] == [None, *"abc"]
        assert len(server.asked) == 2

    @in_a_loop
    async def test_each_caller_has_an_instance_of_an_error(self) -> None:
        """It is the same otherwise, and only its own caller's frames are in its traceback."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        tasks = await asking(combiner, *"xabc")
        await server.answer()
        error = DatabaseError("no space", disk="sda")
        error.__cause__ = OSError(28, "ENOSPC")
        error.add_note("buy one")
        await server.answer(error)
        errors = [each.exception() for each in tasks[1:]]
        assert {id(each) for each in [*errors, error]} == {*map(id, errors), id(error)}
        assert len(set(map(id, errors))) == 3
        for each in errors:
            assert isinstance(each, DatabaseError)
            assert (str(each), each.data, each.__cause__) == (
                "no space",
                {"disk": "sda"},
                error.__cause__,
            )
            assert each.__notes__ == ["buy one"]
            each.add_note("soon")
            assert sum(name == "submit" for name in frames(each)) == 1

    @in_a_loop
    async def test_an_error_that_cannot_be_copied_is_told_all_the_same(self) -> None:
        """Then all callers have the same one."""

        class Odd(Exception):
            def __init__(self, *, code: int) -> None:
                super().__init__(f"code {code}")

        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        tasks = await asking(combiner, *"xab")
        await server.answer()
        await server.answer(Odd(code=3))
        outcomes = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert [str(each) for each in outcomes] == ["code 3", "code 3"]

    @in_a_loop
    async def test_a_wrong_number_of_outcomes_is_an_error(self) -> None:
        """Nobody is told the outcome of somebody else, and nothing is asked twice."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, splits=lambda _: True)
        tasks = await asking(combiner, *"xab")
        await server.answer()
        await server.answer(["only one"])
        for task in tasks[1:]:
            with pytest.raises(RuntimeError, match="1 outcomes were returned for 2 commands"):
                await task
        assert len(server.asked) == 2

    @in_a_loop
    async def test_a_mistake_in_error_for_leaves_nobody_waiting(self) -> None:
        """It is what the callers are told."""

        def mistaken(command: str, error: BaseException) -> Exception:
            raise LookupError(command)

        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server, error_for=mistaken)
        tasks = await asking(combiner, *"xab")
        await server.answer()
        await server.answer(ConnectionError())
        for task, command in zip(tasks[1:], "ab", strict=True):
            with pytest.raises(LookupError, match=command):
                await task

    @in_a_loop
    async def test_keys_that_cannot_be_sorted_leave_nobody_waiting(self) -> None:
        """The batch fails, and the next one is run."""
        server = Server()
        combiner: AsyncCombiner[Any, str] = AsyncCombiner(server, key=lambda command: command)
        tasks = await asking(combiner, "x", "a", 1)
        await server.answer()
        outcomes = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert [type(each) for each in outcomes] == [TypeError, TypeError]
        (late,) = await asking(combiner, "y")
        await server.answer()
        assert await late == (turned("y"), None)

    @in_a_loop
    async def test_another_loop_is_refused(self) -> None:
        """Its tasks could not be woken."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        (lead,) = await asking(combiner, "a")

        def elsewhere() -> None:
            with pytest.raises(InvalidInputError, match="event loop"):
                asyncio.run(combiner.submit("b"))

        await asyncio.to_thread(elsewhere)
        await server.answer()
        assert await lead == (turned("a"), None)

    @pytest.mark.parametrize("figures", [{"lanes": 0}, {"max_batch": 0}])
    def test_a_combiner_that_could_run_nothing_is_refused(self, figures: dict[str, int]) -> None:
        """Its callers would wait for ever."""
        with pytest.raises(InvalidInputError, match="at least 1"):
            AsyncCombiner(Server(), **figures)  # type: ignore[arg-type]

    @in_a_loop
    async def test_nothing_is_kept_of_a_command(self) -> None:
        """Once its caller has its outcome or its error, both are gone, without the collector."""

        class Kept(str):
            __slots__ = ("__weakref__",)

        async def ask(command: Kept) -> None:
            try:
                outcome, _ = await combiner.submit(command)
            except DatabaseError:
                return
            kept.add(outcome)

        async def run(batch: Batch[Kept]) -> list[Kept]:
            await asyncio.sleep(0)
            if "fails" in batch.commands:
                raise DatabaseError("no")
            return [Kept(turned(each)) for each in batch.commands]

        kept: weakref.WeakSet[Kept] = weakref.WeakSet()
        combiner = AsyncCombiner(run, max_batch=3)
        gc.disable()
        try:
            commands = [Kept(each) for each in ("a", "b", "fails", "c", "d", "e")]
            for each in commands:
                kept.add(each)
            tasks = [asyncio.create_task(ask(each)) for each in commands]
            await asyncio.wait(tasks)
            del commands, tasks, each
            await settled()
            assert list(kept) == []
        finally:
            gc.enable()


def frames(error: BaseException) -> list[str]:
    traceback, names = error.__traceback__, []
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    return names


class TestCancelledTasks:
    @in_a_loop
    async def test_one_that_waits_in_the_queue_leaves_at_once(self) -> None:
        """Its command is never run."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        tasks = await asking(combiner, *"abc")
        tasks[1].cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await tasks[1]
        await server.answer()
        assert server.asked == [["a"], ["c"]]
        await server.answer()
        assert await tasks[2] == (turned("c"), None)

    @in_a_loop
    async def test_a_certain_command_stays_in_the_queue(self) -> None:
        """It is run, and its outcome is returned with the cancellation."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        (lead,) = await asking(combiner, "a")
        (task,) = await asking(combiner, "b", certain=True)
        for message in ("once", "twice"):
            task.cancel(message)
            await settled()
        assert not task.done()
        await server.answer()
        await server.answer()
        outcome, cancelled = await task
        assert (outcome, str(cancelled)) == (turned("b"), "twice")
        assert await lead == (turned("a"), None)

    @in_a_loop
    async def test_one_whose_command_is_under_way_waits_for_its_outcome(self) -> None:
        """The outcome is returned with the last cancellation; an error is its cause."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        _, lead, done, failed = await asking(combiner, *"abcd")
        await server.answer()
        for message in ("once", "twice"):
            done.cancel(message)
            failed.cancel(message)
            await settled()
        assert not done.done()
        assert not failed.done()
        await server.answer(["b", "c", DatabaseError("not d")])
        assert await lead == ("b", None)
        outcome, cancelled = await done
        assert (outcome, str(cancelled)) == ("c", "twice")
        with pytest.raises(asyncio.CancelledError, match="twice") as caught:
            await failed
        assert isinstance(caught.value.__cause__, DatabaseError)

    @in_a_loop
    async def test_a_leader_finishes_its_batch(self) -> None:
        """It hands the lane on, and returns its outcome with the cancellation."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        lead, follower = await asking(combiner, *"ab")
        lead.cancel("enough")
        await settled()
        assert not lead.done()
        await server.answer()
        outcome, cancelled = await lead
        assert (outcome, str(cancelled)) == (turned("a"), "enough")
        await server.answer()
        assert await follower == (turned("b"), None)

    @pytest.mark.parametrize("certain", [False, True])
    @in_a_loop
    async def test_one_that_was_to_lead_next(self, *, certain: bool) -> None:
        """Cancelled before it began, it hands the lane on, unless its command must happen."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        lead, heir = [*await asking(combiner, "a"), *await asking(combiner, "b", certain=certain)]
        (last,) = await asking(combiner, "c")
        server.gates[0].set_result(["a"])
        while not lead.done():
            await asyncio.sleep(0)
        heir.cancel()
        await settled()
        assert server.asked[1:] == ([["b", "c"]] if certain else [["c"]])
        await server.answer()
        assert await last == (turned("c"), None)
        if certain:
            outcome, cancelled = await heir
            assert outcome == turned("b")
            assert isinstance(cancelled, asyncio.CancelledError)
        else:
            with pytest.raises(asyncio.CancelledError):
                await heir

    @in_a_loop
    async def test_a_batch_is_abandoned_when_all_its_callers_are_cancelled(self) -> None:
        """Not before, and never if one of its commands must happen."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        tasks = await asking(combiner, *"abc")
        await server.answer()
        batch = server.batches[-1]
        assert not batch.certain
        for task in tasks[1:]:
            assert not batch.abandoned()
            task.cancel()
            await settled()
        assert batch.abandoned()
        tasks += await asking(combiner, "d", certain=True)
        await server.answer()
        tasks[-1].cancel()
        await settled()
        assert server.batches[-1].certain
        assert not server.batches[-1].abandoned()
        await server.answer()
        await asyncio.wait(tasks)

    @in_a_loop
    async def test_a_batch_that_a_cancellation_ends_is_told_to_the_others(self) -> None:
        """If run_batch obeys, their outcome is not known; who waits is served next."""

        async def run(batch: Batch[str]) -> list[str]:
            if "b" in batch.commands:
                await asyncio.get_running_loop().create_future()
            await asyncio.sleep(0)
            return [turned(each) for each in batch.commands]

        combiner = AsyncCombiner(run)
        _, lead, follower = await asking(combiner, *"abc")
        (late,) = await asking(combiner, "d")
        lead.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lead
        with pytest.raises(OutcomeUnknownError, match="CancelledError"):
            await follower
        assert await late == (turned("d"), None)

    @in_a_loop
    async def test_a_leader_whose_coroutine_is_closed_leaves_nobody_waiting(self) -> None:
        """The others of its batch are told, and the next one is led by who waits."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        await asking(combiner, "a")
        leading = combiner.submit("b")
        waited_for = leading.send(None)
        followers = await asking(combiner, "c")
        await server.answer()
        assert waited_for.done()
        leading.send(None)
        (late,) = await asking(combiner, "d")
        assert server.asked[1:] == [["b", "c"]]
        leading.close()
        with pytest.raises(OutcomeUnknownError, match="GeneratorExit"):
            await followers[0]
        await settled()
        assert server.asked[2:] == [["d"]]
        await server.answer()
        assert await late == (turned("d"), None)

    def test_a_loop_that_was_closed_is_no_error_of_its_own(self) -> None:
        """Tasks that are left to it can be closed in any order."""
        combiner: AsyncCombiner[str, str] = AsyncCombiner(Server())
        loop = asyncio.new_event_loop()
        left: list[Any] = []

        async def main() -> None:
            left.extend(await asking(combiner, *"abc"))

        loop.run_until_complete(main())
        loop.close()
        for each in left:
            each._log_destroy_pending = False
            each.get_coro().close()
        assert combiner.waiting == 0

    @in_a_loop
    async def test_a_scope_of_anyio_does_not_keep_the_loop_busy(self) -> None:
        """It cancels in each turn of the loop; a caller that waits on is kept from that."""
        server = Server()
        combiner: AsyncCombiner[str, str] = AsyncCombiner(server)
        outcomes: list[Any] = []

        async def ask() -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                outcomes.append(await combiner.submit("b", certain=True))
                await anyio.sleep(60)
            assert scope.cancelled_caught

        scopes: list[anyio.CancelScope] = []
        (lead,) = await asking(combiner, "a")
        task = asyncio.create_task(ask())
        await settled()
        scopes[0].cancel()
        await settled()
        before = steps_of(task)
        for _ in range(50):
            await asyncio.sleep(0)
        assert steps_of(task) == before
        assert len(asyncio.get_running_loop()._ready) == 0  # type: ignore[attr-defined]
        await server.answer()
        await server.answer()
        await task
        assert outcomes[0][0] == turned("b")
        assert isinstance(outcomes[0][1], asyncio.CancelledError)
        await lead

    @pytest.mark.parametrize("certain", [False, True])
    @pytest.mark.parametrize("as_it_wakes", [False, True])
    @pytest.mark.parametrize("place", range(6))
    def test_cancelled_at_every_step(self, place: int, *, as_it_wakes: bool, certain: bool) -> None:
        """Wherever one task is cancelled, the others have their outcomes; twice and thrice too."""
        for at in ([1], [2], [3], [4], [5], [1, 2], [2, 3], [1, 2, 3, 4], [*range(1, 30)]):
            asyncio.run(
                asyncio.wait_for(self._cancelled(place, at, certain, as_it_wakes=as_it_wakes), 60)
            )

    async def _cancelled(
        self, place: int, at: list[int], certain: bool, *, as_it_wakes: bool
    ) -> None:
        ran: list[str] = []
        combiner = AsyncCombiner(in_three_steps(ran), max_batch=2)

        async def ask(command: str) -> Any:
            submitted = combiner.submit(command, certain=certain)
            if command == "abcdef"[place]:
                return await Interrupted(submitted, at, as_it_wakes=as_it_wakes)
            return await submitted

        tasks = [asyncio.create_task(ask(each)) for each in "abcdef"]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        outcome = outcomes.pop(place)
        others = "abcdef".replace("abcdef"[place], "")
        assert outcomes == [(turned(each), None) for each in others]
        assert sorted(ran) == ran
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, asyncio.CancelledError)
            assert not certain
            assert "".join(ran) == others
        else:
            assert outcome[0] == turned("abcdef"[place])
            assert "".join(ran) == "abcdef"
        assert await combiner.submit("g") == (turned("g"), None)

    @pytest.mark.parametrize("turns", range(12))
    def test_a_loop_that_shuts_down_loses_nobody(self, turns: int) -> None:
        """Each task has its outcome or was cancelled before its command was taken."""
        ran: list[str] = []
        told: list[str] = []
        combiner = AsyncCombiner(in_three_steps(ran), max_batch=2)

        async def ask(command: str, *, certain: bool) -> None:
            outcome, _ = await combiner.submit(command, certain=certain)
            assert outcome == turned(command)
            told.append(command)

        async def main() -> None:
            for command in "abcdef":
                tasks.append(asyncio.create_task(ask(command, certain=command in "ce")))
            for _ in range(turns):
                await asyncio.sleep(0)

        tasks: list[asyncio.Task[None]] = []
        asyncio.run(main())
        assert all(task.done() for task in tasks)
        assert sorted(told) == sorted(ran)
        if turns > 0:
            assert {*"ce"} <= {*ran}
        assert combiner.waiting == 0


def steps_of(task: asyncio.Task[Any]) -> Any:
    """Return what a task waits for: another thing after each step of it."""
    coroutine: Any = task.get_coro()
    while getattr(coroutine, "cr_await", None) is not None:
        coroutine = coroutine.cr_await
    return coroutine


class Gated:
    """Runs batches of threads, each when the test says so."""

    def __init__(self) -> None:
        self.batches: list[Batch[Any]] = []
        self._answers: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, batch: Batch[Any]) -> Sequence[Any]:
        with self._changed:
            number = len(self.batches)
            self.batches.append(batch)
            assert self._changed.wait_for(lambda: len(self._answers) > number, 60)
            answer = self._answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return [turned(each) for each in batch.commands] if answer is None else answer

    @property
    def asked(self) -> list[list[Any]]:
        return [list(batch.commands) for batch in self.batches]

    def answer(self, *answers: Any) -> None:
        """Answer the next batches, whether they have been asked or not."""
        with self._changed:
            self._answers += answers
            self._changed.notify_all()


class Asking(threading.Thread):
    """A thread that asks for one command, and what it was told."""

    def __init__(
        self, combiner: Combiner[Any, Any], command: Any, call: CancelledCall | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.command = command
        self._combiner = combiner
        self._call = call
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        call_in_thread.set(self._call)
        try:
            self.outcome = self._combiner.submit(self.command)
        except BaseException as error:
            self.outcome = error

    def told(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.outcome


def until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def asking_threads(combiner: Combiner[Any, Any], server: Gated, *commands: Any) -> list[Asking]:
    """Have threads ask, one after the other; the first of all leads at once."""
    threads = []
    for command in commands:
        before = combiner.waiting, len(server.asked)
        threads.append(Asking(combiner, command))
        until(lambda before=before: (combiner.waiting, len(server.asked)) != before)  # type: ignore[misc]
    return threads


class Stop(BaseException):
    """What interrupts a thread, as Ctrl-C does."""


class TestThreads:
    def test_what_is_asked_meanwhile_goes_out_together(self) -> None:
        """In the order of asking; a leader serves one batch, and the first who waits leads next."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server, max_batch=3)
        threads = asking_threads(combiner, server, *"abcdef")
        server.answer(None)
        assert threads[0].told() == turned("a")
        until(lambda: len(server.asked) == 2)
        server.answer(None)
        assert [each.told() for each in threads[1:4]] == [turned(each) for each in "bcd"]
        server.answer(None)
        assert [each.told() for each in threads[4:]] == [turned(each) for each in "ef"]
        assert server.asked == [["a"], ["b", "c", "d"], ["e", "f"]]

    def test_as_many_batches_are_under_way_as_there_are_lanes(self) -> None:
        """What is asked beside them waits for a lane."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server, lanes=2)
        threads = asking_threads(combiner, server, *"abcd")
        assert server.asked == [["a"], ["b"]]
        server.answer(None)
        until(lambda: len(server.asked) == 3)
        assert server.asked[2] == ["c", "d"]
        server.answer(None, None)
        assert [each.told() for each in threads] == [turned(each) for each in "abcd"]

    def test_errors_are_those_of_their_commands(self) -> None:
        """One that concerns a batch is split, or told to each caller in a copy of its own."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server, splits=splits)
        threads = asking_threads(combiner, server, *"abc")
        server.answer(None, Refused(), Refused(), ["c is done"])
        assert [type(each.told()) for each in threads] == [str, Refused, str]
        assert server.asked == [["a"], ["b", "c"], ["b"], ["c"]]
        threads = asking_threads(combiner, server, *"def")
        server.answer(None, DatabaseError("no space"))
        told = [each.told() for each in threads[1:]]
        assert [str(each) for each in told] == ["no space", "no space"]
        assert told[0] is not told[1]

    def test_a_leader_that_is_interrupted_leaves_nobody_waiting(self) -> None:
        """The others of its batch are told that nothing is known; who waits is served next."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server)
        threads = asking_threads(combiner, server, *"abc")
        server.answer(None)
        until(lambda: len(server.asked) == 2)
        threads += asking_threads(combiner, server, "d")
        server.answer(KeyboardInterrupt(), None)
        told = [each.told() for each in threads]
        assert isinstance(told[1], KeyboardInterrupt)
        assert isinstance(told[2], OutcomeUnknownError)
        assert told[2].__cause__ is told[1]
        assert told[3] == turned("d")

    def test_error_for_says_what_an_interruption_means(self) -> None:
        """It is asked for each command of the others."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(
            server, error_for=lambda command, error: DatabaseError(f"{command}: {error!r}")
        )
        threads = asking_threads(combiner, server, *"abc")
        server.answer(None, SystemExit(3))
        told = [each.told() for each in threads]
        assert isinstance(told[1], SystemExit)
        assert str(told[2]) == "c: SystemExit(3)"

    def test_a_batch_is_abandoned_when_all_its_callers_are_cancelled(self) -> None:
        """The task behind a thread may be, or the thread may be interrupted."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server)
        call = CancelledCall()
        threads = [*asking_threads(combiner, server, "a"), Asking(combiner, "b", call)]
        until(lambda: combiner.waiting == 1)

        def is_under_way() -> bool:
            until(lambda: combiner.waiting == 2)
            server.answer(None)
            until(lambda: len(server.batches) == 2)
            assert call.begin()
            call.cancel()
            assert not server.batches[1].abandoned()
            return True

        def interrupted() -> None:
            until(server.batches[1].abandoned)
            server.answer(None)

        with interrupted_when(is_under_way, then=interrupted), pytest.raises(Stop):
            combiner.submit("c")
        assert [each.told() for each in threads] == [turned("a"), turned("b")]

    def test_an_interrupted_thread_leaves_the_queue(self) -> None:
        """Its command is never run, unless it must happen."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server)
        threads = asking_threads(combiner, server, "a")
        with interrupted_when(lambda: combiner.waiting == 1), pytest.raises(Stop):
            combiner.submit("b")
        assert combiner.waiting == 0
        with (
            interrupted_when(lambda: combiner.waiting == 1, then=lambda: server.answer(None, None)),
            pytest.raises(Stop),
        ):
            combiner.submit("c", certain=True)
        assert server.asked == [["a"], ["c"]]
        assert threads[0].told() == turned("a")

    def test_an_interrupted_thread_whose_command_is_under_way_waits_for_it(self) -> None:
        """Twice interrupted, it still does; then the interruption goes on."""
        server = Gated()
        combiner: Combiner[str, str] = Combiner(server)
        threads = asking_threads(combiner, server, *"ab")

        def is_under_way() -> bool:
            until(lambda: combiner.waiting == 2)
            server.answer(None)
            until(lambda: len(server.asked) == 2)
            return True

        def answer() -> None:
            assert server.asked[1] == ["b", "c"]
            server.answer(None)

        with interrupted_when(is_under_way, then=answer, times=2), pytest.raises(Stop):
            combiner.submit("c")
        assert [each.told() for each in threads] == [turned("a"), turned("b")]

    @pytest.mark.parametrize("place", ["first", "leads others", "follows"])
    @pytest.mark.parametrize("certain", [False, True])
    def test_interrupted_at_every_instruction(self, place: str, *, certain: bool) -> None:
        """Wherever a signal may interrupt a thread, nobody is left waiting, and no lane is lost."""
        interrupted = 0
        for step in count(1):
            if not self._interrupted_at([step], place, certain=certain):
                break
            interrupted += 1
        assert interrupted > 10

    @pytest.mark.parametrize("place", ["first", "leads others", "follows"])
    def test_interrupted_twice(self, place: str) -> None:
        """Nor if a second signal comes before the thread has obeyed the first."""
        again = 0
        for step in count(1, 3):
            for second in count(1):
                interrupted = self._interrupted_at([step, second], place, certain=False)
                if interrupted < 2:
                    break
                again += 1
            if interrupted == 0:
                break
        assert again > 5

    def _interrupted_at(self, steps: list[int], place: str, *, certain: bool) -> int:
        ran: list[str] = []
        begun, go_on = threading.Event(), threading.Event()

        def run(batch: Batch[str]) -> list[str]:
            if "victim" in batch.commands:
                others.append(Asking(combiner, "after"))
                until(lambda: combiner.waiting >= 1)
            begun.set()
            assert go_on.wait(60)
            ran.extend(batch.commands)
            return [turned(each) for each in batch.commands]

        class Interruptible(Combiner[Any, Any]):
            def _obey(self, *interrupted: Any) -> None:
                with interrupting_at(*steps[1:2]) as was_interrupted:
                    happened.append(was_interrupted)
                    del steps[1:]
                    super()._obey(*interrupted)

        happened: list[list[int]] = []
        combiner = Interruptible(run, max_batch=3)
        others: list[Asking] = []
        is_gone = threading.Event()

        def come_after(before: int) -> None:
            until(lambda: combiner.waiting == before + 1 or is_gone.is_set())
            others.extend(Asking(combiner, each) for each in ("one", "two", "three"))
            until(lambda: combiner.waiting == before + 4 or is_gone.is_set())
            go_on.set()

        helper = threading.Thread(target=come_after, args=(1 if place == "follows" else 0,))
        if place == "first":
            go_on.set()
        else:
            others.append(Asking(combiner, "before"))
            assert begun.wait(60)
            if place == "follows":
                others.append(Asking(combiner, "leads"))
                until(lambda: combiner.waiting == 1)
            helper.start()
        try:
            with interrupting_at(steps[0]) as was_interrupted:
                happened.append(was_interrupted)
                outcome: Any = combiner.submit("victim", certain=certain)
        except Stop as stop:
            outcome = stop
        is_gone.set()
        go_on.set()
        if helper.ident is not None:
            helper.join(60)
        for other in others:
            told = other.told()
            assert told == turned(other.command) or isinstance(told, OutcomeUnknownError)
        assert combiner.waiting == 0
        last = Asking(combiner, "last")
        assert last.told() == turned("last")
        assert len(ran) == len(set(ran))
        if was_interrupted:
            assert isinstance(outcome, Stop)
        else:
            assert outcome == turned("victim")
            assert all(isinstance(other.told(), str) for other in others)
        return sum(map(len, happened))

    def test_a_forked_child_starts_empty(self) -> None:
        """Forked while a batch is under way and others wait, the child waits for none of them."""
        done = subprocess.run(
            [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.split() == ["child", "b", "a"]

    @pytest.mark.parametrize("lanes", [1, 3])
    def test_many_threads(self, lanes: int) -> None:
        """Each has the outcomes of its own commands, each run once, whatever fails beside them."""
        under_way, most = [0], [0]
        ran: list[int] = []
        lock = threading.Lock()

        def run(batch: Batch[int]) -> list[Any]:
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            try:
                time.sleep(0)
                if any(command % 97 == 0 for command in batch.commands):
                    raise Refused
                if any(command % 31 == 0 for command in batch.commands):
                    raise ConnectionError
                with lock:
                    ran.extend(batch.commands)
                return [
                    DatabaseError(str(each)) if each % 7 == 0 else -each for each in batch.commands
                ]
            finally:
                with lock:
                    under_way[0] -= 1

        combiner: Combiner[int, int] = Combiner(run, lanes=lanes, splits=splits, max_batch=8)
        wrong: list[Any] = []

        def work(commands: range) -> None:
            for command in commands:
                try:
                    outcome: Any = combiner.submit(command)
                except Exception as error:
                    outcome = error
                if not right(command, outcome):
                    wrong.append((command, outcome))

        def right(command: int, outcome: Any) -> bool:
            if isinstance(outcome, ConnectionError):
                return command not in ran
            if command % 97 == 0:
                return isinstance(outcome, Refused)
            if command % 7 == 0:
                return isinstance(outcome, DatabaseError) and str(outcome) == str(command)
            return bool(outcome == -command)

        threads = [
            threading.Thread(target=work, args=(range(1 + 100 * i, 101 + 100 * i),), daemon=True)
            for i in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert wrong == []
        assert len(ran) == len(set(ran))
        assert most[0] <= lanes


@contextmanager
def interrupted_when(
    is_so: Callable[[], bool], then: Callable[[], None] = lambda: None, times: int = 1
) -> Iterator[None]:
    """Have a signal interrupt the main thread when something is so, as Ctrl-C would."""
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        caught.append(number)
        raise Stop

    def interrupt() -> None:
        until(is_so)
        for time_ in range(times):
            signal.pthread_kill(main, signal.SIGUSR1)
            until(lambda time_=time_: len(caught) > time_)  # type: ignore[misc]
        then()

    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, handler)
    helper = threading.Thread(target=interrupt)
    helper.start()
    try:
        yield
    finally:
        helper.join()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def interrupting_at(step: int = 0) -> Iterator[list[int]]:
    """Raise :class:`Stop` in this thread's n-th instruction before which CPython heeds signals.

    Counted are those of the combiner, and of what runs its programs.
    """
    happened: list[int] = []
    seen = count(1)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in heeding(frame.f_code) and next(seen) == step:
            happened.append(frame.f_lineno)
            raise Stop
        return trace

    sys.settrace(trace)
    try:
        yield happened
    finally:
        sys.settrace(None)


FILES = {combining.__file__, effects.__file__}


@functools.cache
def heeding(code: CodeType) -> frozenset[int]:
    """Return the instructions before which a signal may be heeded: after calls, and in loops."""
    offsets, before = set(), ""
    for instruction in dis.get_instructions(code):
        is_after_call = before.startswith("CALL") and not before.startswith("CALL_INTRINSIC")
        if is_after_call or before == "RESUME" or instruction.opname == "JUMP_BACKWARD":
            offsets.add(instruction.offset)
        before = instruction.opname
    return frozenset(offsets)


FORK = """
import os, threading, time
from pharox.storage.combining import Combiner

begun, done = threading.Event(), threading.Event()

def run(batch):
    if os.getpid() == parent:
        begun.set()
        assert done.wait(30)
    return list(batch.commands)

parent = os.getpid()
combiner = Combiner(run)
told = []
leads = threading.Thread(target=lambda: told.append(combiner.submit("a")))
leads.start()
assert begun.wait(30)
waits = threading.Thread(target=lambda: told.append(combiner.submit("x")))
waits.start()
while combiner.waiting == 0:
    time.sleep(0.001)
child = os.fork()
if child == 0:
    assert combiner.waiting == 0
    print("child", combiner.submit("b"), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert combiner.waiting == 1
done.set()
leads.join(30)
waits.join(30)
assert sorted(told) == ["a", "x"]
print("a")
"""
