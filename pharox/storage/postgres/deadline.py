"""An answer is waited for only so long.

A network that drops packets, or a server that is stopped, never says that it is
gone; without an end of its own a wait lasts until somebody pulls the plug. So
what leases and releases gives each statement a number of seconds. Then the
server is asked to cancel it, and what it says of that counts. If it says
nothing at all, the connection is closed, and what the server makes of the
statement is not known here.

Work that may take long (imports, sealing, verifying, rebuilding) has no such
end; there the keepalives of the connection find out that the server is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from ...effects.cancelling import PATIENCE_S, CancelledCall, call_in_thread
from ...errors import AnswerTimeoutError, InvalidInputError

T = TypeVar("T")
logger = logging.getLogger("pharox")

ANSWER_TIMEOUT_S = 30.0
"""How long a statement of leasing may take, unless a storage is made with another figure."""

CANCEL_S = 5.0
"""How long a server may take to cancel a statement, and to say so."""

SILENT = "the server did not answer; what it did is not known"

NOT_REPLICATED = "it was cancelled while it waited for a standby, which may not have what it did"


def check_timeout(seconds: float | None) -> float | None:
    """Return a time-out if it is one, else raise :class:`InvalidInputError`."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is None or (is_number and 0 < seconds < float("inf")):
        return seconds
    raise InvalidInputError(
        "answer_timeout_s must be a number of seconds above 0, or None", value=seconds
    )


class LateError(Exception):
    """No answer came in time. Never leaves this package."""


def within(
    arriving: Generator[Any, Any, T], seconds: float | None, call: CancelledCall | None = None
) -> Generator[Any, Any, T]:
    """Wait as one of psycopg's generators does, until it is too late.

    The generator inside stays as it is then, so that it can be waited for again. Of a
    ``call`` that is cancelled it is too late after :data:`PATIENCE_S`.

    Raises
    ------
    LateError
        If it is not done after so many seconds.
    """
    began = time.monotonic()
    try:
        wanted = next(arriving)
        while True:
            # Not ``yield from``: an end of this one must not be the end of that one.
            ready = yield wanted
            if not ready and _is_too_late(began, seconds, call):
                raise LateError
            wanted = arriving.send(ready)
    except StopIteration as end:
        answer: T = end.value
        return answer


def _is_too_late(began: float, seconds: float | None, call: CancelledCall | None) -> bool:
    now = time.monotonic()
    if call is not None and call.since is not None and now >= max(began, call.since) + PATIENCE_S:
        return True
    return seconds is not None and now >= began + seconds


@contextmanager
def answering_within(connection: psycopg.Connection[Any], seconds: float | None) -> Iterator[None]:
    """Have a connection give up each wait of a block after so many seconds.

    Where the block is part of a call whose task is cancelled, it waits as the task would:
    the server is not asked to cancel what is to happen in any case.

    Raises
    ------
    AnswerTimeoutError
        If the server has cancelled a statement for that.
    """
    call = call_in_thread.get()
    if seconds is None and call is None:
        yield
        return
    wait_for = type(connection).wait
    is_late = False

    def wait(arriving: Generator[Any, Any, T], interval: float = 0.1, **_: Any) -> T:
        nonlocal is_late
        with suppress(LateError):
            return wait_for(connection, within(arriving, seconds, call), interval)
        is_cancelled = call is not None and call.since is not None
        if seconds is not None and not is_cancelled:
            is_late = True
            log_late(seconds)
        with warnings_of(connection) as warnings:
            if not (is_cancelled and call is not None and call.certain):
                with suppress(psycopg.Error):
                    connection.cancel_safe(timeout=CANCEL_S)
            try:
                answer = wait_for(connection, within(arriving, CANCEL_S), interval)
            except LateError:
                log_given_up()
                connection.pgconn.finish()
                raise psycopg.OperationalError(SILENT) from None
        check_replicated(connection, warnings)
        return answer

    connection.wait = wait  # type: ignore[method-assign, assignment]
    try:
        yield
    except psycopg.errors.QueryCanceled as error:
        if is_late and seconds is not None:
            raise answer_timeout(seconds) from error
        raise
    finally:
        del connection.wait


@contextmanager
def warnings_of(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> Iterator[list[str | None]]:
    """Collect what the server warns of in a block."""
    warnings: list[str | None] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary)

    connection.add_notice_handler(note)
    try:
        yield warnings
    finally:
        connection.remove_notice_handler(note)


def check_replicated(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
    warnings: list[str | None],
) -> None:
    """Break a connection whose COMMIT was cancelled while it waited for a standby.

    The server says that such a commit has succeeded, with a warning, and it has: here alone.
    No statement of ours is warned of for anything else.
    """
    if warnings:
        connection.pgconn.finish()
        raise psycopg.OperationalError(NOT_REPLICATED)


def answer_timeout(seconds: float) -> AnswerTimeoutError:
    """Return the error for a statement that the server has cancelled because it took too long."""
    return AnswerTimeoutError(
        f"no answer came within answer_timeout_s ({seconds:g} s), so the statement was cancelled; "
        "nothing came of it",
        answer_timeout_s=seconds,
    )


def log_late(seconds: float) -> None:
    """Say why a statement is cancelled."""
    logger.warning("pharox.statement.late: no answer for %g s, so it is cancelled", seconds)


def log_given_up() -> None:
    """Say that a connection is closed because nothing was heard of it."""
    logger.warning("pharox.connection.given_up: the server did not answer at all")
