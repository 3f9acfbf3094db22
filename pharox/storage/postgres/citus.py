"""Keep a ledger's schema in one node of a Citus cluster.

Citus makes schemas, types and functions on all nodes, and refuses to make them on any node but
the coordinator. A ledger is in one node alone, whose PostgreSQL decides as any other server would:
so what changes a schema tells Citus to leave it where it is. A schema whose tables Citus
distributes is refused. What comes of one that is used all the same is in docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from ...errors import DatabaseError

_IS_IN_USE = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
_IS_DISTRIBUTED = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_dist_partition AS distributed
    JOIN pg_catalog.pg_class AS c ON c.oid = distributed.logicalrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s
)
"""
_HERE_ALONE = "SET {local} citus.enable_ddl_propagation = off"


def is_in_use(connection: psycopg.Connection[Any]) -> bool:
    """Return whether a connection's database is a node of a Citus cluster."""
    return connection.execute(_IS_IN_USE).fetchone() == (True,)


def is_distributed(connection: psycopg.Connection[Any], schema: str) -> bool:
    """Return whether Citus distributes tables of a schema. It must be in use."""
    return connection.execute(_IS_DISTRIBUTED, (schema,)).fetchone() == (True,)


def check_undistributed(connection: psycopg.Connection[Any], schema: str) -> None:
    """Raise :class:`DatabaseError` if Citus distributes tables of a schema. It must be in use."""
    if is_distributed(connection, schema):
        raise DatabaseError(
            f"Citus distributes the tables of schema {schema!r}, where a ledger cannot keep its "
            f"promises: run `SELECT citus_schema_undistribute('{schema}')` on the coordinator, and "
            "create ledgers with `pharox db distribute`",
            schema=schema,
        )


def change_here_alone(connection: psycopg.Connection[Any], schema: str) -> None:
    """Have what the current transaction makes and changes stay in this node, if it is one.

    Raises
    ------
    DatabaseError
        If Citus distributes the ledger's tables.
    """
    if is_in_use(connection):
        check_undistributed(connection, schema)
        connection.execute(_HERE_ALONE.format(local="LOCAL"))


@contextmanager
def changes_here_alone(connection: psycopg.Connection[Any], schema: str) -> Iterator[None]:
    """Do the same for a block, with a connection in autocommit mode and its own session."""
    if not is_in_use(connection):
        yield
        return
    check_undistributed(connection, schema)
    connection.execute(_HERE_ALONE.format(local=""))
    try:
        yield
    finally:
        if not connection.closed:
            connection.execute("RESET citus.enable_ddl_propagation")
