"""What must hold of every sealed log, whoever sealed it and wherever it was restored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pharox.log.canonical import digest, root

Row = dict[str, Any]
Connection = psycopg.Connection[Row]

SEALED = """
SELECT s.seq, s.digest, e.*, e.data::text AS data
FROM pharox.seals s FULL JOIN pharox.events e ON e.position = s.position
ORDER BY s.seq
"""

TICKS = """
SELECT * FROM pharox.ticks
UNION ALL
SELECT last_seq, first_seq, snapshot, anchor, system_identifier, sealed_at, root,
       after_position, last_position
FROM pharox.last_tick
WHERE last_seq NOT IN (SELECT last_seq FROM pharox.ticks)
ORDER BY last_seq
"""


@contextmanager
def connected(url: str, *, autocommit: bool = True) -> Iterator[Connection]:
    """Connect to a database by a URL of SQLAlchemy; rows are dictionaries.

    A wait for a lock that nobody will give back is an error, not the end of the test run.
    """
    with psycopg.connect(
        url.replace("+psycopg", ""),
        autocommit=autocommit,
        row_factory=dict_row,
        options="-c lock_timeout=60s",
    ) as connection:
        yield connection


@contextmanager
def new_role(connection: Connection) -> Iterator[str]:
    """Make a role that may log in and nothing else, for a block."""
    role = f"pharox_{uuid4().hex[:12]}"
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
    try:
        yield role
    finally:
        connection.execute("RESET ROLE")
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def sealed_rows(connection: Connection) -> list[Row]:
    """Return all events, each with its seal, by ``seq``."""
    return connection.execute(SEALED).fetchall()


def ticks(connection: Connection) -> list[Row]:
    """Return all ticks in order, the last one included, which may still grow."""
    return connection.execute(TICKS).fetchall()


def check_order(rows: list[Row]) -> list[Row]:
    """Return all events once it is sure that each has a ``seq``, and that there is no gap."""
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert None not in [row["type"] for row in rows]
    return rows


def check_seal(connection: Connection) -> list[Row]:
    """Return all events once it is sure that they are sealed.

    Each committed event once, without a gap in ``seq``; each with its digest;
    each in one tick; each tick with the root that follows from the one before.
    """
    rows = check_order(sealed_rows(connection))
    digests = [digest(row) for row in rows]
    assert digests == [row["digest"] for row in rows]
    before, last = b"", 0
    for tick in ticks(connection):
        assert tick["first_seq"] == last + 1
        last = tick["last_seq"]
        before = root(before, tick, digests[tick["first_seq"] - 1 : last])
        assert before == tick["root"]
    assert last == len(rows)
    return rows


def append(connection: Connection, *consumers: str) -> None:
    """Append a miss for each consumer's name, in one statement."""
    connection.execute(
        "INSERT INTO pharox.events (recorded_at, schema_version, type, pool_id, consumer, "
        "pool_name, selector, data) "
        "SELECT pharox.clock(), 1, 'AcquireMissed', '00000000-0000-0000-0000-000000000000', "
        "name, 'none', 'first_available', jsonb_build_object('reason', 'unknown_pool') "
        "FROM unnest(%s::text[]) WITH ORDINALITY AS given (name, place) ORDER BY place",
        [list(consumers)],
    )


def seal(connection: Connection, *, wait: bool = False) -> int:
    """Seal what is new and return the last seq."""
    row = connection.execute("SELECT pharox.seal(%s) AS seq", [wait]).fetchone()
    assert row is not None
    return int(row["seq"])


def sealed_names(connection: Connection) -> list[str]:
    """Return the consumers that sealed events name, by ``seq``."""
    query = "SELECT consumer FROM pharox.events JOIN pharox.seals USING (position) ORDER BY seq"
    return [row["consumer"] for row in connection.execute(query)]
