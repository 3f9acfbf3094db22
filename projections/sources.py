"""sources: the URLs that pools are kept in step with, and how their last refreshes went.

The key is the source's id, which never comes back, so its events can be folded in any grouping: a
removal ends its row for good. Names are unique because whoever saves a source holds a lock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Double,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    delete,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    PoolRemoved,
    PoolStateCarried,
    SourceFailed,
    SourceRefreshed,
    SourceRemoved,
    SourceSaved,
)

from .base import Events, Fold, Projection, fact, metadata, of_type
from .carrying import carry, carry_fold


@dataclass(slots=True)
class SourceRow:
    """One source. ``failure`` is None if its last event of a refresh was no failure."""

    id: UUID
    name: str
    pool_id: UUID
    host: str
    every_seconds: float
    max_removed: str
    enabled: bool
    options: dict[str, Any]
    secret_id: UUID
    saved_at: datetime
    refreshed_at: datetime | None = None
    counts: dict[str, Any] | None = None
    failed_at: datetime | None = None
    failure: str | None = None


sources = Table(
    "sources",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("host", Text, nullable=False),
    Column("every_seconds", Double, nullable=False),
    Column("max_removed", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("options", JSONB, nullable=False),
    Column("secret_id", Uuid, nullable=False),
    Column("saved_at", DateTime(timezone=True), nullable=False),
    Column("refreshed_at", DateTime(timezone=True)),
    Column("counts", JSONB),
    Column("failed_at", DateTime(timezone=True)),
    Column("failure", Text),
    PrimaryKeyConstraint("id"),
    Index("ix_sources_name", "name"),
)

_SAVED = {
    "source": Text,
    "host": Text,
    "every_seconds": Double,
    "max_removed": Text,
    "enabled": Boolean,
    "options": JSONB,
    "secret_id": Uuid,
}
"""What SourceSaved has of the row, by the names of the event."""


class Sources(Projection):
    """Keeps the last settings and the last results of each source, until it is removed."""

    name = "sources"
    table = sources
    row: ClassVar[type] = SourceRow
    key = ("id",)

    def apply(self, state: dict[Any, SourceRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case SourceSaved():
                _save_in(state, event)
            case SourceRefreshed(source_id=source_id) if (source_id,) in state:
                state[(source_id,)] = replace(
                    state[(source_id,)],
                    refreshed_at=event.recorded_at,
                    counts=event.counts.model_dump(),
                    failure=None,
                )
            case SourceFailed(source_id=source_id) if (source_id,) in state:
                state[(source_id,)] = replace(
                    state[(source_id,)], failed_at=event.recorded_at, failure=event.reason
                )
            case SourceRemoved():
                state.pop((event.source_id,), None)
            case PoolRemoved():
                for key in [key for key, row in state.items() if row.pool_id == event.pool_id]:
                    del state[key]

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset({"SourceSaved"}), _save),
            Fold(frozenset({"SourceRefreshed"}), _refreshed),
            Fold(frozenset({"SourceFailed"}), _failed),
            Fold(frozenset({"SourceRefreshed", "SourceFailed"}), _now),
            Fold(frozenset({"SourceRemoved"}), _remove),
            Fold(frozenset({"PoolRemoved"}), _remove_with_pool),
        )


def _save_in(state: dict[Any, SourceRow], event: SourceSaved) -> None:
    known = state.get((event.source_id,))
    results = (
        (known.refreshed_at, known.counts, known.failed_at, known.failure)
        if known
        else (None, None, None, None)
    )
    state[(event.source_id,)] = SourceRow(
        event.source_id,
        event.source,
        event.pool_id,
        event.host,
        event.every_seconds,
        event.max_removed,
        event.enabled,
        event.options,
        event.secret_id,
        event.recorded_at,
        *results,
    )


def _id_in(events: Events) -> Any:
    return fact(events, "source_id", Uuid)


def _save(events: Events) -> UpdateBase:
    values = [fact(events, name, type_) for name, type_ in _SAVED.items()]
    columns = ["name", *list(_SAVED)[1:]]
    latest = select(_id_in(events), events.c.pool_id, *values, events.c.recorded_at).where(
        events.is_latest(of_type(events, "SourceSaved"), _id_in(events))
    )
    upsert = insert(sources).from_select(["id", "pool_id", *columns, "saved_at"], latest)
    return upsert.on_conflict_do_update(
        constraint=sources.primary_key,
        set_={name: upsert.excluded[name] for name in ("pool_id", *columns, "saved_at")},
    )


def _refreshed(events: Events) -> UpdateBase:
    values = {"refreshed_at": events.c.recorded_at, "counts": fact(events, "counts", JSONB)}
    return _set(events, values, "SourceRefreshed")


def _failed(events: Events) -> UpdateBase:
    return _set(events, {"failed_at": events.c.recorded_at}, "SourceFailed")


def _now(events: Events) -> UpdateBase:
    """Keep why the last refresh failed, which is null if it did not."""
    reason = fact(events, "reason", Text)
    return _set(events, {"failure": reason}, "SourceRefreshed", "SourceFailed")


def _set(events: Events, values: dict[str, Any], *types: str) -> UpdateBase:
    """Set columns from each source's last event of these types."""
    is_last = events.is_latest(of_type(events, *types), _id_in(events))
    return update(sources).values(values).where(sources.c.id == _id_in(events), is_last)


def _remove(events: Events) -> UpdateBase:
    return delete(sources).where(sources.c.id == _id_in(events), of_type(events, "SourceRemoved"))


def _remove_with_pool(events: Events) -> UpdateBase:
    return delete(sources).where(
        sources.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


SOURCES = Sources()
