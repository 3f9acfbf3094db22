"""The effects that a reader yields to its driver.

The reader is a generator that yields effects and receives the answers. Errors are
raised inside the generator, at the yield. So the rules are written once, and a
driver for threads and one for asyncio run them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

from pharox.storage.postgres.sql import Query

T = TypeVar("T")


class Connect(NamedTuple):
    """Replace the connection with a new one in autocommit mode, and return it."""


class Together(NamedTuple):
    """Run several queries in order in one round trip; return a list of answers."""

    queries: Sequence[Query]


class InTransaction(NamedTuple):
    """Run a program in a transaction, and roll it back if the program raises."""

    program: Generator[Effect, Any, Any]


class Call(NamedTuple):
    """Call a handler, and wait for it if it is a coroutine."""

    handler: Callable[[Any], Any]
    argument: Any


class Pause(NamedTuple):
    """Wait, or return early when asked to stop."""

    seconds: float


class AwaitNotice(NamedTuple):
    """Wait at most so many seconds for a notification, and consume all that have come."""

    seconds: float


Effect = Connect | Query | Together | InTransaction | Call | Pause | AwaitNotice
Program = Generator[Effect, Any, T]
