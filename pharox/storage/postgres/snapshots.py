"""Stored folds of the log, so that a question about the past need not begin at the first event.

A snapshot holds the read models as they stood after one event. It is a shortcut
and never the truth: it can be dropped at any time. Only where the events before
it have been archived it is what all else begins with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import BigInteger, Text, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY

from pharox.log import Extract, partitions
from pharox.log.tables import snapshots
from projections import Projection

from ...errors import ArchivedError
from .driver import Session
from .folding import BATCH, Folder
from .retention import refuse_archived
from .sql import Statement, compiled, parameter

EVENTS_PER_ROW = 5
"""A snapshot is left behind where it saves at least so many events for each of its rows."""


def fold_to(session: Session, ledger: str, projections: Sequence[Projection], seq: int) -> Folder:
    """Return a folder that has folded the log up to a seq, from the last snapshot before it.

    Further snapshots are left behind by those who may write them.
    """
    session.take_room()
    folder = Folder(session, ledger, projections)
    folder.create()
    names = _names(projections)
    (known,) = session.rows(_last_before_statement(ledger), seq=seq, names=names)
    if known["seq"]:
        folder.load(known["seq"])
    rest = Extract(after=folder.seq, upto=seq)
    refuse_archived(session, ledger, rest)
    stored, may_store = folder.seq, folder.may_store()
    for reached in folder.advance(seq):
        passed = reached - stored
        if may_store and passed >= BATCH and EVENTS_PER_ROW * folder.size() <= passed:
            folder.store()
            stored = reached
    refuse_archived(session, ledger, rest)  # some may have left while the fold went on
    return folder


class Stored(NamedTuple):
    """A stored snapshot: its place, and what it is a snapshot of."""

    seq: int
    projections: frozenset[str]


def base_of(session: Session, ledger: str, projections: Sequence[Projection]) -> int:
    """Return the seq up to which events are archived, from whose snapshot all folds begin.

    Raises
    ------
    ArchivedError
        If that snapshot knows nothing of one of the projections.
    """
    base = archived_upto(session, ledger)
    if base:
        stored = {each.seq: each.projections for each in snapshots_after(session, ledger, base - 1)}
        for name in _names(projections):
            if name not in stored.get(base, ()):
                raise ArchivedError(
                    f"{name} can't be folded from what is left: events up to seq {base} were "
                    "archived before it was known",
                    last_seq=base,
                )
    return base


def archived_upto(session: Session, ledger: str) -> int:
    """Return the seq up to which events are archived; 0 if none is."""
    (row,) = session.rows(_archived_statement(ledger))
    return row["seq"]  # type: ignore[no-any-return]


def snapshots_after(session: Session, ledger: str, seq: int) -> list[Stored]:
    """Return the stored snapshots that come after a seq, in order."""
    rows = session.rows(_after_statement(ledger), seq=seq)
    return [Stored(row["seq"], frozenset(row["projections"])) for row in rows]


def _names(projections: Sequence[Projection]) -> list[str]:
    return [projection.name for projection in projections]


@lru_cache(maxsize=16)
def _after_statement(ledger: str) -> Statement:
    query = select(snapshots.c.seq, snapshots.c.projections)
    later = snapshots.c.seq > parameter("seq", BigInteger)
    return compiled(query.where(later).order_by(snapshots.c.seq), ledger)


@lru_cache(maxsize=16)
def _last_before_statement(ledger: str) -> Statement:
    newest = func.coalesce(func.max(snapshots.c.seq), literal_column("0")).label("seq")
    query = select(newest).where(
        snapshots.c.seq <= parameter("seq", BigInteger),
        snapshots.c.projections.contains(parameter("names", ARRAY(Text))),
    )
    return compiled(query, ledger)


@lru_cache(maxsize=16)
def _archived_statement(ledger: str) -> Statement:
    last = func.coalesce(func.max(partitions.c.last_seq), literal_column("0"))
    return compiled(select(last.label("seq")), ledger)
