"""Bring a database's schema up to date, and say so where it is not."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from sqlalchemy import text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from ...errors import DatabaseError, DatabaseUnavailableError, SchemaError
from .driver import UPGRADE_HINT
from .migrations import HEAD
from .sql import Statement, quoted

_LOCK = 0x7068_6172_6F78
"""The advisory lock ("pharox" in ASCII) under which one process at a time migrates."""

_THERE = text("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema)")


def upgrade(engine: Engine, schema: str) -> None:
    """Run the migrations that ``schema`` lacks, in one transaction, one process at a time."""
    from alembic import command  # noqa: PLC0415 - alembic takes a while to import
    from alembic.config import Config  # noqa: PLC0415

    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    try:
        with transactional.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            if not connection.scalar(_THERE, {"schema": schema}):  # IF NOT EXISTS needs the right
                connection.execute(text(f"CREATE SCHEMA {quoted(schema)}"))
            config = Config()
            config.set_main_option("script_location", str(files(__package__) / "migrations"))
            config.attributes.update(connection=connection, schema=schema)
            command.upgrade(config, "head")
    except OperationalError as error:
        raise DatabaseUnavailableError(f"no connection to the database: {error.orig}") from error
    except DBAPIError as error:
        raise DatabaseError(
            f"the database refused the upgrade, and the schema is as it was: {error.orig}"
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
