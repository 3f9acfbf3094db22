"""Translate errors of a server, or of a pooler in front of it, to errors of pharox.

All errors of the driver are translated, whatever their class; the driver's error is
chained. A pooler's message gets advice added, because it looks like a message of
PostgreSQL. Poolers use the SQLSTATE of a protocol violation for nearly all errors,
so their messages are matched by text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from ...errors import (
    DatabaseError,
    DatabaseUnavailableError,
    ReadOnlyDatabaseError,
    SchemaError,
)

AnyConnection = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

UPGRADE_HINT = "run `pharox db upgrade` or call storage.upgrade_schema()"

PREPARE_HINT = (
    "a pooler in front of PostgreSQL does not support prepared statements: connect with "
    "prepare=False, or `?prepare=off` in the URL"
)
_POOLER_HINTS = {
    "statement pooling mode": (
        "the pooler may run each statement in another session, and the ledger needs transactions: "
        "set its pool_mode to transaction or session"
    ),
    "unsupported startup parameter": (
        "the pooler refuses a parameter that the URL or PGOPTIONS sets: remove it, or add it to "
        "the pooler's ignore_startup_parameters"
    ),
    "query_wait_timeout": (
        "the pooler had no free connection to PostgreSQL in time: raise its "
        "default_pool_size, or use fewer connections"
    ),
    "no more connections allowed": (
        "the pooler accepts no more clients: raise its max_client_conn, or use fewer connections"
    ),
}
"""Advice on pooler errors, by a part of their message."""


@contextmanager
def translate_errors(connection: AnyConnection) -> Iterator[None]:
    """Translate the driver's errors in a ``with`` block."""
    try:
        yield
    except psycopg.Error as error:
        raise _refusal(error, connection) from error


def no_connection(error: BaseException) -> DatabaseUnavailableError:
    """Return the error for a server that cannot be reached."""
    return DatabaseUnavailableError(f"no connection to the database: {with_advice(error)}")


def pool_exhausted(callers: str) -> DatabaseUnavailableError:
    """Return the error for an engine whose pool had no free connection before the timeout."""
    return DatabaseUnavailableError(
        f"all connections of the engine's pool are in use; give it one for each of the {callers} "
        "that lease"
    )


def read_only(is_standby: bool | None) -> ReadOnlyDatabaseError:
    """Return the error for a read-only database; ``is_standby`` is None if unknown."""
    standby = (
        "this server is a standby, which is read-only: connect to the primary, or name all "
        "servers, as in postgresql://host1,host2/database?target_session_attrs=read-write"
    )
    setting = "default_transaction_read_only is on for this database or role"
    why = {True: standby, False: setting, None: f"{standby}; or {setting}"}[is_standby]
    return ReadOnlyDatabaseError(f"the database is read-only: {why}", is_standby=is_standby)


def with_advice(error: BaseException) -> str:
    """Return an error's message, with advice if it is from a pooler."""
    unprepared = (psycopg.errors.InvalidSqlStatementName, psycopg.errors.DuplicatePreparedStatement)
    if isinstance(error, unprepared):
        return f"{error}; {PREPARE_HINT}"
    hints = (hint for words, hint in _POOLER_HINTS.items() if words in str(error))
    return "; ".join([str(error), *hints])


def _right_needed(error: psycopg.Error) -> str:
    """Return how to get a right: those of the database itself are not the ledger's to grant."""
    if "temporary" in str(error.diag.message_primary):  # in the server's language
        return "an administrator can GRANT TEMPORARY ON DATABASE ... TO the role"
    return "connect as a role with the rights, which `pharox db grant` lists"


def _refusal(error: psycopg.Error, connection: AnyConnection) -> DatabaseError | SchemaError:
    match error:
        case (
            psycopg.errors.UndefinedTable()
            | psycopg.errors.UndefinedFunction()
            | psycopg.errors.InvalidSchemaName()
        ):
            return SchemaError(
                f"the pharox schema is not complete ({error.diag.message_primary}): "
                f"{UPGRADE_HINT}, or upgrade pharox if the schema is newer; a projection of your "
                "own needs `pharox rebuild NAME`"
            )
        case psycopg.errors.UndefinedColumn():
            return SchemaError(f"the pharox schema is outdated: {UPGRADE_HINT}")
        case psycopg.errors.InsufficientPrivilege():
            return DatabaseError(
                f"the database refused: {error.diag.message_primary}; {_right_needed(error)}"
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            # The server reports it to each session; poolers do not pass it on.
            status = connection.info.parameter_status("in_hot_standby")
            return read_only(None if status is None else status == "on")
    if connection.closed:
        return DatabaseUnavailableError(f"the database went away: {with_advice(error)}")
    return DatabaseError(f"the database refused: {with_advice(error)}")
