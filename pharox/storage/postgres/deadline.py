"""Limit how long a command waits for the server's answer.

A network that drops packets, or a stopped server, sends no error, so a wait
without a timeout could last forever. Statements that lease and release therefore
have a timeout. After it the server is asked to cancel the statement, and
its reply decides. If it does not reply at all, the connection is closed, and the
outcome of the statement is unknown.

Work that may take long (imports, sealing, verifying, rebuilding) has no
timeout. There the connection's keepalives detect that the server is gone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from ...effects.cancelling import PATIENCE_S, CancelledCall, call_in_thread
from ...effects.limiting import limited
from ...errors import AnswerTimeoutError, InvalidInputError

T = TypeVar("T")
logger = logging.getLogger("pharox")

ANSWER_TIMEOUT_S = 30.0
"""The default timeout of a statement of leasing."""

CANCEL_S = 5.0
"""How long a server may take to cancel a statement and to report it."""

SILENT = "the server did not answer; what it did is not known"

NOT_REPLICATED = "it was cancelled while it waited for a standby, which may not have what it did"


def check_timeout(seconds: float | None) -> float | None:
    """Return a timeout if valid, else raise :class:`InvalidInputError`."""
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
    """Wait as a psycopg generator does, with a timeout.

    After the timeout the inner generator is unchanged and can be waited for again. If ``call``
    is cancelled, the timeout is :data:`PATIENCE_S` from then on.

    Raises
    ------
    LateError
        If it is not done after ``seconds``.
    """
    began = time.monotonic()
    try:
        wanted = next(arriving)
        while True:
            # Not ``yield from``: closing this generator must not close the inner one.
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
    """Limit each wait of a connection in a ``with`` block to ``seconds``.

    It may be limited further from outside, by :func:`~pharox.effects.limiting.answers_within`. If
    the block runs for a task that is cancelled, it waits as the task would: the server
    is not asked to cancel a certain call.

    Raises
    ------
    AnswerTimeoutError
        If the server has cancelled a late statement.
    """
    call = call_in_thread.get()
    seconds = limited(seconds)
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
    """Collect the server's warnings in a ``with`` block."""
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
    """Close a connection whose COMMIT was cancelled while it waited for a standby.

    The server reports such a commit as successful, with a warning: it is committed here, but
    not on the standby. No other warning is expected for our statements.
    """
    if warnings:
        connection.pgconn.finish()
        raise psycopg.OperationalError(NOT_REPLICATED)


def answer_timeout(seconds: float) -> AnswerTimeoutError:
    """Return the error for a statement that was cancelled because it took too long."""
    return AnswerTimeoutError(
        f"no answer came within answer_timeout_s ({seconds:g} s), so the statement was cancelled; "
        "it had no effect",
        answer_timeout_s=seconds,
    )


def log_late(seconds: float) -> None:
    """Log why a statement is cancelled."""
    logger.warning("pharox.statement.late: no answer for %g s, so it is cancelled", seconds)


def log_given_up() -> None:
    """Log that a connection is closed because the server did not answer."""
    logger.warning("pharox.connection.given_up: the server did not answer at all")
