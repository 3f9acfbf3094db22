"""Compare the log with signed heads of its tree, whatever the database's functions say.

The database is asked for rows alone. Every digest is computed here, from an event's columns, and
every root from the seals: a function that somebody replaced changes neither. A root that differs
tells that an event up to there was changed after the head was signed, and after the head before.

Events that were archived are read from their files if these are given. Otherwise what was kept of
their tree stands for them, which leads to the signed root or does not. Which events those are is a
row that the owner can write, so a note says how many were not read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any

from pharox.log.canonical import digest
from pharox.log.signed_heads import CHECKPOINT, contradictions, difference, shorter
from pharox.log.tree import Frontier, TreeHead, cover, hash_of, leaf_hash, root_of
from projections import Finding

from ...effects import run
from ...errors import ArchivedError, InvalidInputError
from . import tree
from .driver import Program, Session
from .history import positions_statement
from .retention import Part, archived_statement

DIGESTS = "digests"

Rows = Iterator[Mapping[str, Any]]

Archive = Callable[[Sequence[Part]], Rows]
"""Reads the events of archived parts in their sealed order, as an archive's files have them."""

_seq = itemgetter("seq")


def verify_heads(
    session: Session, ledger: str, heads: Collection[TreeHead], archive: Archive | None = None
) -> Iterator[Finding]:
    """Yield which heads the log differs from, and which events from their seals.

    Parameters
    ----------
    session:
        A session with a snapshot.
    heads:
        What was signed, in any order.
    archive:
        What reads archived events, so that they are compared, too.
    """
    ordered = sorted(heads)
    yield from contradictions(ordered)
    parts = session.rows(archived_statement(ledger))
    if archive is not None:
        log = _Log(session, ledger, Frontier(0, []), archive(parts))
        yield from _compared(log, ordered, 0)
        return
    last = max((part["last_seq"] or 0 for part in parts), default=0)
    matched = 0
    for head in (head for head in ordered if head.size <= last):
        finding = _kept_difference(session, ledger, head, matched)
        if finding is None:
            matched = head.size
        else:
            yield finding
    later = [head for head in ordered if head.size > last]
    if not later:
        return
    try:
        begun = _frontier(session, ledger, last)
    except (ArchivedError, InvalidInputError) as error:
        for head in later:
            yield Finding(CHECKPOINT, {"size": head.size}, {"tree": str(error)}, {"tree": "kept"})
        return
    yield from _compared(_Log(session, ledger, begun, iter(())), later, matched)


def archive_notes(session: Session, ledger: str) -> Iterator[str]:
    """Yield how many events were not read because the ledger says that they are archived."""
    parts = session.rows(archived_statement(ledger))
    if last := max((part["last_seq"] or 0 for part in parts), default=0):
        yield (
            f"the ledger says that events up to {last:,} are archived, in {len(parts)} parts: "
            "without their files, by --archive, those of these parts are not read"
        )


class _Log:
    """The log that is in the database and in files, read once from its first event to its last."""

    def __init__(self, session: Session, ledger: str, begun: Frontier, archived: Rows) -> None:
        self._session, self._ledger, self._archived = session, ledger, archived
        self.tree = begun

    def findings(self, upto: int, stops: Collection[int]) -> Generator[Finding | int]:
        """Yield what differs, and the size whenever the tree has one of these sizes."""
        after = self.tree.size
        ends = positions_statement(self._ledger)
        positions = self._session.rows(ends, after=after, upto=upto)[0]
        rows = self._session.stream(
            tree.event_statement(self._ledger), after=after, upto=upto, **positions
        )
        with closing(rows):  # type: ignore[type-var] # a generator
            for row in _in_order(self._archived, rows):
                if row["seq"] != self.tree.size + 1:
                    return  # an event is missing, or there twice: nothing behind it has its place
                if (made := digest(row)) != row["digest"]:
                    key, found = {"seq": row["seq"]}, {"digest": made.hex()}
                    yield Finding(DIGESTS, key, found, {"digest": row["digest"].hex()})
                self.tree.append(leaf_hash(row["digest"]))
                if self.tree.size in stops:
                    yield self.tree.size


def _in_order(archived: Rows, live: Rows) -> Rows:
    """Merge rows by seq; an event that is in a file and still in the log is read from the file."""
    for _, alike in groupby(merge(archived, live, key=_seq), key=_seq):
        first, *others = alike
        yield first
        yield from (other for other in others if other["digest"] != first["digest"])


def _compared(log: _Log, heads: Sequence[TreeHead], matched: int) -> Iterator[Finding]:
    by_size: dict[int, list[TreeHead]] = {}
    for head in heads:
        by_size.setdefault(head.size, []).append(head)
    for found in log.findings(max(by_size), by_size.keys()):
        if isinstance(found, Finding):
            yield found
            continue
        root = log.tree.root()
        differing = [head for head in by_size.pop(found) if head.root != root]
        for head in differing:
            yield difference(head.size, root, head.root, matched)
        matched = matched if differing else found
    for size in sorted(by_size):
        yield shorter(by_size[size][0], log.tree.size)


def _kept_difference(session: Session, ledger: str, head: TreeHead, matched: int) -> Finding | None:
    """Return how a head of archived events differs from what was kept of their tree."""
    try:
        root = run(_root(ledger, head.size), lambda query: _asked(session, query))
    except (ArchivedError, InvalidInputError) as error:
        return Finding(CHECKPOINT, {"size": head.size}, {"tree": str(error)}, {"tree": "kept"})
    return None if root == head.root else difference(head.size, root, head.root, matched)


def _root(ledger: str, size: int) -> Program[bytes]:
    span = (0, size)
    return root_of(span, (yield from tree.hashes_for(ledger, [span])))


def _frontier(session: Session, ledger: str, size: int) -> Frontier:
    """Return the tree over archived events."""
    span = (0, size)
    known = run(tree.hashes_for(ledger, [span]), lambda query: _asked(session, query))
    return Frontier(size, [hash_of(node, known) for node in cover(span)])


def _asked(session: Session, query: Any) -> list[dict[str, Any]]:
    """Carry out a query of a program, each of which is one statement here."""
    return session.rows(query.statement, **query.values)
