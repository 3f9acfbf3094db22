"""How callers of one process share commits here: which errors split a batch, and what each is told.

=====================================  ============================================
what a batch comes to                  what its callers are told
=====================================  ============================================
an answer for each                     their own outcome, or their own error
the database refuses the statement     it is asked again in halves, down to the
                                       command that is to blame: its own error
a deadlock, a serialization failure    the same
no connection is to be had             DatabaseUnavailableError, each
no answer in time, cancelled           AnswerTimeoutError, each: nothing came of it
the connection breaks before COMMIT    OutcomeUnknownError, each with its own
is acknowledged                        ``lease_id``: it is never asked again
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
    """Tell whether nothing came of a batch, and its parts may fare better."""
    return isinstance(error, DatabaseError) and not isinstance(error, _ALL_ALIKE)


def error_for(command: Command, error: BaseException) -> Exception:
    """Return what an error of a whole batch means for one of its commands."""
    if isinstance(error, Exception) and not isinstance(error, OutcomeUnknownError):
        return error
    what = str(error) or type(error).__name__
    unknown = OutcomeUnknownError(
        f"it is not known what was committed of lease {command.lease_id}: {what}",
        lease_id=command.lease_id,
    )
    unknown.__cause__ = error.__cause__ or error
    return unknown
