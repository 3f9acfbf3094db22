"""Examine what has to be done now and then: vacuum, ended leases, health checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...models import MoveStage
from ...storage.moving import LEAVING, STUCK_S, move_command
from ...storage.postgres import PostgresStorage
from .findings import Diagnosis, Reader, Result, lasting

DEAD_ROWS, DEAD_SHARE = 10_000, 0.5
"""A table with so many dead rows, and so many of its rows dead, was not vacuumed in time."""

INDEX_BYTES, INDEX_SHARE = 256 * 2**20, 5
"""Indexes of so many bytes, and so many times the table, are mostly empty pages."""

OPEN_S = 300.0
"""How long a transaction may be open: until its end nothing that died since is vacuumed."""

OVERDUE_S = 600.0
"""How long leases may have run out before somebody ends them: the alert has the same figure."""

CHECK_AGE_S = 3600.0
"""How long ago the last health check may be, where there were some."""

_TABLES = """
    SELECT s.relname AS name, s.n_live_tup AS live, s.n_dead_tup AS dead,
           extract(epoch FROM clock_timestamp()
                   - greatest(s.last_vacuum, s.last_autovacuum))::float AS vacuumed_s,
           pg_table_size(s.relid) AS bytes, pg_indexes_size(s.relid) AS index_bytes
    FROM pg_stat_user_tables AS s WHERE s.schemaname = %(schema)s ORDER BY s.relname
"""
_OPEN = """
    SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float AS age_s,
           (array_agg(pid ORDER BY xact_start))[1] AS pid
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND backend_type = 'client backend'
"""
_OVERDUE = """
    SELECT count(*) AS number,
           coalesce(max(extract(epoch FROM clock_timestamp() - expires_at)), 0)::float AS age_s
    FROM {ledger}.leases
    WHERE status = 'active' AND expires_at < clock_timestamp() - %(age)s * interval '1 second'
"""
_MOVES = """
    SELECT pool_name, ledger, stage,
           extract(epoch FROM clock_timestamp() - changed_at)::float AS age_s
    FROM {ledger}.pool_moves WHERE stage IN ('began', 'departed') ORDER BY changed_at
"""
_CHECKS = """
    SELECT count(*) AS number,
           extract(epoch FROM clock_timestamp() - max(checked_at))::float AS age_s
    FROM {ledger}.proxy_health
"""


def tables(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine the tables for dead rows, and their indexes for empty pages."""
    return judged_tables(reader.rows(_TABLES, schema=reader.schema), reader.schema)


def judged_tables(rows: Sequence[Mapping[str, Any]], schema: str) -> Diagnosis:
    """Judge tables by the server's counts; those that are bloated are named."""
    findings, advice = [], []
    for row in rows:
        dead, live = row["dead"], row["live"]
        if dead > DEAD_ROWS and dead > DEAD_SHARE * (dead + live):
            when = row["vacuumed_s"]
            last = "never vacuumed" if when is None else f"vacuumed {lasting(when)} ago"
            findings.append(f"{row['name']} has {dead} dead rows of {dead + live}, {last}")
            advice.append(f"VACUUM {schema}.{row['name']}")
        if row["index_bytes"] > max(INDEX_BYTES, INDEX_SHARE * row["bytes"]):
            findings.append(f"the indexes of {row['name']} have {row['index_bytes'] >> 20} MiB")
            advice.append(f"REINDEX TABLE CONCURRENTLY {schema}.{row['name']}")
    if not findings:
        return Diagnosis("tables", Result.OK, "no table is bloated")
    todo = f"look for long transactions, then: {'; '.join(advice)}"
    return Diagnosis("tables", Result.WARNING, "; ".join(findings), todo)


def transactions(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine whether a transaction of the database has been open for long."""
    return judged_transactions(**reader.row(_OPEN))


def judged_transactions(age_s: float, pid: int | None) -> Diagnosis:
    """Judge the oldest transaction by its age; a role sees those of others only if it may."""
    if age_s <= OPEN_S:
        return Diagnosis("transactions", Result.OK, "none has been open for long")
    return Diagnosis(
        "transactions",
        Result.WARNING,
        f"process {pid} has a transaction open for {lasting(age_s)}: nothing is vacuumed meanwhile",
        f"look in pg_stat_activity what process {pid} does, and end it if nobody needs it",
    )


def leases(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine whether leases that ran out are ended."""
    return judged_leases(**reader.row(_OVERDUE, age=OVERDUE_S))


def judged_leases(number: int, age_s: float) -> Diagnosis:
    """Judge the leases that ran out too long ago: how many, and the oldest of them."""
    if not number:
        return Diagnosis("leases", Result.OK, "none that ran out waits to be ended")
    return Diagnosis(
        "leases",
        Result.WARNING,
        f"{number} ran out and were not ended, the first {lasting(age_s)} ago",
        "nobody asks for their proxies; call storage.cleanup_expired_leases() now and then",
    )


def moves(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine whether pools stand between two ledgers."""
    return judged_moves(reader.rows(_MOVES))


def judged_moves(rows: Sequence[Mapping[str, Any]]) -> Diagnosis:
    """Judge the moves that have not ended: those with which nobody goes on are named."""
    stuck = [row for row in rows if row["age_s"] > STUCK_S[MoveStage(row["stage"])]]
    if not stuck:
        finding = f"{len(rows)} under way" if rows else "no pool is between two ledgers"
        return Diagnosis("moves", Result.OK, finding)
    has_left = any(row["stage"] == MoveStage.DEPARTED for row in stuck)
    said = [
        f"pool {row['pool_name']!r} {LEAVING[row['stage']]} for the ledger {row['ledger']!r} "
        f"{lasting(row['age_s'])} ago and has not arrived"
        for row in stuck
    ]
    todo = [f"`{move_command(row['pool_name'], row['ledger'])}`" for row in stuck]
    return Diagnosis(
        "moves",
        Result.PROBLEM if has_left else Result.WARNING,
        "; ".join(said),
        f"go on with {', '.join(todo)}, or take it back with --back in place of --to",
    )


def health_checks(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine whether proxies are still checked, where they were."""
    return judged_health_checks(**reader.row(_CHECKS))


def judged_health_checks(number: int, age_s: float | None) -> Diagnosis:
    """Judge health checks: how many proxies had one, and how long ago the last one was."""
    if age_s is None:
        finding = "no proxy was ever checked: `pharox sweep` does it"
        return Diagnosis("health checks", Result.OK, finding)
    finding = f"the last one was {lasting(max(age_s, 0.0))} ago, of {number} proxies with one"
    if age_s > CHECK_AGE_S:
        advice = "look for the sweep that should run: `pharox sweep --every 60s`"
        return Diagnosis("health checks", Result.WARNING, finding, advice)
    return Diagnosis("health checks", Result.OK, finding)
