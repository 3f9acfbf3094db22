"""Upgrade a database's schema, and check its version.

An older pharox can use a newer schema if the schema's ``oldest_client()`` allows it, so
leasing continues during an upgrade. Code that alters or verifies the ledger needs exactly
the version that it was written for.
"""

from __future__ import annotations

import random
import re
import time
from functools import lru_cache
from importlib.resources import files
from typing import Any

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from ...errors import DatabaseError, InvalidInputError, SchemaError
from ...models import check_text
from .citus import change_here_alone
from .log_indexes import build_log_indexes
from .migrations import HEAD
from .refusals import UPGRADE_HINT, no_connection, read_only, with_advice
from .sessions import keep_names_apart
from .sql import Statement, quoted

_LOCK = 0x7068_6172_6F78
"""The advisory lock of migrations ("pharox" in ASCII): one process at a time may hold it."""

ALONE_LOCK = 1885890929
"""The advisory lock of maintenance that replaces a ledger's tables or parts of its log."""

LOCK_TIMEOUT_MS = 50
"""How long a migration waits for a lock. Meanwhile other sessions queue behind it."""

PATIENCE_S = 60.0
"""How long an upgrade retries to get its locks."""

VERSIONS = [str(files(__package__) / "migrations" / "versions")]
"""The directories of migrations."""

_ALONE = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:schema))")
_THERE = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")


LONGEST_NAME = 63
"""The maximum length of a name in PostgreSQL, in bytes. It truncates longer ones."""


def check_schema_name(schema: str) -> str:
    """Return a schema's name if it is valid.

    Raises
    ------
    InvalidInputError
        If PostgreSQL would reject or truncate it, or it would end a function's body.
    """
    length = len(check_text(schema).encode())
    if not 0 < length <= LONGEST_NAME:
        raise InvalidInputError(f"a schema's name must have from 1 to {LONGEST_NAME} bytes")
    if schema.startswith("pg_") or re.search(r"\$(sql|from)?\$", schema):
        raise InvalidInputError(
            "a schema's name cannot begin with pg_ or contain $$, $sql$ or $from$", name=schema
        )
    return schema


def upgrade(engine: Engine, schema: str) -> None:
    """Run the missing migrations of ``schema``, in one transaction and one process at a time.

    Leasing continues meanwhile. The lock timeout is below the server's deadlock timeout: if the
    locks are not available at once, the upgrade rolls back, lets others go first, and retries.
    Indexes that migrations add to the log are built afterwards, without blocking anyone.

    Raises
    ------
    DatabaseError
        If the locks were not available, or the database raised an error. The schema is
        unchanged then, unless the error is about an index of the log.
    """
    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    deadline = time.monotonic() + PATIENCE_S
    while not _upgraded(transactional, schema):
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"the upgrade could not acquire its locks in {PATIENCE_S} s; look for open "
                "transactions, a backup, a rebuild or a verify, then run it again"
            )
        time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - only to let others go first


def _upgraded(engine: Engine, schema: str) -> bool:
    """Upgrade once. Return whether the schema is up to date; False if a lock was not available."""
    what = "the upgrade, which was rolled back"
    try:
        with engine.begin() as connection:
            lent: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
            keep_names_apart(lent)
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            change_here_alone(lent, schema)
            _migrate(connection, schema)
        what = "an index of the log; the schema is up to date, and the next upgrade builds it"
        build_log_indexes(engine, schema, LOCK_TIMEOUT_MS)
    except (DBAPIError, psycopg.Error) as error:
        refused = getattr(error, "orig", None) or error
        if isinstance(refused, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
            return False
        if isinstance(error, OperationalError | psycopg.OperationalError):
            raise no_connection(refused) from error
        if isinstance(refused, psycopg.errors.ReadOnlySqlTransaction):
            raise read_only(None) from error
        raise DatabaseError(f"the database refused {what}: {with_advice(refused)}") from error
    return True


def _migrate(connection: Connection, schema: str) -> None:
    from alembic import command  # noqa: PLC0415 - alembic takes a while to import
    from alembic.config import Config  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    if not connection.scalar(_THERE, {"schema": schema}):  # IF NOT EXISTS needs the right
        # In text() a colon would start a parameter.
        name = quoted(schema).replace(":", "\\:")
        connection.execute(text(f"CREATE SCHEMA {name}"))
    context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
    version = context.get_current_revision()
    config = Config()
    config.set_main_option("script_location", str(files(__package__) / "migrations"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(VERSIONS))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    if version is not None and head is not None and version >= head:
        return  # maybe upgraded by a newer pharox
    lacking = list(scripts.iterate_revisions(head, version or "base"))
    locked: list[str] = []
    log_gets_index = False
    if version is not None:
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        # A rebuild or an archive must not run meanwhile: it uses the tables as they were.
        connection.execute(_ALONE, {"lock": ALONE_LOCK, "schema": schema})
        locked = [name for each in reversed(lacking) for name in getattr(each.module, "LOCKED", ())]
        log_gets_index = any(getattr(each.module, "LOG_GETS_INDEX", False) for each in lacking)
    config.attributes.update(
        connection=connection,
        schema=schema,
        locked=dict.fromkeys(locked),
        log_gets_index=log_gets_index,
    )
    command.upgrade(config, head or "head")


@lru_cache(maxsize=8)
def version_statement(schema: str) -> Statement:
    """Return the statement that reads the version of the schema."""
    text = f"SELECT version_num FROM {quoted(schema)}.alembic_version"  # noqa: S608 - quoted
    return Statement(text.encode(), (), {}, ("version",))


@lru_cache(maxsize=8)
def oldest_client_statement(schema: str) -> Statement:
    """Return the statement that reads the oldest version whose code can use the schema."""
    text = f"SELECT {quoted(schema)}.oldest_client()"
    return Statement(text.encode(), (), {}, ("oldest",))


def check_version(version: str | None, schema: str) -> None:
    """Raise :class:`SchemaError` unless this code was written for exactly this ``version``."""
    if version is None:
        raise SchemaError(f"the database has no pharox schema {schema!r}: {UPGRADE_HINT}")
    if version < HEAD:
        raise SchemaError(
            f"schema {schema!r} has version {version}, this pharox needs {HEAD}: {UPGRADE_HINT}",
            version=version,
        )
    if version > HEAD:
        raise SchemaError(
            f"schema {schema!r} has version {version}, newer than this pharox's {HEAD}: "
            "upgrade pharox",
            version=version,
        )
