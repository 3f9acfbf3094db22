"""consumers: all consumers by name. A consumer is registered on first use and is never removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    insert,
    select,
)
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import ConsumerRegistered, EventBase

from .base import Events, Fold, Projection, metadata, of_type


@dataclass(slots=True)
class ConsumerRow:
    """One consumer."""

    name: str
    id: UUID


consumers = Table(
    "consumers",
    metadata,
    Column("name", Text, nullable=False),
    Column("id", Uuid, nullable=False),
    PrimaryKeyConstraint("name"),
    UniqueConstraint("id"),
)


class Consumers(Projection):
    """Maps each consumer's name to its id."""

    name = "consumers"
    table = consumers
    row: ClassVar[type] = ConsumerRow
    key = ("name",)

    def apply(self, state: dict[Any, ConsumerRow], event: EventBase) -> None:
        if isinstance(event, ConsumerRegistered):
            state[(event.consumer,)] = ConsumerRow(event.consumer, event.consumer_id)

    def folds(self) -> tuple[Fold, ...]:
        return (Fold(frozenset({"ConsumerRegistered"}), _register),)


def _register(events: Events) -> UpdateBase:
    return insert(consumers).from_select(
        ["name", "id"],
        select(events.c.consumer, events.c.consumer_id).where(
            of_type(events, "ConsumerRegistered")
        ),
    )


CONSUMERS = Consumers()
