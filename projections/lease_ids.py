"""lease_ids: the lease ids that callers chose. Each id is granted once.

Ended leases are pruned from ``leases``. An id that a caller may send again is kept here, so
checking it costs one index lookup, however long the log is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Column, PrimaryKeyConstraint, Table, Uuid, and_, insert, select
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, LeaseAcquired

from .base import Events, Fold, Projection, metadata, of_type


@dataclass(slots=True)
class LeaseIdRow:
    """One granted id."""

    lease_id: UUID
    pool_id: UUID


lease_ids = Table(
    "lease_ids",
    metadata,
    Column("lease_id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    PrimaryKeyConstraint("lease_id"),
)


class LeaseIds(Projection):
    """Adds an id when a lease is granted with it. Ids are never removed."""

    name = "lease_ids"
    table = lease_ids
    row: ClassVar[type] = LeaseIdRow
    key = ("lease_id",)

    def apply(self, state: dict[Any, LeaseIdRow], event: EventBase) -> None:
        if isinstance(event, LeaseAcquired) and event.own_id:
            state[(event.lease_id,)] = LeaseIdRow(event.lease_id, event.pool_id)

    def folds(self) -> tuple[Fold, ...]:
        return (Fold(frozenset({"LeaseAcquired"}), _keep),)


def _keep(events: Events) -> UpdateBase:
    chosen = and_(of_type(events, "LeaseAcquired"), events.c.data.has_key("own_id"))
    ids = select(events.c.lease_id, events.c.pool_id).where(chosen).order_by(events.c.lease_id)
    return insert(lease_ids).from_select(["lease_id", "pool_id"], ids)


LEASE_IDS = LeaseIds()
