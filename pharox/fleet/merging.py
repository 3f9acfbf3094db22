"""Read all ledgers side by side. One that is down is named, and keeps nobody from the others.

Nothing is read in one transaction: each ledger's part is of its own moment, and ordered by its own
``seq``. What is merged by time goes by the clocks of several servers.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from ..effects import Calls, call, call_async, run, run_async
from ..effects.limiting import answers_within
from .ledgers import Ledger, in_ledger

L = TypeVar("L")
T = TypeVar("T")
_END_OF_TIME = datetime(9000, 1, 1, tzinfo=UTC)
MOST_AT_ONCE = 32
"""How many ledgers are read at the same time; each takes a thread, or a task."""


class InLedger(NamedTuple, Generic[T]):
    """Something that was read (``value``) of one ledger, by its name."""

    ledger: str
    value: T


@dataclass(frozen=True)
class Merged(Generic[T]):
    """What was read of all ledgers, in order, and which of them are missing.

    Attributes
    ----------
    rows:
        What was read, each with its ledger.
    missing:
        Why a ledger is not in it, by its name.
    """

    rows: Sequence[InLedger[T]]
    missing: Mapping[str, Exception] = field(default_factory=dict)

    def __iter__(self) -> Iterator[InLedger[T]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """A ledger in numbers.

    Attributes
    ----------
    pools, leases:
        How many pools it has, and how many active leases these have.
    events:
        The seq of the last event of its log.
    error:
        Why it could not be read; then the numbers are None.
    """

    name: str
    is_home: bool
    pools: int | None = None
    leases: int | None = None
    events: int | None = None
    error: Exception | None = None

    @property
    def is_reachable(self) -> bool:
        """Whether it answered."""
        return self.error is None


def together(programs: Sequence[Calls[T]]) -> list[T | Exception]:
    """Run programs in threads, and return the result of each, or its error, in their order."""
    if len(programs) == 1:
        return [_outcome(programs[0])]
    with ThreadPoolExecutor(min(len(programs), MOST_AT_ONCE) or 1) as threads:
        runs = [
            threads.submit(contextvars.copy_context().run, _outcome, program)
            for program in programs
        ]
        return [each.result() for each in runs]


async def together_async(programs: Sequence[Calls[T]]) -> list[T | Exception]:
    """Do as :func:`together`, in tasks."""
    turns = asyncio.Semaphore(MOST_AT_ONCE)

    async def outcome(program: Calls[T]) -> T | Exception:
        async with turns:
            try:
                return await run_async(program, call_async)
            except Exception as error:
                return error

    return list(await asyncio.gather(*map(outcome, programs)))


def _outcome(program: Calls[T]) -> T | Exception:
    try:
        return run(program, call)
    except Exception as error:
        return error


def reading_all(
    ledgers: Mapping[str, L],
    side_by_side: Callable[[Sequence[Calls[T]]], Any],
    reading: Callable[[L], Calls[T]],
    within_s: float,
) -> Calls[dict[str, T | Exception]]:
    """Read every ledger with a program of its own. Return what each came to, by its name.

    Parameters
    ----------
    ledgers:
        What is to be read of each ledger, by its name.
    side_by_side:
        :func:`together`, or :func:`together_async`.
    reading:
        Makes the program of a ledger.
    within_s:
        How many seconds each answer of a ledger may take. One that hangs is as one that is down.
    """
    programs = [_with_answers_within(reading(ledger), within_s) for ledger in ledgers.values()]
    outcomes = yield partial(side_by_side, programs)
    found = dict(zip(ledgers, outcomes, strict=True))
    for name, outcome in found.items():
        if isinstance(outcome, Exception):
            in_ledger(outcome, name)
    return found


def _with_answers_within(program: Calls[T], within_s: float) -> Calls[T]:
    with answers_within(within_s):
        return (yield from program)


def merged(
    found: Mapping[str, Sequence[T] | Exception], order: Callable[[T], Any] | None = None
) -> Merged[T]:
    """Return the rows of all ledgers as one list, in the ledgers' order or by a key."""
    rows = [
        InLedger(name, row)
        for name, outcome in found.items()
        if not isinstance(outcome, Exception)
        for row in outcome
    ]
    if order is not None:
        rows.sort(key=lambda row: (order(row.value), row.ledger))
    missing = {name: each for name, each in found.items() if isinstance(each, Exception)}
    return Merged(rows, missing)


def counting(ledger: Ledger[Any, Any]) -> Calls[tuple[int, int, int]]:
    """Count a ledger's pools, active leases and events."""
    stats = yield ledger.storage.list_pool_stats
    log = getattr(ledger.storage, "memory", ledger.storage)  # of the one in memory for asyncio
    last = getattr(log, "seal", None) or partial(log.seq_at, _END_OF_TIME)
    events: int = yield last
    return len(stats), sum(each.total_leases for each in stats), events


def statuses(
    found: Mapping[str, tuple[int, int, int] | Exception], home: str
) -> list[LedgerStatus]:
    """Return the ledgers in numbers, from what :func:`counting` came to in each."""
    return [
        LedgerStatus(name, name == home, error=outcome)
        if isinstance(outcome, Exception)
        else LedgerStatus(name, name == home, *outcome)
        for name, outcome in found.items()
    ]
