"""Examine the server: its version, settings, clock and connections, and what is before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from ...errors import DatabaseError
from ...models import utc_now
from ...storage.postgres import PostgresStorage
from ...storage.postgres.driver import check_own_session
from .findings import Diagnosis, Reader, Result

OLDEST, NEWEST = 14, 18
"""The major versions of PostgreSQL that the ledger is tested with."""

SKEW_S = 1.0
"""How far a clock may be from the server's before times that people type mean something else."""

MOST_USED = 0.8
"""The share of connections above which the server may soon refuse one."""

PER_PROCESS = 30
"""How many connections a storage takes at most."""

_SETTINGS = """
    SELECT name, coalesce(reset_val, setting) AS value FROM pg_settings
    WHERE name IN ('default_transaction_isolation', 'default_transaction_read_only', 'fsync',
                   'full_page_writes', 'synchronous_commit', 'autovacuum')
    UNION ALL SELECT 'in_recovery', pg_is_in_recovery()::text
"""
_CONNECTIONS = """
    SELECT current_setting('max_connections')::int
             - current_setting('superuser_reserved_connections')::int AS most,
           count(*) AS used,
           count(*) FILTER (WHERE application_name = 'pharox') AS own
    FROM pg_stat_activity WHERE backend_type = 'client backend'
"""


def version(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine the version of PostgreSQL."""
    return judged_version(reader.connection.info.server_version)


def judged_version(number: int) -> Diagnosis:
    """Judge a version as libpq tells it, such as 180004."""
    major, minor = divmod(number, 10_000)
    finding = f"PostgreSQL {major}.{minor}"
    if major < OLDEST:
        advice = f"the ledger needs PostgreSQL {OLDEST} or later: upgrade the server"
        return Diagnosis("server", Result.PROBLEM, finding, advice)
    if major > NEWEST:
        advice = f"pharox is tested up to PostgreSQL {NEWEST}: look for a newer pharox"
        return Diagnosis("server", Result.WARNING, finding, advice)
    return Diagnosis("server", Result.OK, finding)


def settings(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine the settings that promises of the ledger stand on."""
    return judged_settings({row["name"]: row["value"] for row in reader.rows(_SETTINGS)})


def judged_settings(values: Mapping[str, str]) -> Diagnosis:
    """Judge settings by their names; the worst result is that of all."""
    found = [*_faults(values)]
    if not found:
        return Diagnosis("server settings", Result.OK, "transactions are durable and isolated")
    result = Result.PROBLEM if any(each[0] is Result.PROBLEM for each in found) else Result.WARNING
    _, findings, advice = zip(*found, strict=True)
    return Diagnosis("server settings", result, "; ".join(findings), "; ".join(advice))


def _faults(values: Mapping[str, str]) -> Iterator[tuple[Result, str, str]]:
    if values.get("in_recovery") == "true":
        yield Result.PROBLEM, "the server is a standby", "connect to the primary"
    elif values.get("default_transaction_read_only") == "on":
        yield (
            Result.WARNING,
            "transactions are read-only by default: who connects so only reads",
            "leave it for a role that only reads, else set default_transaction_read_only to off "
            "for the database and the role",
        )
    for name in ("fsync", "full_page_writes"):
        if values.get(name) == "off":
            yield Result.PROBLEM, f"{name} is off: a crash may destroy the log", f"set {name} to on"
    if values.get("synchronous_commit") == "off":
        yield (
            Result.WARNING,
            "synchronous_commit is off: a crash may take back leases that were granted",
            "set synchronous_commit to on for the role",
        )
    if values.get("autovacuum") == "off":
        yield Result.WARNING, "autovacuum is off: tables grow and slow down", "set it to on"
    isolation = values.get("default_transaction_isolation", "read committed")
    if isolation != "read committed":
        yield (
            Result.WARNING,
            f"the default isolation is {isolation}, which engines made elsewhere cannot use",
            "set default_transaction_isolation to 'read committed' for the role",
        )


def pooler(reader: Reader, storage: PostgresStorage) -> Diagnosis:
    """Examine whether a pooler stands before the server, and lends sessions to others."""
    connection = reader.connection
    pid = reader.row("SELECT pg_backend_pid() AS pid")["pid"]
    if pid == connection.info.backend_pid:
        return Diagnosis("pooler", Result.OK, "none: connected to PostgreSQL directly")
    try:
        with storage.own_session() as own:
            check_own_session(own.connection)
    except DatabaseError:
        return Diagnosis(
            "pooler",
            Result.WARNING,
            "a pooler gives sessions to others after each transaction",
            "leasing works; rebuild, archive and grant need a direct connection, and subscriptions "
            "look for events instead of being woken",
        )
    return Diagnosis("pooler", Result.OK, "a pooler that keeps a client's session")


def clock(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine how far this machine's clock is from the server's."""
    before = utc_now()
    there = reader.row("SELECT clock_timestamp() AS now")["now"]
    after = utc_now()
    return judged_clock(there - before, after - there)


def judged_clock(ahead: timedelta, behind: timedelta) -> Diagnosis:
    """Judge a clock.

    Parameters
    ----------
    ahead, behind:
        From the question to the server's time, and from there to the answer. Clocks that agree
        have both from 0 on; a difference of less than the whole cannot be told from the way.
    """
    skew = max(-ahead.total_seconds(), -behind.total_seconds(), 0.0)
    if skew <= SKEW_S:
        return Diagnosis("clock", Result.OK, "this machine's clock agrees with the server's")
    word = "ahead of" if ahead < timedelta(0) else "behind"
    return Diagnosis(
        "clock",
        Result.WARNING,
        f"this machine's clock is {skew:.1f} s {word} the server's",
        "leases go by the server's clock; times that are typed or logged here do not: run NTP",
    )


def connections(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine how many of the server's connections are in use."""
    return judged_connections(**reader.row(_CONNECTIONS))


def judged_connections(most: int, used: int, own: int) -> Diagnosis:
    """Judge the use of connections: how many there may be, are, and are pharox's."""
    finding = f"{used} of {most} are in use, {own} of them by pharox"
    if used >= MOST_USED * most:
        advice = (
            "raise max_connections, or put a pooler before the server: a process of pharox takes "
            f"up to {PER_PROCESS}"
        )
        return Diagnosis("connections", Result.WARNING, finding, advice)
    more = (most - used) // PER_PROCESS
    return Diagnosis(
        "connections", Result.OK, f"{finding}; room for {more} more processes under full load"
    )
