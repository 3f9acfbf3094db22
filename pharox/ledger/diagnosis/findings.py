"""What a check finds, and how it reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row


class Result(StrEnum):
    """How well a thing is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and will not for long or not as it should."""
    PROBLEM = "problem"
    """It does not work."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a check found.

    Parameters
    ----------
    check:
        What was examined.
    result:
        How well it is.
    finding:
        What was found, for a person.
    advice:
        What to do, if something is to be done.
    """

    check: str
    result: Result
    finding: str
    advice: str | None = None


class Reader:
    """Reads a ledger's tables; ``{ledger}`` in a query is its schema."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a query as mappings."""
        text = sql.SQL(query).format(ledger=sql.Identifier(self.schema))
        with self.connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(text, values or None, prepare=False).fetchall()

    def row(self, query: str, **values: Any) -> dict[str, Any]:
        """Return the only row of a query."""
        (row,) = self.rows(query, **values)
        return row


def lasting(seconds: float) -> str:
    """Return a duration for a person: in its largest unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
