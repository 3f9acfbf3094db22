"""What a reader asks its driver to do.

The reader is a generator that yields these and receives the answers; what goes
wrong is raised inside of it, where it was yielded. So the rules stand once,
and a driver for threads and one for asyncio carry them out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from pharox.storage.postgres.sql import Query

T = TypeVar("T")


class Connect(NamedTuple):
    """Open a connection in autocommit mode, in place of the last one; the answer is it."""


class Together(NamedTuple):
    """Ask several queries in one round trip, one after the other; the answers are a list."""

    queries: Sequence[Query]


class InTransaction(NamedTuple):
    """Run a program in a transaction, and roll it back if the program raises."""

    program: Generator[Effect, Any, Any]


class Call(NamedTuple):
    """Call a handler, and wait for it if it is a coroutine."""

    handler: Callable[[Any], Any]
    argument: Any


class Pause(NamedTuple):
    """Wait, unless told to stop."""

    seconds: float


class AwaitNotice(NamedTuple):
    """Wait for a notification, so many seconds at most, and take all that have come."""

    seconds: float


Effect = Connect | Query | Together | InTransaction | Call | Pause | AwaitNotice
Program = Generator[Effect, Any, T]
