"""Build the indexes that a migration added to the log, while others append.

A migration creates an index ``ON ONLY`` the partitioned table: it applies to new partitions,
and is not valid yet. This module builds the indexes of existing partitions, concurrently
and outside of a transaction. After the last one the index becomes valid. Missing indexes are
read from the catalog, so the next upgrade completes one that was interrupted.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.engine import Engine

from .sessions import keep_names_apart

_LACKING = """
SELECT of_log.relname::text, part.relname::text,
       substr(pg_get_indexdef(of_log.oid), 1 + length(format(
           'CREATE INDEX %%I ON ONLY %%I.%%I', of_log.relname, %(schema)s::text, log.relname)))
FROM pg_index AS i
JOIN pg_class AS of_log ON of_log.oid = i.indexrelid AND of_log.relkind = 'I'
JOIN pg_class AS log ON log.oid = i.indrelid
JOIN pg_inherits AS parts ON parts.inhparent = log.oid
JOIN pg_class AS part ON part.oid = parts.inhrelid
-- An index of the partitioned table is invalid until each partition has one attached.
WHERE log.relnamespace = to_regnamespace(quote_ident(%(schema)s::text)) AND NOT i.indisvalid
  AND NOT EXISTS (
      SELECT FROM pg_inherits AS attached
      JOIN pg_index AS own ON own.indexrelid = attached.inhrelid
      WHERE attached.inhparent = of_log.oid AND own.indrelid = part.oid
  )
ORDER BY of_log.relname, part.oid
"""
_IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = %s::regclass"


def build_log_indexes(engine: Engine, schema: str, lock_timeout_ms: int) -> None:
    """Build the missing indexes of each partition of the log.

    Raises
    ------
    psycopg.errors.LockNotAvailable
        If a finished index could not be attached within the timeout, because of a reader.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as lent:
        connection: psycopg.Connection[Any] = lent.connection.driver_connection  # type: ignore[assignment]
        keep_names_apart(connection)
        for index, part, using in connection.execute(_LACKING, {"schema": schema}).fetchall():
            own = _build(connection, schema, index, part, using)
            attach = sql.SQL("ALTER INDEX {} ATTACH PARTITION {}")
            # ATTACH locks the partition: give up early rather than make others queue behind it.
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = {lock_timeout_ms}")
                connection.execute(attach.format(sql.Identifier(schema, index), own))


def _build(
    connection: psycopg.Connection[Any], schema: str, index: str, part: str, using: str
) -> sql.Identifier:
    """Build the index of one partition and return its name; ``using`` ends its definition."""
    name = f"{index}_{part}"
    own, table = sql.Identifier(schema, name), sql.Identifier(schema, part)
    create = sql.SQL("CREATE INDEX CONCURRENTLY IF NOT EXISTS {} ON {}")
    connection.execute(create.format(sql.Identifier(name), table) + sql.SQL(using))
    if connection.execute(_IS_VALID, [own.as_string(connection)]).fetchone() != (True,):
        # An earlier build was interrupted and left an invalid index.
        connection.execute(sql.SQL("REINDEX INDEX CONCURRENTLY {}").format(own))
    return own
