"""The base class of projections, and SQL expressions that read an event."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Integer,
    MetaData,
    Select,
    Table,
    Text,
    cast,
    delete,
    func,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by, insert
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.types import TypeEngine

from pharox.events import EventBase, ExitRotated
from pharox.models import GatewayExit

metadata = MetaData(
    schema="pharox",
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)
"""The tables of all read models. "pharox" is replaced by the storage's schema on compilation."""

HOT = {
    "autovacuum_vacuum_threshold": 2000,
    "autovacuum_vacuum_scale_factor": 0,
    "autovacuum_vacuum_cost_delay": 0,
}
"""For a small table that each lease updates: autovacuum cleans it on every run."""

ProjectionRow = Any


class Events(NamedTuple):
    """A selectable of events with the log's columns, for a fold to run over.

    It is an array of events that a command has just appended, a range of the log, or
    a single event. The fold of a single event is cheaper: it needs no grouping, and no
    later event has to be considered.
    """

    rows: FromClause
    is_single: bool = False

    @property
    def c(self) -> Any:
        """The columns."""
        return self.rows.c

    def is_latest(
        self, where: ColumnElement[bool], *keys: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        """Return the condition that an event is the last in its group that meets ``where``."""
        return self._is_utmost(func.max, where, keys)

    def is_earliest(
        self, where: ColumnElement[bool], *keys: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        """Return the condition that an event is the first in its group that meets ``where``."""
        return self._is_utmost(func.min, where, keys)

    def _is_utmost(
        self, place: Callable[[Any], Any], where: ColumnElement[bool], keys: tuple[Any, ...]
    ) -> ColumnElement[bool]:
        if self.is_single:
            return where
        # The keys are needed too: checks recorded in one event share its position.
        utmost = select(*keys, place(self.c.position)).where(where).group_by(*keys)
        return tuple_(*keys, self.c.position).in_(utmost.correlate(None))


class Fold(NamedTuple):
    """One SQL statement of a projection.

    ``statement`` takes events and returns the data-modifying statement that
    folds the events of ``types``.
    """

    types: frozenset[str]
    statement: Callable[[Events], UpdateBase]


class Projection(ABC):
    """Folds events into one read model.

    ``row`` is a dataclass with the read model's columns. ``key`` names the columns
    that identify a row. In Python the state is a dict from key to row.
    """

    name: ClassVar[str]
    table: ClassVar[Table]
    row: ClassVar[type]
    key: ClassVar[tuple[str, ...]]

    @abstractmethod
    def apply(self, state: dict[Any, ProjectionRow], event: EventBase) -> None:
        """Fold one event into ``state``, in place."""

    @abstractmethod
    def folds(self) -> tuple[Fold, ...]:
        """Return the SQL statements of this projection, in the order in which they must run."""

    def types(self) -> frozenset[str]:
        """Return the event types that this projection folds."""
        return frozenset[str]().union(*(fold.types for fold in self.folds()))

    def live(self) -> Select[Any]:
        """Return the query that selects the read model, with the columns of ``row``."""
        return select(*(self.table.c[field.name] for field in fields(self.row)))

    def is_current(self, row: ProjectionRow) -> bool:
        """Return whether a row is current, such as an active lease, and not history."""
        return True

    def current(self) -> ColumnElement[bool]:
        """Return :meth:`is_current` in SQL."""
        return true()

    def load(self, rows: Iterable[Mapping[str, Any]]) -> dict[Any, ProjectionRow]:
        """Convert rows that :meth:`live` selected to a state as :meth:`apply` builds it."""
        return {tuple(row[part] for part in self.key): self.row(**row) for row in rows}


def fact(events: Events, path: str, type_: TypeEngine[Any] | type[TypeEngine[Any]]) -> Any:
    """Return the SQL expression of a value in an event's data, such as ``after,leases``."""
    text = events.c.data.op("#>>")(literal_column(f"'{{{path}}}'", Text))
    return cast(text, type_)


def of_type(events: Events, *types: str) -> ColumnElement[bool]:
    """Return the condition that an event has one of ``types``."""
    names = [literal_column(f"'{name}'", Text) for name in types]
    matches: ColumnElement[bool] = events.c.type.in_(names)
    return events.c.type == names[0] if len(names) == 1 else matches


def keep_last(
    events: Events, table: Table, facts: Mapping[str, Any], where: ColumnElement[bool]
) -> UpdateBase:
    """Return the upsert of each proxy's last event that meets ``where``, as a row of ``table``.

    Parameters
    ----------
    table:
        A table whose primary key is a proxy's id and its pool's, in this order.
    facts:
        The other columns with their types, named as in the event's data.
    """
    keys = (events.c.proxy_id, events.c.pool_id)
    values = (fact(events, name, type_) for name, type_ in facts.items())
    latest = select(*keys, *values).where(events.is_latest(where, *keys))
    upsert = insert(table).from_select([*table.primary_key.columns.keys(), *facts], latest)
    return upsert.on_conflict_do_update(
        constraint=table.primary_key, set_={name: upsert.excluded[name] for name in facts}
    )


def delete_proxies(events: Events, table: Table) -> UpdateBase:
    """Return the statement that deletes the rows of removed proxies, as for :func:`keep_last`."""
    proxy_id, pool_id = table.primary_key.columns
    return delete(table).where(
        pool_id == events.c.pool_id,
        proxy_id == events.c.proxy_id,
        of_type(events, "ProxyRemoved"),
    )


def last(
    events: Events, value: ColumnElement[Any], where: ColumnElement[bool] | None = None
) -> Any:
    """Return the value of the last event of a group, or of the last one that meets ``where``."""
    values = func.array_agg(aggregate_order_by(value, events.c.position.desc()))
    return (values if where is None else values.filter(where))[literal_column("1", Integer)]


def recorded_exit(gateway_exit: GatewayExit | None) -> dict[str, Any] | None:
    """Return the exit of a gateway as read models have it."""
    return None if gateway_exit is None else gateway_exit.model_dump(exclude_none=True)


def rotated_exit(before: dict[str, Any] | None, event: ExitRotated) -> dict[str, Any]:
    """Return an exit with the session id that was taken."""
    return {**(before or {}), "session": event.session_after}


def with_session(gateway_exit: ColumnElement[Any], session: ColumnElement[Any]) -> Any:
    """Return :func:`rotated_exit` in SQL."""
    known = func.coalesce(gateway_exit, literal_column("'{}'::jsonb", JSONB), type_=JSONB)
    own = func.jsonb_build_object(literal_column("'session'", Text), session, type_=JSONB)
    return known.concat(own)
