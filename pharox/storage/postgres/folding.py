"""Fold the sealed log with the projections' SQL into tables of another schema.

Rebuilds, verification and point-in-time queries use it: they fold ranges of the log
into empty tables. A range is copied into a temporary table once, and all folds of all
projections read that copy. The live read models are not touched.

The folds of a projection run in one order: registrations, changes, removals. This is
also the order in time, unless something is registered again after its removal, or
takes a name that another gave up. The copy is cut before such an event, and its
slices are folded one after another.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

from psycopg import sql
from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Table,
    Text,
    cast,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from pharox.events import recorded_types
from pharox.log import events, last_tick, seals
from pharox.log.extract import BIGGEST
from pharox.log.tables import Xid8, snapshots
from projections import Events, Projection, State

from .checks_apart import check_columns, checks_of
from .driver import Session
from .history import SEALED, positions_statement, within
from .schema import check_version, version_statement
from .sql import ONE, TEMPORARY, Statement, compiled, definition, now, parameter, text_literal

BATCH = 200_000
"""How many events are folded at once."""

MANY = 10_000
"""The number of events from which a range is read as a whole."""

STORED_TIME_ZONE = "SET LOCAL TimeZone = 'UTC'"
"""The time zone in which stored rows print timestamps, so that equal rows have equal texts."""

_NOT_FOLDED = ("tx", "schema_version")

_PLACED = ("seq", "position", "recorded_at", "pool_id", "actor", "correlation_id")

_batch = Table(
    "pharox_batch",
    MetaData(),
    Column("seq", BigInteger),
    *(Column(own.name, own.type) for own in events.c if own.name not in _NOT_FOLDED),
    schema=TEMPORARY,
)


class Folder:
    """Folds ranges of one ledger's log into the tables of a target schema.

    Parameters
    ----------
    session:
        A session of the ledger's database.
    ledger:
        The schema whose log is read.
    target:
        The schema whose tables are written; by default the session's temporary
        tables.
    projections:
        The projections to fold. They do not depend on each other.

    Raises
    ------
    SchemaError
        If the ledger's version is not the one that this code was written for: it may have events
        that this code would fold wrongly.
    """

    def __init__(
        self,
        session: Session,
        ledger: str,
        projections: Sequence[Projection],
        target: str = TEMPORARY,
    ) -> None:
        (found,) = session.rows(version_statement(ledger)) or ({"version": None},)
        check_version(found["version"], ledger)
        self.session = session
        self.ledger, self.target = ledger, target
        self.projections = tuple(projections)
        self.seq = 0
        self.batch = BATCH
        self._folds = [
            fold for projection in self.projections for fold in _fold_statements(projection, target)
        ]
        self._types = sorted(
            recorded_types(
                frozenset[str]().union(*(projection.types() for projection in self.projections))
            )
        )

    def create(self) -> None:
        """Create the target's tables, with primary keys and no other indexes."""
        for projection in self.projections:
            self.session.run(_create_statement(projection, self.target))

    def create_indexes(self) -> None:
        """Create the indexes of the target's tables. This is faster once they are full."""
        for projection in self.projections:
            indexes = sorted(projection.table.indexes, key=lambda index: str(index.name))
            for index in indexes:
                self.session.run(definition(CreateIndex(index), self.target))

    def analyze(self) -> None:
        """Update the planner's statistics of the target's tables."""
        for projection in self.projections:
            table = sql.Identifier(self.target, projection.table.name)
            self.session.connection.execute(sql.SQL("ANALYZE {}").format(table))

    def drop(self) -> None:
        """Drop the tables that :meth:`create` created, and the batch."""
        for table in (*(projection.table for projection in self.projections), _batch):
            self.session.run(definition(DropTable(table, if_exists=True), self.target))

    def load(self, seq: int) -> None:
        """Load the stored snapshot of this seq."""
        for projection in self.projections:
            self.session.run(_load_statement(self.ledger, self.target, projection), seq=seq)
        self.seq = seq

    def may_store(self) -> bool:
        """Return whether the session's role may store and remove snapshots."""
        (row,) = self.session.rows(_may_store_statement(self.ledger))
        answer: bool = row["may"]
        return answer

    def store(self) -> None:
        """Store the folded state as a snapshot, unless there is one of this seq."""
        self.session.connection.execute(STORED_TIME_ZONE)
        names = [projection.name for projection in self.projections]
        header = _snapshot_statement(self.ledger)
        if not self.session.run(header, seq=self.seq, projections=names):
            return
        for projection in self.projections:
            statement = _store_statement(self.ledger, self.target, projection)
            self.session.run(statement, seq=self.seq)

    def size(self) -> int:
        """Return how many rows a snapshot of the folded state would have."""
        current = (
            select(func.count())
            .select_from(projection.table)
            .where(projection.current())
            .scalar_subquery()
            for projection in self.projections
        )
        total = functools.reduce(operator.add, current)
        (row,) = self.session.rows(compiled(select(total.label("size")), self.target))
        answer: int = row["size"]
        return answer

    def states(self) -> dict[str, State]:
        """Return the folded state as the projections' Python states."""
        return read_states(self.session, self.target, self.projections)

    def fold_to(self, upto: int) -> None:
        """Fold the next events, up to this seq."""
        for _ in self.advance(upto):
            pass

    def advance(self, upto: int) -> Iterator[int]:
        """Fold up to this seq batch by batch, and yield the seq after each."""
        while self.seq < upto:
            self.seq = self._fold_batch(min(self.seq + self.batch, upto))
            yield self.seq

    def fold_sealed(self) -> None:
        """Fold all sealed events that the session sees."""
        self.fold_to(self._last_tick()["seq"])

    def fold_visible(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Fold all events that the session sees, sealed or not.

        ``progress`` is called after each batch with the seq reached, and the last one.
        """
        last = self._last_tick()
        upto = last.pop("seq")
        for reached in self.advance(upto):
            if progress is not None:
                progress(reached, upto)
        self._fold_copied(_copy_unsealed_statement(self.ledger), {"after": self.seq, **last})

    def _last_tick(self) -> dict[str, Any]:
        rows = self.session.rows(_last_tick_statement(self.ledger))
        return rows[0] if rows else dict(_NO_TICK)

    def _fold_batch(self, upto: int) -> int:
        span = {"after": self.seq, "upto": upto}
        (positions,) = self.session.rows(positions_statement(self.ledger), **span)
        many = upto - self.seq >= MANY
        if many and positions["last_position"] - positions["after_position"] > 2 * self.batch:
            (positions,) = self.session.rows(_bounds_statement(self.ledger), **span, **positions)
        self._fold_copied(_copy_statement(self.ledger), {**span, **positions}, at_once=many)
        return upto

    def _fold_copied(
        self, copy: Statement, values: dict[str, Any], *, at_once: bool = False
    ) -> None:
        """Copy events and fold them, cut into slices where their order requires it.

        With ``at_once`` the copy uses hash joins; the planner would choose nested loops.
        """
        run = self.session.run
        run(_CREATE_BATCH)
        run(_EMPTY_BATCH)
        if at_once:
            run(_NO_LOOPS)
        run(copy, **values, types=self._types)
        if at_once:
            run(_LOOPS)
        types = self._batch_types()
        if "ProxiesChecked" in types:
            run(_apart_statement(self.ledger))
            types.add("HealthChecked")
        # Only after these events can the folds' order differ from the order in time.
        cuts: list[int] = []
        if types & {"PoolChanged", "PoolRemoved", "ProxyRemoved"}:
            cuts = cuts_of(self.session.rows(_TURNS))
        if not cuts:
            self._fold_types(types)
            return
        run(_CREATE_WHOLE)
        for first, end in itertools.pairwise([0, *cuts, BIGGEST]):
            run(_EMPTY_BATCH)
            run(_SLICE, first=first, end=end)
            self._fold_types(self._batch_types())
        run(_DROP_WHOLE)

    def _batch_types(self) -> set[str]:
        return {row["type"] for row in self.session.rows(_TYPES)}

    def _fold_types(self, types: set[str]) -> None:
        for wanted, statement in self._folds:
            if wanted & types:
                self.session.run(statement)


def read_states(
    session: Session, schema: str, projections: Sequence[Projection]
) -> dict[str, State]:
    """Return the read models of a schema as the projections' Python states."""
    return {
        projection.name: projection.load(session.rows(live_statement(projection, schema)))
        for projection in projections
    }


def cuts_of(turns: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the seqs before which a copy of the log must be cut.

    Parameters
    ----------
    turns:
        Its registrations, changes and removals in order, with seq, type, pool_id and
        proxy_id.
    """
    cuts: list[int] = []
    gone: set[UUID] = set()
    renamed: set[UUID] = set()
    for turn in turns:
        match turn["type"]:
            case "ProxyRegistered":
                clash = turn["proxy_id"] in gone
            case "PoolRegistered" | "PoolChanged":
                clash = turn["pool_id"] in gone or bool(renamed - {turn["pool_id"]})
            case _:
                clash = False
        if clash:
            cuts.append(turn["seq"])
            gone, renamed = set(), set()
        match turn["type"]:
            case "ProxyRemoved":
                gone.add(turn["proxy_id"])
            case "PoolRemoved":
                gone.add(turn["pool_id"])
                renamed.add(turn["pool_id"])
            case "PoolChanged":
                renamed.add(turn["pool_id"])
    return cuts


@lru_cache(maxsize=256)
def _fold_statements(
    projection: Projection, target: str
) -> tuple[tuple[frozenset[str], Statement], ...]:
    """Return a projection's folds over a batch, each with the types of events that it reads."""
    batch = Events(_batch)
    return tuple(
        (fold.types, compiled(fold.statement(batch), target)) for fold in projection.folds()
    )


@lru_cache(maxsize=256)
def _create_statement(projection: Projection, target: str) -> Statement:
    return definition(CreateTable(projection.table), target)


@lru_cache(maxsize=16)
def _last_tick_statement(ledger: str) -> Statement:
    """Return the query for the last seq, and for the transactions that its tick did not see."""
    snapshot = last_tick.c.snapshot
    running = func.array(select(cast(func.pg_snapshot_xip(snapshot), Text)).scalar_subquery())
    query = select(
        last_tick.c.last_seq.label("seq"),
        last_tick.c.unsealed_after,
        cast(func.pg_snapshot_xmax(snapshot), Text).label("begun_from"),
        running.label("running"),
    )
    return compiled(query, ledger)


_NO_TICK = {"seq": 0, "unsealed_after": 0, "begun_from": "0", "running": []}

_IN_RANGE = (
    seals.c.seq > parameter("after", BigInteger),
    seals.c.seq <= parameter("upto", BigInteger),
)


@lru_cache(maxsize=16)
def _bounds_statement(ledger: str) -> Statement:
    """Return the query for the exact bounds of the positions of a range's events.

    The bounds of its ticks can be far apart: those of the first sealing begin at 0.
    """
    bounds = select(
        (func.min(seals.c.position) - ONE).label("after_position"),
        func.max(seals.c.position).label("last_position"),
    )
    return compiled(bounds.where(*_IN_RANGE, within(seals)), ledger)


@lru_cache(maxsize=16)
def _copy_statement(ledger: str) -> Statement:
    """Return the statement that copies a range."""
    columns = [column.name for column in _batch.c]
    query = (
        select(*(seals.c.seq if name == "seq" else events.c[name] for name in columns))
        .select_from(SEALED)
        .where(
            *_IN_RANGE,
            within(seals),
            within(events),
            events.c.type == func.any(parameter("types", ARRAY(Text))),
        )
    )
    return compiled(insert(_batch).from_select(columns, query), ledger)


@lru_cache(maxsize=16)
def _copy_unsealed_statement(ledger: str) -> Statement:
    """Return the statement that copies visible unsealed events, in order of positions."""
    later = parameter("unsealed_after", BigInteger)
    sealed = select(ONE).where(seals.c.position == events.c.position, seals.c.position > later)
    seq = parameter("after", BigInteger) + func.row_number().over(order_by=events.c.position)
    query = select(
        *(seq if column.name == "seq" else events.c[column.name] for column in _batch.c)
    ).where(
        events.c.position > later,
        or_(
            events.c.tx >= parameter("begun_from", Xid8()),
            events.c.tx == func.any(parameter("running", ARRAY(Xid8()))),
        ),
        # In a restored log, older events may have later transaction ids.
        events.c.tx < func.pg_snapshot_xmax(func.pg_current_snapshot()),
        ~sealed.exists(),
        events.c.type == func.any(parameter("types", ARRAY(Text))),
    )
    columns = [column.name for column in _batch.c]
    return compiled(insert(_batch).from_select(columns, query), ledger)


@lru_cache(maxsize=16)
def _apart_statement(ledger: str) -> Statement:
    """Return the statement that adds each check of a ProxiesChecked to a batch as one event."""
    together = _batch.alias("together")
    checked = checks_of(together)
    own = {**check_columns(checked), **{name: together.c[name] for name in _PLACED}}
    query = (
        select(*own.values())
        .select_from(together.join(checked, true()))
        .where(together.c.type == text_literal("ProxiesChecked"))
    )
    return compiled(insert(_batch).from_select(list(own), query), ledger)


@lru_cache(maxsize=16)
def _may_store_statement(ledger: str) -> Statement:
    may = "SELECT bool_and(has_table_privilege(format('%I.%I', {}, name), privilege)) "
    tables = (
        "FROM unnest(ARRAY['snapshots', 'snapshot_rows']) AS name, "
        "unnest(ARRAY['INSERT', 'UPDATE', 'DELETE']) AS privilege"
    )
    query = sql.SQL(may + tables).format(ledger)
    return Statement(query.as_bytes(), (), {}, ("may",))


def _snapshot_statement(ledger: str) -> Statement:
    values = {
        "seq": parameter("seq", BigInteger),
        "taken_at": now,
        "projections": parameter("projections", ARRAY(Text)),
    }
    return compiled(insert(snapshots).values(values).on_conflict_do_nothing(), ledger)


def _store_statement(ledger: str, target: str, projection: Projection) -> Statement:
    query = sql.SQL(
        "INSERT INTO {}.snapshot_rows (seq, projection, row) "
        "SELECT $1, {}, to_jsonb(current_row) FROM ({}) AS current_row"
    ).format(sql.Identifier(ledger), projection.name, current_rows(target, projection))
    return Statement(query.as_bytes(), ("seq",), {}, ())


@lru_cache(maxsize=256)
def live_statement(projection: Projection, schema: str) -> Statement:
    """Return the query for the rows of a projection's table in a schema."""
    return compiled(projection.live(), schema)


@lru_cache(maxsize=256)
def current_rows(target: str, projection: Projection) -> sql.SQL:
    """Return the query for the rows that a snapshot of a projection contains."""
    query = compiled(select(projection.table).where(projection.current()), target)
    return sql.SQL(query.text.decode())


def _load_statement(ledger: str, target: str, projection: Projection) -> Statement:
    columns = [column.name for column in projection.table.c if column.computed is None]
    query = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {loaded} FROM {ledger}.snapshot_rows AS stored, "
        "jsonb_populate_record(NULL::{table}, stored.row) AS loaded "
        "WHERE stored.seq = $1 AND stored.projection = {name}"
    ).format(
        table=sql.Identifier(target, projection.table.name),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        loaded=sql.SQL(", ").join(sql.Identifier("loaded", column) for column in columns),
        ledger=sql.Identifier(ledger),
        name=projection.name,
    )
    return Statement(query.as_bytes(), ("seq",), {}, ())


_CREATE_BATCH = definition(CreateTable(_batch, if_not_exists=True), "")
_NO_LOOPS = Statement(b"SET enable_nestloop = off", (), {}, ())
_LOOPS = Statement(b"RESET enable_nestloop", (), {}, ())
_EMPTY_BATCH = Statement(b"TRUNCATE pg_temp.pharox_batch", (), {}, ())
_TYPES = compiled(select(_batch.c.type).distinct(), "")
_TURNS = compiled(
    select(_batch.c.seq, _batch.c.type, _batch.c.pool_id, _batch.c.proxy_id)
    .where(
        _batch.c.type.in_(
            text_literal(type_)
            for type_ in (
                "PoolRegistered",
                "PoolChanged",
                "PoolRemoved",
                "ProxyRegistered",
                "ProxyRemoved",
            )
        )
    )
    .order_by(_batch.c.seq),
    "",
)
_CREATE_WHOLE = Statement(
    b"CREATE TEMPORARY TABLE pharox_whole AS SELECT * FROM pg_temp.pharox_batch", (), {}, ()
)
_SLICE = Statement(
    b"INSERT INTO pg_temp.pharox_batch "
    b"SELECT * FROM pg_temp.pharox_whole WHERE seq >= $1 AND seq < $2",
    ("first", "end"),
    {},
    (),
)
_DROP_WHOLE = Statement(b"DROP TABLE pg_temp.pharox_whole", (), {}, ())
