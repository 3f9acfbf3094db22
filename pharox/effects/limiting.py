"""Limit how long a block waits for each answer of a database, whatever method asks it.

A page that is read in a browser must not keep a database busy that others lease from. It is read
within a limit that the storage's methods need not know: the driver looks here before it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_limit_s: ContextVar[float | None] = ContextVar("answer_limit_s", default=None)


@contextmanager
def answers_within(seconds: float) -> Iterator[None]:
    """Limit each answer of a database to ``seconds`` in a ``with`` block of this thread or task.

    A statement that takes longer is cancelled, and raises :class:`AnswerTimeoutError`. Within
    another such block the shorter limit holds.
    """
    token = _limit_s.set(limited(seconds))
    try:
        yield
    finally:
        _limit_s.reset(token)


def limited(seconds: float | None) -> float | None:
    """Return the shorter of a limit of a statement's own and that of the block, if any."""
    limits = [limit for limit in (seconds, _limit_s.get()) if limit is not None]
    return min(limits, default=None)
