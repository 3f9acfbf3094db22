"""pool_places: which ledger of a fleet each pool is in. Only the home ledger of a fleet has rows.

The key is the pool's name, as the pool itself is in another ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Column, DateTime, PrimaryKeyConstraint, Table, Text, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, PoolPlaced

from .base import Events, Fold, Projection, fact, metadata, of_type


@dataclass(slots=True)
class PoolPlaceRow:
    """The place of one pool, as its last event has it."""

    pool_name: str
    ledger: str
    placed_at: datetime


pool_places = Table(
    "pool_places",
    metadata,
    Column("pool_name", Text(collation="C"), nullable=False),
    Column("ledger", Text, nullable=False),
    Column("placed_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("pool_name"),
)

_TYPE = frozenset({"PoolPlaced"})


class PoolPlaces(Projection):
    """Keeps the last place of each pool."""

    name = "pool_places"
    table = pool_places
    row: ClassVar[type] = PoolPlaceRow
    key = ("pool_name",)

    def apply(self, state: dict[Any, PoolPlaceRow], event: EventBase) -> None:
        if isinstance(event, PoolPlaced):
            row = PoolPlaceRow(event.pool_name, event.ledger, event.recorded_at)
            state[(event.pool_name,)] = row

    def folds(self) -> tuple[Fold, ...]:
        return (Fold(_TYPE, _keep),)


def _keep(events: Events) -> UpdateBase:
    """Keep the last place of each pool."""
    name = events.c.pool_name
    latest = select(name, fact(events, "ledger", Text), events.c.recorded_at).where(
        events.is_latest(of_type(events, *_TYPE), name)
    )
    upsert = insert(pool_places).from_select(["pool_name", "ledger", "placed_at"], latest)
    return upsert.on_conflict_do_update(
        constraint=pool_places.primary_key,
        set_={"ledger": upsert.excluded.ledger, "placed_at": upsert.excluded.placed_at},
    )


POOL_PLACES = PoolPlaces()
