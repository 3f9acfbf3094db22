"""Store snapshots of the read models, so that a fold need not start at the first event.

A snapshot contains the read models as they were after one event. It is a cache and not
the source of truth, so it can be dropped at any time. The exception is the snapshot at
the end of the archived events, from which all folds start.

Storing a snapshot thins out earlier ones. The distances between them grow with
their age, so their number grows with the logarithm of the log's length. Snapshots
of archived events are not removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import BigInteger, Text, delete, func, literal_column, select
from sqlalchemy.dialects.postgresql import ARRAY

from pharox.log import Extract, partitions
from pharox.log.tables import snapshot_rows, snapshots
from projections import Projection

from ...errors import ArchivedError
from .driver import Session
from .folding import BATCH, Folder
from .retention import refuse_archived
from .sql import Statement, compiled, parameter

EVENTS_PER_ROW = 5
"""A snapshot is stored if it saves folding at least this many events for each of its rows."""


EVENTS_PER_GAP = 10
"""A snapshot is removed if the gap it leaves, times this, is at most its distance to the last."""


def fold_to(session: Session, ledger: str, projections: Sequence[Projection], seq: int) -> Folder:
    """Return a folder that has folded the log up to a seq, from the last snapshot before it.

    It stores further snapshots on the way if the role may write them.
    """
    session.take_room()
    folder = _begun(session, ledger, projections, seq)
    rest = Extract(after=folder.seq, upto=seq)
    refuse_archived(session, ledger, rest)
    began = stored = folder.seq
    may_store = folder.may_store()
    for reached in folder.advance(seq):
        passed = reached - stored
        if may_store and passed >= BATCH and EVENTS_PER_ROW * folder.size() <= passed:
            folder.store()
            stored = reached
    if stored > began:
        thin(session, ledger, projections, stored)
    refuse_archived(session, ledger, rest)  # some may have been archived during the fold
    return folder


def _begun(session: Session, ledger: str, projections: Sequence[Projection], seq: int) -> Folder:
    """Return a folder that has loaded the whole last snapshot before a seq."""
    folder = Folder(session, ledger, projections)
    folder.create()
    # Another session may remove it meanwhile. If it is still listed afterwards, it was complete.
    while (found := _last_before(session, ledger, projections, seq)) != folder.seq:
        folder.drop()
        folder.create()
        folder.seq = 0
        if found:
            folder.load(found)
    return folder


def _last_before(session: Session, ledger: str, projections: Sequence[Projection], seq: int) -> int:
    names = _names(projections)
    (known,) = session.rows(_last_before_statement(ledger), seq=seq, names=names)
    answer: int = known["seq"]
    return answer


def thin(session: Session, ledger: str, projections: Sequence[Projection], kept: int) -> None:
    """Remove the snapshots of these projections that are no longer needed, except ``kept``."""
    base, names = archived_upto(session, ledger), frozenset(_names(projections))
    stored = [s.seq for s in snapshots_after(session, ledger, base) if s.projections == names]
    superfluous = [seq for seq in not_needed(stored, base) if seq != kept]
    if superfluous:
        removed = session.rows(_remove_statement(ledger), seqs=superfluous)
        session.run(_remove_rows_statement(ledger), seqs=[row["seq"] for row in removed])


def not_needed(stored: Sequence[int], base: int) -> list[int]:
    """Return which snapshots can be removed.

    Parameters
    ----------
    stored:
        The seqs of all snapshots after ``base``, in order.
    base:
        The seq at which a fold without a snapshot starts.
    """
    removed = []
    following = last = stored[-1] if stored else base
    for before, seq in reversed(list(pairwise([base, *stored[:-1]]))):
        if EVENTS_PER_GAP * (following - before) <= last - seq:
            removed.append(seq)
        else:
            following = seq
    return removed


class Stored(NamedTuple):
    """A stored snapshot: its seq, and the projections that it contains."""

    seq: int
    projections: frozenset[str]


def base_of(session: Session, ledger: str, projections: Sequence[Projection]) -> int:
    """Return the seq up to which events are archived. All folds start from its snapshot.

    Raises
    ------
    ArchivedError
        If that snapshot does not contain one of the projections.
    """
    base = archived_upto(session, ledger)
    if base:
        stored = {each.seq: each.projections for each in snapshots_after(session, ledger, base - 1)}
        for name in _names(projections):
            if name not in stored.get(base, ()):
                raise ArchivedError(
                    f"{name} cannot be folded from the log: events up to seq {base} were archived "
                    "before it was installed",
                    last_seq=base,
                )
    return base


def archived_upto(session: Session, ledger: str) -> int:
    """Return the seq up to which events are archived, or 0."""
    (row,) = session.rows(_archived_statement(ledger))
    answer: int = row["seq"]
    return answer


def snapshots_after(session: Session, ledger: str, seq: int) -> list[Stored]:
    """Return the stored snapshots after a seq, in order."""
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
def _remove_statement(ledger: str) -> Statement:
    """Return the statement that removes snapshots, except those that others are removing."""
    free = (
        select(snapshots.c.seq)
        .where(snapshots.c.seq == func.any(parameter("seqs", ARRAY(BigInteger))))
        .with_for_update(skip_locked=True)
    )
    removing = delete(snapshots).where(snapshots.c.seq.in_(free))
    return compiled(removing.returning(snapshots.c.seq), ledger)


@lru_cache(maxsize=16)
def _remove_rows_statement(ledger: str) -> Statement:
    rows = snapshot_rows.c.seq == func.any(parameter("seqs", ARRAY(BigInteger)))
    return compiled(delete(snapshot_rows).where(rows), ledger)


@lru_cache(maxsize=16)
def _archived_statement(ledger: str) -> Statement:
    last = func.coalesce(func.max(partitions.c.last_seq), literal_column("0"))
    return compiled(select(last.label("seq")), ledger)
