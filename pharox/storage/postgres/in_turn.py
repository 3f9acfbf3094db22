"""Acquire in turn: what a caller does who waits for a proxy.

    ask ──> granted, or a miss that waiting would not help
     └───> a ticket ──> granted, by whichever transaction of this process decides next
                   └──> its time is over: a miss

A waiting caller holds no connection. One with a predicate takes its ticket only to be woken, and
looks for itself.
"""

from __future__ import annotations

import json
import time
from asyncio import CancelledError
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast

from ...effects import Calls
from ...effects.cancelling import outcome_of
from ...errors import DatabaseUnavailableError, OutcomeUnknownError
from ...models import Lease
from ...models.ids import made_lease_id
from ..requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    SetAcquisition,
    new_leases,
)
from . import alone, limits, waiting
from .batch import (
    LOOK,
    SET,
    WAIT,
    WAIT_SET,
    Acquire,
    CommandOutcome,
    Queued,
    acquire_outcome,
    answers_of,
    command_of,
    has_predicate,
    run_of,
    runs_alone,
)
from .commands import Commands
from .driver import Program
from .sql import Query
from .waiting import Granted, Room, Waiter

Found = Acquisition | SetAcquisition


class Steps(Protocol):
    """What a storage does for a waiting caller, in its own way. Coroutines are awaited."""

    room: Room

    def ask_in_turn(self, command: Acquire) -> Any:
        """Carry out a command. Return its outcome, or that it has a ticket."""

    def look_in_turn(self, command: Acquire) -> Any:
        """Carry out a command with a predicate, as ``ask_in_turn`` does."""

    def attend(self) -> None:
        """Have somebody attend to the waiting callers from now on."""

    def wait_for_turn(self, waiter: Waiter, seconds: float) -> Any:
        """Return what the caller is told; None if it is told nothing in time."""

    def end_wait(self, command: Acquire) -> Any:
        """Return the outcome of a command whose time is over."""

    def completed(self, command: Acquire, outcome: Found) -> Any:
        """Return an outcome with the statistics that were requested."""

    def give_up_place(self, command: Acquire, *, holds: bool) -> Any:
        """Give up the place of a caller who has gone, and what it was granted if it holds that."""


def acquire(steps: Steps, request: AcquireRequest | AcquireSetRequest) -> Calls[Found]:
    """Lease a proxy or a set, waiting for it in turn."""
    until = time.monotonic() + float(request.wait_seconds or 0)
    command = waiting_command(request)
    waiter = steps.room.enter(command)
    asking = steps.look_in_turn if command.run.kind == LOOK else steps.ask_in_turn
    ask, again = partial(asking, command), partial(asking, asked_again(command))
    begun = time.monotonic()
    is_served, has_asked_again, expired = False, False, list[EndedLease]()
    try:
        outcome: Any = yield ask
        while isinstance(outcome, Queued):
            expired += outcome.expired
            waiter.queued_at = waiter.queued_at or time.monotonic()
            waiter.known_at = begun
            steps.attend()
            told = yield partial(steps.wait_for_turn, waiter, until - time.monotonic())
            begun = time.monotonic()
            if told is None:
                outcome = yield partial(steps.end_wait, command)
            elif isinstance(told, Granted):
                outcome, begun = told.outcome, told.begun
            elif told == waiting.UNATTENDED:
                waiter.listen_again()
                begun, outcome = waiter.known_at, Queued()
            else:
                waiter.listen_again()
                has_asked_again = has_asked_again or told == waiting.LOST
                try:
                    outcome = yield ask if told == waiting.LOOKS else again
                except (DatabaseUnavailableError, OutcomeUnknownError):
                    # The wait goes on. Once there is a connection, it is told what to do again.
                    begun, ask, outcome = waiter.known_at, again, Queued()
        if isinstance(outcome, Exception):
            raise outcome
        found: Found = yield partial(steps.completed, command, outcome)
        is_served = True
        if has_asked_again:
            # It may have taken another ticket just as its first was granted.
            yield partial(steps.give_up_place, command, holds=False)
        if waiter.queued_at is not None:
            found = _counted(found, begun, waiter.known_at)
        expired += [*waiter.expired, *found.expired]
        return replace(found, waited_ms=waiter.waited_ms(), expired=tuple(expired))
    except GeneratorExit:
        raise
    except BaseException as error:
        holds = waiter.queued_at is not None or _is_new(command, error)
        yield partial(steps.give_up_place, command, holds=holds)
        raise
    finally:
        steps.room.leave(waiter, is_served=is_served)


def waiting_command(request: AcquireRequest | AcquireSetRequest) -> Acquire:
    """Convert a request that waits to a command."""
    command = command_of(request)
    assert isinstance(command, Acquire)  # noqa: S101 - it is an acquisition
    kind = WAIT_SET if command.run.kind == SET else WAIT
    ticket_ids = tuple(made_lease_id() for _ in request.fallback)
    run = command.run._replace(kind=LOOK if runs_alone(request) else kind)
    return replace(command, run=run, ticket_ids=ticket_ids)


def asked_again(command: Acquire) -> Acquire:
    """Return a command that is told what was granted under its ids, if anything was."""
    return replace(command, has_own_ids=True)


def not_waiting(command: Acquire) -> Acquire:
    """Return a command that does not wait."""
    request = replace(command.request, wait_seconds=None)
    return replace(command, request=request, run=run_of(request))


def _having_waited(commands: Commands, command: Acquire) -> Acquire:
    """Return a command that does not wait, and whose event says how long it has waited."""
    plain = not_waiting(command)
    waiters = commands.room.waiters_of(command.lease_id)
    waited_ms = waiters[0].waited_ms() if waiters else None
    if waited_ms is None:
        return plain
    details = {**json.loads(plain.run.details or "{}"), "waited_ms": waited_ms}
    return replace(plain, run=plain.run._replace(details=json.dumps(details)))


def look(commands: Commands, command: Acquire) -> Program[CommandOutcome]:
    """Search for a proxy that a predicate accepts, and take a ticket if there may be one later."""
    plain = _having_waited(commands, command)
    takes_ticket = not has_predicate(plain.request)
    if takes_ticket:
        plain = replace(plain, run=plain.run._replace(kind=LOOK))
    outcome: CommandOutcome = yield from alone.acquire(
        commands, plain.request, command=plain, waits=True
    )
    if isinstance(outcome, Queued) and takes_ticket:
        return outcome
    if isinstance(outcome, Queued):
        outcomes: list[CommandOutcome] = yield from commands.carry_out((command,))
        return outcomes[0]
    yield from _leave(commands, command, is_miss=False)
    return outcome


def end_wait(commands: Commands, command: Acquire) -> Program[CommandOutcome]:
    """End the wait of a caller whose time is over. Record a miss, unless it was granted."""
    if command.run.kind == LOOK:
        yield from _leave(commands, command, is_miss=False)
        plain = _having_waited(commands, command)
        return (yield from alone.acquire(commands, plain.request, command=plain))
    outcome = yield from _leave(commands, command, is_miss=True)
    if outcome is not None:
        return outcome
    return (yield from commands.finish_acquisition(asked_again(not_waiting(command))))


def give_up_place(commands: Commands, command: Acquire, *, holds: bool) -> Program[list[Lease]]:
    """Give up the place of a caller who has gone. Return the leases that it still holds."""
    left = yield from _leave(commands, command, is_miss=False)
    # Who looks for itself may have been granted something, and have its tickets still.
    if not holds or (left is not None and command.run.kind != LOOK):
        return []
    leases = []
    for lease_id in command.lease_ids:
        lease = yield from commands.lease(str(lease_id))
        if lease is not None and lease.released_at is None:
            leases.append(lease)
    return leases


def _is_new(command: Acquire, error: BaseException) -> bool:
    """Return whether what a caller without a ticket was granted is its own, not an earlier call's.

    An interrupted caller with an id of its own may not know; it can ask again under that id.
    """
    if not command.has_own_ids:
        return True
    outcomes = outcome_of(error, command.name) if isinstance(error, CancelledError) else ()
    return any(map(new_leases, outcomes))


def _leave(
    commands: Commands, command: Acquire, *, is_miss: bool
) -> Program[CommandOutcome | None]:
    """Give up a place. Return the outcome; None if there was none to give up."""
    values = {
        "own_process": commands.room.process,
        "lease_id": command.lease_id,
        "with_stats": command.request.with_stats,
        "is_miss": is_miss,
    }
    statement = waiting.leave_statement(commands.schema)
    if command.ticket_ids:  # It looks for itself, so a miss is recorded by its last look.
        places = [command.lease_id, *command.ticket_ids]
        values = {"own_process": commands.room.process, "asked_ids": places}
        statement = waiting.leave_all_statement(commands.schema)
    answers = answers_of((yield Query(statement, values)))
    answers = yield from limits.with_limits(commands.schema, answers)
    if not answers:
        return None
    yield from commands.wake()  # What was kept for it may be for the next.
    return acquire_outcome(command, answers, commands.vault) if is_miss else Queued()


def _counted(outcome: Found, begun: float, known_at: float) -> Found:
    """Return an outcome whose leases count from a moment. They are all new to the caller.

    One that was granted unheard may be as old as the moment when its ticket was last known.
    """
    if isinstance(outcome, Acquisition):
        counts_from = begun if outcome.is_new else known_at
        return replace(outcome, is_new=True, counts_from=counts_from)
    parts = tuple(_counted(each, begun, known_at) for each in outcome.acquisitions)
    return replace(outcome, acquisitions=cast("tuple[Acquisition, ...]", parts))
