"""troubled_targets: the targets that fail themselves, for as long as nothing succeeds there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    DateTime,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    delete,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, PoolRemoved, PoolStateCarried, TargetRecovered, TargetTroubled

from .base import Events, Fold, Projection, fact, metadata, of_type
from .carrying import carry, carry_fold


@dataclass(slots=True)
class TroubledTargetRow:
    """A target of one pool, in trouble since a moment."""

    pool_id: UUID
    target: str
    since: datetime


troubled_targets = Table(
    "troubled_targets",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("target", Text, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("pool_id", "target"),
)

_TYPES = ("TargetTroubled", "TargetRecovered")


class TroubledTargets(Projection):
    """Adds a target when it is in trouble, and deletes it when it has recovered."""

    name = "troubled_targets"
    table = troubled_targets
    row: ClassVar[type] = TroubledTargetRow
    key = ("pool_id", "target")

    def apply(self, state: dict[Any, TroubledTargetRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case TargetTroubled():
                key = (event.pool_id, event.target)
                state[key] = TroubledTargetRow(*key, event.recorded_at)
            case TargetRecovered():
                state.pop((event.pool_id, event.target), None)
            case PoolRemoved():
                for key in [key for key in state if key[0] == event.pool_id]:
                    del state[key]

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset(_TYPES), _keep),
            Fold(frozenset(_TYPES), _recover),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _keep(events: Events) -> UpdateBase:
    """Add the targets whose last event here is that they are in trouble."""
    keys = (events.c.pool_id, fact(events, "target", Text))
    latest = select(*keys, events.c.recorded_at).where(
        events.is_latest(of_type(events, *_TYPES), *keys), of_type(events, "TargetTroubled")
    )
    upsert = insert(troubled_targets).from_select(["pool_id", "target", "since"], latest)
    return upsert.on_conflict_do_update(
        constraint=troubled_targets.primary_key, set_={"since": upsert.excluded.since}
    )


def _recover(events: Events) -> UpdateBase:
    """Delete the targets whose last event here is that they have recovered."""
    keys = (events.c.pool_id, fact(events, "target", Text))
    latest = select(*keys).where(
        events.is_latest(of_type(events, *_TYPES), *keys), of_type(events, "TargetRecovered")
    )
    table = troubled_targets.c
    return delete(troubled_targets).where(tuple_(table.pool_id, table.target).in_(latest))


def _remove(events: Events) -> UpdateBase:
    return delete(troubled_targets).where(
        troubled_targets.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


TROUBLED_TARGETS = TroubledTargets()
