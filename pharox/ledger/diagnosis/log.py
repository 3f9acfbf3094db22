"""Examine the log: its parts, how far it is sealed, and who follows it."""

from __future__ import annotations

from collections.abc import Sequence

from ...storage.postgres import PostgresStorage
from ..subscriptions import statements
from ..subscriptions.administration import SubscriptionStatus
from .findings import Diagnosis, Reader, Result, lasting

MOST_PARTS = 200
"""How many parts the log may have before each statement's plan takes noticeably longer."""

MOST_UNSEALED = 1_000_000
"""How many events may wait for their order before the next reader waits long."""

LAG_S = 60.0
"""How far a subscription may be behind; the alert that comes along has the same figure."""

_PARTS = """
    SELECT count(*) AS parts, coalesce(max(end_position), 0) AS ends,
           coalesce((SELECT max(position) FROM {ledger}.events), 0) AS last
    FROM {ledger}.partitions WHERE archived_at IS NULL
"""
_UNSEALED = """
    SELECT coalesce((SELECT max(position) FROM {ledger}.events), 0)
             - coalesce((SELECT unsealed_after FROM {ledger}.last_tick), 0) AS events,
           coalesce((SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)
                     FROM {ledger}.events AS e
                     WHERE e.position > coalesce(
                             (SELECT unsealed_after FROM {ledger}.last_tick), 0)
                       AND NOT EXISTS (SELECT 1 FROM {ledger}.seals AS s
                                       WHERE s.position = e.position)
                     ORDER BY e.position LIMIT 1), 0)::float AS age_s
"""


def parts(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine the parts of the log, and how much room the last one has."""
    return judged_parts(**reader.row(_PARTS))


def judged_parts(parts: int, ends: int, last: int) -> Diagnosis:
    """Judge the number of parts; the last ends before a position, and the next is added then."""
    finding = f"{parts} {'part' if parts == 1 else 'parts'}, room for {ends - last - 1} more events"
    if parts > MOST_PARTS:
        advice = "move old ones to files: `pharox archive write`"
        return Diagnosis("log", Result.WARNING, finding, advice)
    return Diagnosis("log", Result.OK, f"{finding} before the next is added")


def sealing(reader: Reader, _storage: PostgresStorage) -> Diagnosis:
    """Examine how many events have no final order yet."""
    return judged_sealing(**reader.row(_UNSEALED))


def judged_sealing(events: int, age_s: float) -> Diagnosis:
    """Judge events without a seal: about how many, and how old the first of them is.

    Whoever reads the log seals it first, so old ones only say that nobody reads.
    """
    if age_s == 0:
        return Diagnosis("sealing", Result.OK, "all events are sealed")
    finding = f"up to {events} events are not sealed, the first for {lasting(age_s)}"
    if events > MOST_UNSEALED:
        advice = "the next reader seals them first, and waits: run `pharox log --limit 1` now"
        return Diagnosis("sealing", Result.WARNING, finding, advice)
    return Diagnosis("sealing", Result.OK, f"{finding}: the next reader seals them")


def subscriptions(reader: Reader, storage: PostgresStorage) -> Diagnosis:
    """Examine who follows the log, how far behind, and which events failed."""
    with storage.session(keep=False) as session:
        rows = session.rows(statements.statuses(reader.schema))
    return judged_subscriptions([SubscriptionStatus(**row) for row in rows])


def judged_subscriptions(statuses: Sequence[SubscriptionStatus]) -> Diagnosis:
    """Judge subscriptions: all that lag or have parked events are named."""
    if not statuses:
        return Diagnosis("subscriptions", Result.OK, "there are none")
    findings, advice = [], []
    for status in statuses:
        if status.lag_seconds > LAG_S:
            reader = "its reader is slow" if status.active else "it has no reader"
            findings.append(
                f"{status.name} is {status.lag_events} events and {lasting(status.lag_seconds)} "
                f"behind: {reader}"
            )
        if status.parked:
            findings.append(f"{status.name} has {status.parked} parked events")
    if any(status.lag_seconds > LAG_S for status in statuses):
        advice.append("look for the program that should read")
    if any(status.parked for status in statuses):
        advice.append("see their errors: `pharox subscriptions parked NAME`, then `retry`")
    if findings:
        found = "; ".join(findings)
        return Diagnosis("subscriptions", Result.WARNING, found, "; ".join(advice))
    names = ", ".join(status.name for status in statuses)
    return Diagnosis("subscriptions", Result.OK, f"up to date: {names}")
