"""Stored folds of the log, so that a question about the past need not begin at the first event.

A snapshot holds the read models as they stood after one event. It is a shortcut
and never the truth: it can be dropped at any time. Only where the events before
it have been archived it is what all else begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import BigInteger, func, literal_column, select

from pharox.log import Extract, partitions
from pharox.log.tables import snapshots
from projections import Projection

from .driver import Session
from .folding import BATCH, Folder
from .retention import refuse_archived
from .sql import Statement, compiled, parameter

ROWS_PER_EVENT = 5
"""A snapshot is left behind if it has at most so many rows for each event since the last."""


def fold_to(session: Session, ledger: str, projections: Sequence[Projection], seq: int) -> Folder:
    """Return a folder that has folded the log up to a seq, from the last snapshot before it."""
    session.take_room()
    folder = Folder(session, ledger, projections)
    folder.create()
    (known,) = session.rows(_last_before_statement(ledger), seq=seq)
    if known["seq"]:
        folder.load(known["seq"])
    rest = Extract(after=folder.seq, upto=seq)
    refuse_archived(session, ledger, rest)
    stored = folder.seq
    for reached in folder.advance(seq):
        passed = reached - stored
        if passed >= BATCH and folder.size() <= ROWS_PER_EVENT * passed:
            folder.store()
            stored = reached
    refuse_archived(session, ledger, rest)  # some may have left while the fold went on
    return folder


def base_of(session: Session, ledger: str) -> int:
    """Return the seq up to which events are archived, from whose snapshot all folds begin."""
    (row,) = session.rows(_archived_statement(ledger))
    return row["seq"]  # type: ignore[no-any-return]


def snapshots_after(session: Session, ledger: str, seq: int) -> list[int]:
    """Return the seqs of the stored snapshots that come after one, in order."""
    return [row["seq"] for row in session.rows(_after_statement(ledger), seq=seq)]


@lru_cache(maxsize=16)
def _after_statement(ledger: str) -> Statement:
    later = snapshots.c.seq > parameter("seq", BigInteger)
    return compiled(select(snapshots.c.seq).where(later).order_by(snapshots.c.seq), ledger)


@lru_cache(maxsize=16)
def _last_before_statement(ledger: str) -> Statement:
    newest = func.coalesce(func.max(snapshots.c.seq), literal_column("0")).label("seq")
    query = select(newest).where(snapshots.c.seq <= parameter("seq", BigInteger))
    return compiled(query, ledger)


@lru_cache(maxsize=16)
def _archived_statement(ledger: str) -> Statement:
    last = func.coalesce(func.max(partitions.c.last_seq), literal_column("0"))
    return compiled(select(last.label("seq")), ledger)
