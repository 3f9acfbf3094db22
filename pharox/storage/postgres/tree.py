"""Heads of the log's Merkle tree, and proofs from it: programs over seals and kept nodes.

What is kept is asked for first; what is not is computed from the level below, down to the
seals. So a ledger that nobody may write to is read more slowly, and answers the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from psycopg import sql
from sqlalchemy import BigInteger, Text, Uuid, cast, select
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from pharox.log import events, seals
from pharox.log.canonical import canonical
from pharox.log.tree import (
    HEIGHT,
    Inclusion,
    Node,
    Span,
    TreeHead,
    basis,
    consistency_spans,
    cover,
    inclusion_spans,
    leaf_hash,
    root_of,
)

from ...errors import ArchivedError, InvalidInputError
from ...models import check_whole
from .driver import Program
from .history import SEALED, positions_statement, seal_statement, within
from .retention import archived_statement
from .sql import Query, Statement, compiled, parameter

_WIDTH = 1 << HEIGHT

Known = dict[Node, bytes]


def head(ledger: str, size: int | None) -> Program[TreeHead]:
    """Return the head of the tree over the first ``size`` events, or all."""
    size = yield from _size(ledger, size)
    span = (0, size)
    known = yield from hashes_for(ledger, [span])
    return TreeHead(size, root_of(span, known))


def inclusion(
    ledger: str, seq: int, size: int | None, archived: Iterable[Mapping[str, Any]] = ()
) -> Program[Inclusion]:
    """Return the proof that an event is among the first ``size`` events, or all.

    Parameters
    ----------
    archived:
        Rows of an archive: the event's, and those of its tile, see :func:`tile_of`.
    """
    rows = {row["seq"]: row for row in archived}
    size = yield from _size(ledger, size)
    if not 1 <= check_whole(seq, "seq") <= size:
        raise InvalidInputError(f"there is no event {seq} among the first {size}", seq=seq)
    spans = inclusion_spans(seq - 1, size)
    leaves = {Node(0, each - 1): leaf_hash(row["digest"]) for each, row in rows.items()}
    known = yield from hashes_for(ledger, spans, leaves)
    event = canonical(rows[seq]) if seq in rows else (yield from _event(ledger, seq))
    return Inclusion(seq, size, event, tuple(root_of(span, known) for span in spans))


def consistency(ledger: str, old: int, size: int | None) -> Program[tuple[bytes, ...]]:
    """Return the proof that the tree over all ``size`` events continues that over ``old``."""
    size = yield from _size(ledger, size)
    if not 0 <= check_whole(old, "old") <= size:
        raise InvalidInputError(f"the log has {size} events, not {old}", old=old, size=size)
    spans = consistency_spans(old, size) if old else []
    known = yield from hashes_for(ledger, spans)
    return tuple(root_of(span, known) for span in spans)


def tile_of(seq: int) -> tuple[int, int]:
    """Return after which seq the events begin whose leaves prove an event, and the last of them."""
    first = (seq - 1) >> HEIGHT << HEIGHT
    return first, first + _WIDTH


def hashes_for(
    ledger: str, spans: Iterable[Span], leaves: Mapping[Node, bytes] = MappingProxyType({})
) -> Program[Known]:
    """Return hashes from which the roots of subtrees follow; ``leaves`` are known already.

    Raises
    ------
    ArchivedError
        If some are in an archived part of the log, and were not kept.
    """
    nodes = [node for span in spans for node in cover(span)]
    known: Known = dict(leaves)
    known |= yield from _kept(ledger, [(level, i, i + 1) for level, i in nodes])
    wanted = {basis(node) for node in nodes if node not in known}
    while wanted:
        known |= yield from _kept(ledger, [(level, *span) for level, span in wanted])
        lacking = sorted(
            (level, index)
            for level, (first, end) in wanted
            for index in range(first, end)
            if level and Node(level, index) not in known
        )
        yield from _add_leaves(ledger, known, [span for level, span in wanted if level == 0])
        wanted = {
            (level - HEIGHT, (index * _WIDTH, (index + 1) * _WIDTH)) for level, index in lacking
        }
    return known


def _size(ledger: str, size: int | None) -> Program[int]:
    """Seal, have the tree kept, and return how many events a tree is asked for of."""
    (row,) = yield Query(seal_statement(ledger, wait=True), {})
    last: int = row["seq"]
    if size is not None and not 0 <= check_whole(size, "size") <= last:
        raise InvalidInputError(f"the log has {last} events, not {size}", size=size, last_seq=last)
    wanted = last if size is None else size
    yield Query(_keep_statement(ledger), {"size": wanted, "with_leaves": False})
    return wanted


def keep(ledger: str, size: int) -> Query:
    """Return the query that keeps the tree of events that leave the database."""
    return Query(_keep_statement(ledger), {"size": size, "with_leaves": True})


def _kept(ledger: str, spans: Sequence[tuple[int, int, int]]) -> Program[Known]:
    levels, firsts, ends = (list(each) for each in zip(*spans, strict=True)) if spans else ([],) * 3
    if not levels:
        return {}
    values = {"levels": levels, "firsts": firsts, "ends": ends}
    rows = yield Query(_nodes_statement(ledger), values)
    return {Node(row["level"], row["index"]): row["hash"] for row in rows}


def _add_leaves(ledger: str, known: Known, spans: Sequence[Span]) -> Program[None]:
    for first, end in spans:
        lacking = [index for index in range(first, end) if Node(0, index) not in known]
        if not lacking:
            continue
        begin, upto = lacking[0], lacking[-1] + 1
        (positions,) = yield Query(positions_statement(ledger), {"after": begin, "upto": upto})
        rows = yield Query(_seals_statement(ledger), {**positions, "after": begin, "upto": upto})
        known |= {Node(0, row["seq"] - 1): leaf_hash(row["digest"]) for row in rows}
        if missing := [index for index in lacking if Node(0, index) not in known]:
            raise (yield from _missing(ledger, missing[0] + 1))


def _event(ledger: str, seq: int) -> Program[bytes]:
    """Return the bytes that an event's digest covers."""
    (positions,) = yield Query(positions_statement(ledger), {"after": seq - 1, "upto": seq})
    rows = yield Query(event_statement(ledger), {**positions, "after": seq - 1, "upto": seq})
    if not rows:
        raise (yield from _missing(ledger, seq))
    return canonical(rows[0])


def _missing(ledger: str, seq: int) -> Program[Exception]:
    """Return the error for an event that is not in the database."""
    parts = yield Query(archived_statement(ledger), {})
    last = max((part["last_seq"] or 0 for part in parts), default=0)
    if seq > last:
        return InvalidInputError(f"event {seq} is missing: `pharox verify` shows what was changed")
    return ArchivedError(
        f"event {seq} is in an archived part of the log: name the folder with --archive",
        last_seq=last,
    )


_KEEP = "SELECT {ledger}.keep_tree_v1($1::bigint, $2::boolean) AS done"
_NODES = """
    SELECT n.level, n.index, n.hash
    FROM unnest($1::smallint[], $2::bigint[], $3::bigint[]) AS wanted (level, first, ends)
    JOIN {ledger}.tree_nodes AS n
      ON n.level = wanted.level AND n.index >= wanted.first AND n.index < wanted.ends
"""


@lru_cache(maxsize=16)
def _keep_statement(ledger: str) -> Statement:
    return _written(_KEEP, ledger, ("size", "with_leaves"), ("done",))


@lru_cache(maxsize=16)
def _nodes_statement(ledger: str) -> Statement:
    return _written(_NODES, ledger, ("levels", "firsts", "ends"), ("level", "index", "hash"))


def _written(text: str, ledger: str, names: tuple[str, ...], columns: tuple[str, ...]) -> Statement:
    composed = sql.SQL(text).format(ledger=sql.Identifier(ledger))
    return Statement(composed.as_bytes(), names, {}, columns)


@lru_cache(maxsize=16)
def _seals_statement(schema: str) -> Statement:
    after, upto = parameter("after", BigInteger), parameter("upto", BigInteger)
    query = (
        select(seals.c.seq, seals.c.digest)
        .where(seals.c.seq > after, seals.c.seq <= upto, within(seals))
        .order_by(seals.c.seq)
    )
    return compiled(query, schema)


@lru_cache(maxsize=16)
def event_statement(schema: str) -> Statement:
    """Return the statement that reads sealed events as their digests cover them, in order."""
    after, upto = parameter("after", BigInteger), parameter("upto", BigInteger)
    query = (
        select(seals.c.seq, seals.c.digest, *map(_covered, events.c))
        .select_from(SEALED)
        .where(seals.c.seq > after, seals.c.seq <= upto, within(seals), within(events))
        .order_by(seals.c.seq)
    )
    return compiled(query, schema)


def _covered(column: Any) -> Any:
    """Return a column as the digest covers it: JSON as PostgreSQL prints it."""
    match column.type:
        case Uuid() | JSONB():
            return cast(column, Text).label(column.name)
        case ARRAY():
            return cast(column, ARRAY(Text)).label(column.name)
    if column.name == "tx":
        return cast(column, Text).label("tx")
    return column
