"""A lock for maintenance: rebuilds, archives and the like of one ledger run one at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from ..errors import ConflictError
from ..storage.postgres.citus import changes_here_alone
from ..storage.postgres.driver import check_own_session
from ..storage.postgres.schema import ALONE_LOCK, check_version, version_statement

_POLL_S = 0.02


@contextmanager
def maintenance_lock(
    connection: psycopg.Connection[Any], schema: str, patience_s: float
) -> Iterator[None]:
    """Keep others from archiving or rebuilding the same ledger during a block.

    Parameters
    ----------
    connection:
        A connection in autocommit mode, with a session of its own.
    patience_s:
        How many seconds to wait for another holder.

    Raises
    ------
    ConflictError
        If another process still holds the lock after that time.
    DatabaseError
        If a pooler shares the connection's session with other clients, or Citus distributes
        the ledger's tables.
    SchemaError
        If the schema is not of the version that this code was written for.
    """
    check_own_session(connection)
    lock = (ALONE_LOCK, schema)
    deadline = time.monotonic() + patience_s
    query = "SELECT pg_try_advisory_lock(%s, hashtext(%s))"
    while connection.execute(query, lock).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise ConflictError(
                "another process is archiving or rebuilding this ledger; try again later",
                schema=schema,
            )
        time.sleep(_POLL_S)
    try:
        (version,) = connection.execute(version_statement(schema).text).fetchone() or (None,)
        check_version(version, schema)
        with changes_here_alone(connection, schema):
            yield
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s, hashtext(%s))", lock)
