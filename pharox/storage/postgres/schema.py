"""Bring a database's schema up to date, and say so where it is not."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files

import psycopg
from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from ...errors import DatabaseError, InvalidInputError, SchemaError
from ...models import check_text
from .migrations import HEAD
from .refusals import UPGRADE_HINT, no_connection, read_only, with_advice
from .sessions import keep_names_apart
from .sql import Statement, quoted

_LOCK = 0x7068_6172_6F78
"""The advisory lock ("pharox" in ASCII) under which one process at a time migrates."""

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
    """Run the migrations that ``schema`` lacks, in one transaction, one process at a time."""
    from alembic import command  # noqa: PLC0415 - alembic takes a while to import
    from alembic.config import Config  # noqa: PLC0415

    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    try:
        with transactional.begin() as connection:
            keep_names_apart(connection.connection.driver_connection)  # type: ignore[arg-type]
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            if not connection.scalar(_THERE, {"schema": schema}):  # IF NOT EXISTS needs the right
                # In text() a colon would begin a parameter.
                name = quoted(schema).replace(":", "\\:")
                connection.execute(text(f"CREATE SCHEMA {name}"))
            config = Config()
            config.set_main_option("script_location", str(files(__package__) / "migrations"))
            config.attributes.update(connection=connection, schema=schema)
            command.upgrade(config, "head")
    except OperationalError as error:
        raise no_connection(error.orig or error) from error
    except DBAPIError as error:
        refused = error.orig or error
        if isinstance(refused, psycopg.errors.ReadOnlySqlTransaction):
            raise read_only(None) from error
        raise DatabaseError(
            f"the database refused the upgrade, and the schema is as it was: {with_advice(refused)}"
        ) from error


@lru_cache(maxsize=8)
def version_statement(schema: str) -> Statement:
    """Return the statement that reads the version of the schema."""
    text = f"SELECT version_num FROM {quoted(schema)}.alembic_version"  # noqa: S608 - quoted
    return Statement(text.encode(), (), {}, ("version",))


def check_version(version: str | None, schema: str) -> None:
    """Raise :class:`SchemaError` unless ``version`` is the one that this code needs."""
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
