"""Decide which errors split a shared batch, and which error each of its callers gets.

=====================================  ============================================
Result of a batch                      Result for its callers
=====================================  ============================================
an answer for each                     their own outcome, or their own error
the database rejects the statement     it is run again in halves, down to the
                                       command that caused it: its own error
a deadlock, a serialization failure    the same
no connection is available             DatabaseUnavailableError, each
no answer in time, cancelled           AnswerTimeoutError, each: it had no effect
the connection breaks before COMMIT    OutcomeUnknownError, each with its own
is acknowledged                        ``lease_id``: it is never run again
=====================================  ============================================
"""

from __future__ import annotations

from ...errors import (
    AnswerTimeoutError,
    DatabaseError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
    SchemaError,
)
from .batch import Command

_ALL_ALIKE = (DatabaseUnavailableError, AnswerTimeoutError, SchemaError)


def splits(error: Exception) -> bool:
    """Return whether a failed batch had no effect and parts of it may succeed."""
    return isinstance(error, DatabaseError) and not isinstance(error, _ALL_ALIKE)


def error_for(command: Command, error: BaseException) -> Exception:
    """Return the error of one command for an error of its whole batch."""
    if isinstance(error, Exception) and not isinstance(error, OutcomeUnknownError):
        return error
    what = str(error) or type(error).__name__
    unknown = OutcomeUnknownError(
        f"it is not known what was committed of lease {command.lease_id}: {what}",
        lease_id=command.lease_id,
    )
    unknown.__cause__ = error.__cause__ or error
    return unknown
