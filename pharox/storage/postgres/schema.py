"""Bring a database's schema up to date, and say so where it is not.

A newer schema serves an older pharox as well, as long as its ``oldest_client()`` says so:
what leases goes on throughout an upgrade. What alters the ledger, or judges it, needs the
version that it was written for.
"""

from __future__ import annotations

import random
import re
import time
from functools import lru_cache
from importlib.resources import files

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from ...errors import DatabaseError, InvalidInputError, SchemaError
from ...models import check_text
from .log_indexes import build_log_indexes
from .migrations import HEAD
from .refusals import UPGRADE_HINT, no_connection, read_only, with_advice
from .sessions import keep_names_apart
from .sql import Statement, quoted

_LOCK = 0x7068_6172_6F78
"""The advisory lock ("pharox" in ASCII) under which one process at a time migrates."""

ALONE_LOCK = 1885890929
"""The advisory lock of a ledger under which its log or its tables are taken apart."""

LOCK_TIMEOUT_MS = 50
"""How long a migration waits for one lock: others wait behind it meanwhile."""

PATIENCE_S = 60.0
"""For how long an upgrade asks for its locks again and again."""

VERSIONS = [str(files(__package__) / "migrations" / "versions")]
"""The folders of migrations."""

_ALONE = text("SELECT pg_advisory_xact_lock(:lock, hashtext(:schema))")
_THERE = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")


LONGEST_NAME = 63
"""Of how many bytes a name in PostgreSQL may be; it cuts a longer one."""


def check_schema_name(schema: str) -> str:
    """Return a schema's name if the ledger can be there.

    Raises
    ------
    InvalidInputError
        If PostgreSQL would not take it as it is, or it would end a function's body.
    """
    length = len(check_text(schema).encode())
    if not 0 < length <= LONGEST_NAME:
        raise InvalidInputError(f"a schema's name has from 1 to {LONGEST_NAME} bytes")
    if schema.startswith("pg_") or re.search(r"\$(sql|from)?\$", schema):
        raise InvalidInputError(
            "a schema's name cannot begin with pg_ or contain $$, $sql$ or $from$", name=schema
        )
    return schema


def upgrade(engine: Engine, schema: str) -> None:
    """Run the migrations that ``schema`` lacks, in one transaction, one process at a time.

    Others lease meanwhile. The locks are asked for with a timeout below the server's deadlock
    timeout: where they are not to be had at once, the upgrade lets the others go first.
    Indexes that the migrations add to the log are built afterwards, and nobody waits for these.

    Raises
    ------
    DatabaseError
        If the locks were not to be had, or the database refused something. The schema is as
        it was, unless it says that an index of the log was refused.
    """
    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    deadline = time.monotonic() + PATIENCE_S
    while not _upgraded(transactional, schema):
        if time.monotonic() > deadline:
            raise DatabaseError(
                f"the upgrade did not get its locks in {PATIENCE_S} s; look for transactions that "
                "are left open, a backup, a rebuild or a verify, and call it again"
            )
        time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - only to let others go first


def _upgraded(engine: Engine, schema: str) -> bool:
    """Tell whether the schema is up to date now; false if others have what is to be locked."""
    what = "the upgrade, and nothing of it is half done"
    try:
        with engine.begin() as connection:
            keep_names_apart(connection.connection.driver_connection)  # type: ignore[arg-type]
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
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
        # In text() a colon would begin a parameter.
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
        return  # A newer pharox may have been here.
    lacking = list(scripts.iterate_revisions(head, version or "base"))
    if version is not None:
        connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
        # A rebuild or an archive goes by the tables that there were when it began.
        connection.execute(_ALONE, {"lock": ALONE_LOCK, "schema": schema})
    locked = [name for each in reversed(lacking) for name in getattr(each.module, "LOCKED", ())]
    config.attributes.update(connection=connection, schema=schema, locked=dict.fromkeys(locked))
    command.upgrade(config, "head")


@lru_cache(maxsize=8)
def version_statement(schema: str) -> Statement:
    """Return the statement that reads the version of the schema."""
    text = f"SELECT version_num FROM {quoted(schema)}.alembic_version"  # noqa: S608 - quoted
    return Statement(text.encode(), (), {}, ("version",))


@lru_cache(maxsize=8)
def oldest_client_statement(schema: str) -> Statement:
    """Return the statement that reads which version's pharox can still use the schema."""
    text = f"SELECT {quoted(schema)}.oldest_client()"
    return Statement(text.encode(), (), {}, ("oldest",))


def check_version(version: str | None, schema: str) -> None:
    """Raise :class:`SchemaError` unless ``version`` is the one that this code was written for."""
    if version is None:
        raise SchemaError(f"the database has no schema {schema!r} of pharox: {UPGRADE_HINT}")
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
