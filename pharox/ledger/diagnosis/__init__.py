"""Examine a ledger and its server, and say of each thing whether it is well and what to do.

Every check reads in a transaction of its own that can write nothing, with a limit on its time: a
role that may only read the ledger can run all of them, and one that fails keeps none of the others
from their answers. What a check has read, a function without a database judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg

from ...errors import PharoxError
from ...storage.postgres import PostgresStorage
from ...storage.postgres.migrations import HEAD
from . import access, log, server, upkeep
from .findings import Diagnosis, Reader, Result

__all__ = ["Diagnosis", "Result", "diagnose"]

_TIMEOUT = "SET LOCAL statement_timeout = '10s'"

Check = Callable[[Reader, PostgresStorage], Diagnosis]

_OF_SERVER: dict[str, Check] = {
    "server": server.version,
    "server settings": server.settings,
    "pooler": server.pooler,
    "clock": server.clock,
    "connections": server.connections,
    "transactions": upkeep.transactions,
}
_OF_LEDGER: dict[str, Check] = {
    "rights": access.rights,
    "secret key": access.secret_key,
    "log": log.parts,
    "sealing": log.sealing,
    "subscriptions": log.subscriptions,
    "tables": upkeep.tables,
    "leases": upkeep.leases,
    "moves": upkeep.moves,
    "health checks": upkeep.health_checks,
}


def diagnose(storage: PostgresStorage) -> Iterator[Diagnosis]:
    """Yield a diagnosis of the server, and then of the ledger if its schema can be used.

    Raises
    ------
    DatabaseUnavailableError
        If there is no connection.
    """
    for name, check in _OF_SERVER.items():
        yield _diagnosed(storage, name, check)
    schema = _schema(storage)
    yield schema
    if schema.result is not Result.PROBLEM:
        for name, check in _OF_LEDGER.items():
            yield _diagnosed(storage, name, check)


def _diagnosed(storage: PostgresStorage, name: str, check: Check) -> Diagnosis:
    """Run a check in a transaction that can write nothing."""
    try:
        with storage.session(keep=False) as session:
            session.connection.execute("SET TRANSACTION READ ONLY")
            session.connection.execute(_TIMEOUT)
            return check(Reader(session.connection, storage.schema), storage)
    except (PharoxError, psycopg.Error) as error:
        said = str(error.__cause__ or error).splitlines()
        return Diagnosis(
            name,
            Result.WARNING,
            f"cannot be examined: {said[0] if said else type(error).__name__}",
            "use a role that may read the ledger: `pharox db grant --reader ROLE`",
        )


def _schema(storage: PostgresStorage) -> Diagnosis:
    try:
        version = storage.schema_version()
        oldest = None if version is None or version <= HEAD else _oldest_client(storage)
    except PharoxError as error:
        return Diagnosis(
            "schema", Result.PROBLEM, str(error), "use a role that may read the ledger"
        )
    return judged_schema(storage.schema, version, oldest)


def _oldest_client(storage: PostgresStorage) -> str:
    with storage.session(keep=False) as session:
        reader = Reader(session.connection, storage.schema)
        return str(reader.row("SELECT {ledger}.oldest_client() AS oldest")["oldest"])


def judged_schema(schema: str, version: str | None, oldest: str | None) -> Diagnosis:
    """Judge the version of the schema; ``oldest`` is the oldest client of a newer one."""
    if version is None:
        finding = f"there is no schema {schema!r} in this database"
        return Diagnosis("schema", Result.PROBLEM, finding, "create it: `pharox db upgrade`")
    if version < HEAD:
        return Diagnosis(
            "schema",
            Result.PROBLEM,
            f"schema {schema!r} has version {version}, and this pharox needs {HEAD}",
            "bring it up to date: `pharox db upgrade`, while leasing goes on",
        )
    if oldest is None:
        return Diagnosis("schema", Result.OK, f"schema {schema!r} has version {version}")
    finding = f"schema {schema!r} has version {version}, newer than this pharox's {HEAD}"
    fits = oldest <= HEAD
    advice = "leasing works; " if fits else ""
    return Diagnosis(
        "schema",
        Result.WARNING if fits else Result.PROBLEM,
        finding,
        f"{advice}upgrade pharox on this machine",
    )
