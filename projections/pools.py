"""pools: the existing pools, and how each leases its proxies."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, PoolChanged, PoolRegistered, PoolRemoved

from .base import Events, Fold, Projection, fact, metadata, of_type


@dataclass(slots=True)
class PoolRow:
    """One pool."""

    id: UUID
    name: str
    description: str | None
    lease_slow: bool
    rest_after_release_seconds: float | None
    rest_after_expiry_seconds: float | None
    max_held_seconds: float | None
    cool_down: dict[str, Any] | None
    selector: str | None
    lease_seconds: float | None
    max_concurrency: int | None
    limits: dict[str, Any] | None
    cost_per_gb: Decimal | None
    cost_per_lease: Decimal | None
    reported_failures: bool | None
    rotation: dict[str, Any] | None


pools = Table(
    "pools",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("lease_slow", Boolean, nullable=False),
    Column("rest_after_release_seconds", Double),
    Column("rest_after_expiry_seconds", Double),
    Column("max_held_seconds", Double),
    Column("cool_down", JSONB),
    Column("selector", Text),
    Column("lease_seconds", Double),
    Column("max_concurrency", Integer),
    Column("limits", JSONB),
    Column("cost_per_gb", Numeric),
    Column("cost_per_lease", Numeric),
    Column("reported_failures", Boolean),
    Column("rotation", JSONB),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("name"),
)

_FACTS = {
    "name": Text,
    "description": Text,
    "lease_slow": Boolean,
    "rest_after_release_seconds": Double,
    "rest_after_expiry_seconds": Double,
    "max_held_seconds": Double,
    "cool_down": JSONB,
    "selector": Text,
    "lease_seconds": Double,
    "max_concurrency": Integer,
    "limits": JSONB,
    "cost_per_gb": Numeric,
    "cost_per_lease": Numeric,
    "reported_failures": Boolean,
    "rotation": JSONB,
}
"""What each event of a pool has of it."""


class Pools(Projection):
    """Keeps the last description of each pool, and deletes removed pools."""

    name = "pools"
    table = pools
    row: ClassVar[type] = PoolRow
    key = ("id",)

    def apply(self, state: dict[Any, PoolRow], event: EventBase) -> None:
        match event:
            case PoolRegistered() | PoolChanged():
                state[(event.pool_id,)] = PoolRow(
                    event.pool_id,
                    event.name,
                    event.description,
                    event.lease_slow,
                    event.rest_after_release_seconds,
                    event.rest_after_expiry_seconds,
                    event.max_held_seconds,
                    event.cool_down.model_dump() if event.cool_down else None,
                    event.selector and event.selector.value,
                    event.lease_seconds,
                    event.max_concurrency,
                    event.limits.model_dump(mode="json") if event.limits else None,
                    event.cost_per_gb,
                    event.cost_per_lease,
                    event.reported_failures,
                    event.rotation.model_dump() if event.rotation else None,
                )
            case PoolRemoved():
                del state[(event.pool_id,)]

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"PoolRegistered"}), _register),
            Fold(frozenset({"PoolChanged"}), _change),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _register(events: Events) -> UpdateBase:
    return insert(pools).from_select(
        ["id", *_FACTS],
        select(
            events.c.pool_id, *(fact(events, name, type_) for name, type_ in _FACTS.items())
        ).where(of_type(events, "PoolRegistered")),
    )


def _change(events: Events) -> UpdateBase:
    return (
        update(pools)
        .values({name: fact(events, name, type_) for name, type_ in _FACTS.items()})
        .where(
            pools.c.id == events.c.pool_id,
            events.is_latest(of_type(events, "PoolChanged"), events.c.pool_id),
        )
    )


def _remove(events: Events) -> UpdateBase:
    return delete(pools).where(pools.c.id == events.c.pool_id, of_type(events, "PoolRemoved"))


POOLS = Pools()
