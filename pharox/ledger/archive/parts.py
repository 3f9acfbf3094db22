"""The parts of the log in the database: when one is closed, and how it is detached.

A part is closed when no event can be added to it any more: its last position has
been handed out, and every transaction that held an appender's lock at that time has
ended. An appender takes that lock before it gets a position, so none is missed. A
transaction that only reads, or that writes elsewhere, is not waited for. A part is
detached with DETACH PARTITION CONCURRENTLY, which blocks no appender. Events are
detached before seals: an event without a seal would be sealed again.

A detached part stays in the database as a table of its own until it is dropped.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from ...errors import ConflictError

_POLL_S = 0.02


class Part(NamedTuple):
    """A part of the log: its positions, ``end`` exclusive, and its file if it is archived."""

    first: int
    end: int
    archive: str | None = None


class Parts:
    """The parts of one ledger, over a connection in autocommit mode."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self._connection = connection
        self._schema = schema

    def listed(self) -> list[Part]:
        """Return all parts, oldest first."""
        query = "SELECT first_position, end_position, archive FROM {} ORDER BY first_position"
        rows = self._connection.execute(sql.SQL(query).format(self._name("partitions")))
        return [Part(*row) for row in rows]

    def clock(self) -> datetime:
        """Return the database's time."""
        query = sql.SQL("SELECT {}()").format(self._name("clock"))
        answer: datetime = _value(self._connection, query)
        return answer

    def handed_out(self) -> int:
        """Return the last position handed out; a part that ends there is full."""
        query = sql.SQL("SELECT last_value FROM {}").format(self._name("events_position_seq"))
        answer: int = _value(self._connection, query)
        return answer

    def outlast_appenders(self, patience_s: float) -> int | None:
        """Wait until all current appenders have ended; full parts are then closed.

        Returns
        -------
        int | None
            The process id of an appender that is still running after ``patience_s``
            seconds.
        """
        appending = self._appenders()
        deadline = time.monotonic() + patience_s
        while appending:
            if time.monotonic() > deadline:
                return next(iter(appending.values()))
            time.sleep(_POLL_S)
            still = self._appenders()
            appending = {key: pid for key, pid in appending.items() if key in still}
        return None

    def _appenders(self) -> dict[str, int]:
        """Return the holders of an appender's lock: process ids by transaction."""
        return dict(
            self._connection.execute(
                "SELECT virtualtransaction, coalesce(pid, 0) FROM pg_locks "
                "WHERE relation = %s::regclass AND mode = 'RowExclusiveLock' AND granted "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
                (self._name("events").as_string(),),
            ).fetchall()
        )

    def is_kept(self, part: Part) -> bool:
        """Return whether a part's tables are still in the database, attached or not."""
        return any(self._exists(name) for name in _tables(part))

    def has_events(self, part: Part) -> bool:
        """Return whether the table of a part's events is still in the database."""
        return self._exists(_tables(part)[0])

    def is_attached(self, part: Part) -> bool:
        """Return whether a table of a part is attached to the log, or being detached."""
        return any(self._pending(name) is not None for name in _tables(part))

    def detach(self, part: Part, patience_s: float) -> None:
        """Detach a part from the log, or finish an interrupted detach.

        Raises
        ------
        ConflictError
            If somebody is still reading it after ``patience_s`` seconds. It is already
            listed as archived, and the next run detaches it.
        """
        patience = f"{max(1, round(patience_s * 1000))}ms"
        self._connection.execute("SELECT set_config('lock_timeout', %s, false)", (patience,))
        try:
            self._detach_tables(part)
        except psycopg.errors.LockNotAvailable as error:
            raise ConflictError(
                f"another session still reads positions from {part.first} on; that part is "
                "archived, and the next run drops it from the database"
            ) from error
        finally:
            if not self._connection.closed:
                self._connection.execute("RESET lock_timeout")

    def _detach_tables(self, part: Part) -> None:
        for name in _tables(part):  # events first, then seals
            pending = self._pending(name)
            if pending is not None:
                how = sql.SQL("FINALIZE" if pending else "CONCURRENTLY")
                parent = self._name(name.partition("_")[0])
                self._connection.execute(
                    sql.SQL("ALTER TABLE {} DETACH PARTITION {} {}").format(
                        parent, self._name(name), how
                    )
                )

    def drop(self, part: Part) -> None:
        """Drop the tables of a detached part."""
        names = sql.SQL(", ").join(map(self._name, _tables(part)))
        self._connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(names))

    def _exists(self, name: str) -> bool:
        found = "SELECT to_regclass(%s) IS NOT NULL"
        return bool(_value(self._connection, found, self._name(name).as_string()))

    def _pending(self, name: str) -> bool | None:
        """Return whether a detach of a table is pending; None if it is not attached."""
        row = self._connection.execute(
            "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = to_regclass(%s)",
            (self._name(name).as_string(),),
        ).fetchone()
        return None if row is None else bool(row[0])

    def _name(self, name: str) -> sql.Identifier:
        return sql.Identifier(self._schema, name)


def _tables(part: Part) -> tuple[str, str]:
    return f"events_{part.first}", f"seals_{part.first}"


def _value(connection: psycopg.Connection[Any], query: Any, *values: Any) -> Any:
    ((value,),) = connection.execute(query, values or None).fetchall()
    return value
