"""Whatever callers, cancellations and failures come in whatever order, nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pharox.errors import DatabaseError, OutcomeUnknownError
from pharox.storage.combining import AsyncCombiner, Batch
from tests.batches import steps


class Refused(Exception):
    """Nothing came of the batch."""


class Combined(RuleBasedStateMachine):
    """Tasks ask, are cancelled, and are answered, each when hypothesis says so."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.tasks: list[asyncio.Task[Any]] = []
        self.asked: set[int] = set()
        self.certain: set[int] = set()
        self.cancelled: set[int] = set()
        self.faulty: set[int] = set()
        self.under_way: dict[asyncio.Future[Any], Batch[int]] = {}
        self.begun: list[int] = []
        self.carried_out: list[int] = []
        self.in_doubt: set[int] = set()

    @initialize(lanes=st.integers(1, 3), max_batch=st.integers(1, 5))
    def make(self, lanes: int, max_batch: int) -> None:
        self.lanes, self.max_batch = lanes, max_batch
        self.combiner: AsyncCombiner[int, int] = AsyncCombiner(
            self.run_batch,
            lanes=lanes,
            max_batch=max_batch,
            splits=lambda error: isinstance(error, Refused),
            error_for=lambda command, _: OutcomeUnknownError("broken", lease_id=command),
        )

    async def run_batch(self, batch: Batch[int]) -> Sequence[int | Exception]:
        gate = self.loop.create_future()
        self.under_way[gate] = batch
        self.begun += [each for each in batch.commands if each not in self.begun]
        assert batch.certain == any(each in self.certain for each in batch.commands)
        while not gate.done():
            try:
                await asyncio.wait([gate])
            except asyncio.CancelledError as cancelled:
                batch.note(cancelled)
        del self.under_way[gate]
        return gate.result()  # type: ignore[no-any-return]

    def turn(self, times: int = 6) -> None:
        async def turns() -> None:
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @rule(certain=st.booleans(), faulty=st.sampled_from([False, False, True]))
    def ask(self, certain: bool, faulty: bool) -> None:
        number = len(self.tasks)
        if certain:
            self.certain.add(number)
        if faulty:
            self.faulty.add(number)
        self.tasks.append(self.loop.create_task(self.submit(number, certain)))

    async def submit(self, number: int, certain: bool) -> Any:
        self.asked.add(number)
        return await self.combiner.submit(number, certain=certain)

    @rule(times=st.integers(1, 6))
    def go_on(self, times: int) -> None:
        self.turn(times)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.tasks) - 1))
        if self.tasks[number].cancel():
            self.cancelled.add(number)

    @precondition(lambda self: self.open_gates())
    @rule(data=st.data(), breaks=st.sampled_from([False, False, False, True]))
    def answer(self, data: st.DataObject, breaks: bool) -> None:
        gate = data.draw(st.sampled_from(self.open_gates()))
        commands = self.under_way[gate].commands
        if breaks:
            self.in_doubt.update(commands)
            gate.set_exception(ConnectionError())
        elif not self.faulty.isdisjoint(commands):
            gate.set_exception(Refused())
        else:
            self.carried_out += commands
            gate.set_result([outcome_of(each) for each in commands])

    def open_gates(self) -> list[asyncio.Future[Any]]:
        return [gate for gate in self.under_way if not gate.done()]

    @invariant()
    def lanes_and_batches_are_bounded(self) -> None:
        """No more batches are under way than there are lanes, none of them too large."""
        assert len(self.under_way) <= getattr(self, "lanes", 0)
        for batch in self.under_way.values():
            assert 1 <= len(batch.commands) <= self.max_batch

    @invariant()
    def a_batch_is_abandoned_only_by_all(self) -> None:
        """While one of its tasks was not cancelled, somebody waits for it."""
        for batch in self.under_way.values():
            if batch.abandoned():
                assert self.cancelled.issuperset(batch.commands)
                assert self.certain.isdisjoint(batch.commands)

    @invariant()
    def with_one_lane_the_order_of_asking_is_kept(self) -> None:
        """What was asked first begins first."""
        if getattr(self, "lanes", 0) == 1:
            assert self.begun == sorted(self.begun)

    def teardown(self) -> None:
        """Answer all that is left: every task ends, with the outcome of its own command."""
        for _ in range(4 * len(self.tasks) + 4):
            self.turn()
            for gate in self.open_gates():
                commands = self.under_way[gate].commands
                if self.faulty.isdisjoint(commands):
                    self.carried_out += commands
                    gate.set_result([outcome_of(each) for each in commands])
                else:
                    gate.set_exception(Refused())
        self.turn()
        try:
            for number, task in enumerate(self.tasks):
                self.check(number, task)
            assert len(self.carried_out) == len(set(self.carried_out))
            if self.tasks:
                assert self.combiner.waiting == 0
                self.every_lane_is_free()
        finally:
            self.loop.close()

    def check(self, number: int, task: asyncio.Task[Any]) -> None:
        assert task.done()
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            assert number in self.cancelled
            if number in self.certain & self.asked:
                assert number in {*self.carried_out, *self.faulty, *self.in_doubt}
            # It left or failed, or else its outcome would have been returned.
            assert number not in self.carried_out or number % 5 == 0
        elif number in self.in_doubt:
            assert isinstance(error, OutcomeUnknownError)
            assert error.data == {"lease_id": number}
        elif number in self.faulty:
            assert isinstance(error, Refused)
        else:
            assert number in self.carried_out
            if number % 5 == 0:
                assert isinstance(error, DatabaseError)
                assert str(error) == str(number)
            else:
                outcome, cancelled = task.result()
                assert outcome == -number
                assert cancelled is None or number in self.cancelled

    def every_lane_is_free(self) -> None:
        before = len(self.begun)
        first = len(self.tasks)
        for number in range(first, first + self.lanes):
            self.faulty.discard(number)
            self.ask(certain=False, faulty=False)
        self.turn()
        assert len(self.begun) == before + self.lanes
        for gate in self.open_gates():
            gate.set_result([0])
        self.turn()


def outcome_of(command: int) -> int | Exception:
    return DatabaseError(str(command)) if command % 5 == 0 else -command


TestCombined = Combined.TestCase
TestCombined.settings = settings(max_examples=100, stateful_step_count=40)


@given(
    at=st.lists(st.sets(st.integers(1, 8), max_size=4), min_size=1, max_size=9),
    faulty=st.sets(st.integers(0, 8), max_size=3),
    lanes=st.integers(1, 2),
    max_batch=st.integers(1, 4),
    as_it_wakes=st.booleans(),
)
@settings(max_examples=200)
def test_tasks_cancelled_at_any_steps(
    at: list[set[int]], faulty: set[int], lanes: int, max_batch: int, as_it_wakes: bool
) -> None:
    """Each command that was not left is carried out once, or is told to be the faulty one."""
    from pharox.testing import Interrupted

    ran: list[int] = []

    async def run(batch: Batch[int]) -> list[int]:
        await steps(batch, 2)
        if not faulty.isdisjoint(batch.commands):
            raise Refused
        ran.extend(batch.commands)
        return list(batch.commands)

    combiner = AsyncCombiner(
        run,
        lanes=lanes,
        max_batch=max_batch,
        splits=lambda error: isinstance(error, Refused),
        key=lambda command: -command % 3,
    )

    async def ask(number: int) -> Any:
        asked = combiner.submit(number, certain=number % 2 == 0)
        return await Interrupted(asked, at[number], as_it_wakes=as_it_wakes)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(ask(number)) for number in range(len(at))]
        return await asyncio.gather(*tasks, return_exceptions=True)

    outcomes = asyncio.run(asyncio.wait_for(main(), 60))
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, asyncio.CancelledError):
            assert at[number]
            assert number not in ran
            assert number % 2 == 1 or number in faulty
        elif number in faulty:
            assert isinstance(outcome, Refused)
        else:
            assert outcome[0] == number
            assert ran.count(number) == 1
