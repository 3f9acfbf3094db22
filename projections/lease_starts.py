"""lease_starts: when the leases began that a pace of their pool counts.

A row outlives its lease, which may be pruned before the pace's window is over. It goes when leases
are pruned that ended after it has counted for the last time, or with the pool. A pool without a
pace has no rows, as the events of its leases do not say ``paced_seconds``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    DateTime,
    Double,
    Index,
    Interval,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    delete,
    insert,
    literal_column,
    select,
)
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, LeaseAcquired, LeasesPruned, PoolRemoved, PoolStateCarried

from .base import Events, Fold, Projection, fact, metadata, of_type
from .carrying import carry, carry_fold


@dataclass(slots=True)
class LeaseStartRow:
    """The start of one lease, which counts for a pace until ``counts_until``."""

    pool_id: UUID
    started_at: datetime
    lease_id: UUID
    proxy_id: UUID
    consumer_id: UUID
    target: str | None
    counts_until: datetime


lease_starts = Table(
    "lease_starts",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("lease_id", Uuid, nullable=False),
    Column("proxy_id", Uuid, nullable=False),
    Column("consumer_id", Uuid, nullable=False),
    Column("target", Text),
    Column("counts_until", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("pool_id", "started_at", "lease_id"),
)
Index(
    "ix_lease_starts_proxy",
    lease_starts.c.pool_id,
    lease_starts.c.proxy_id,
    lease_starts.c.started_at,
)
Index(
    "ix_lease_starts_consumer",
    lease_starts.c.pool_id,
    lease_starts.c.consumer_id,
    lease_starts.c.started_at,
)


class LeaseStarts(Projection):
    """Adds a row for each lease that a pace counts."""

    name = "lease_starts"
    table = lease_starts
    row: ClassVar[type] = LeaseStartRow
    key = ("pool_id", "started_at", "lease_id")

    def apply(self, state: dict[Any, LeaseStartRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case LeaseAcquired() if event.paced_seconds is not None:
                state[event.pool_id, event.recorded_at, event.lease_id] = LeaseStartRow(
                    event.pool_id,
                    event.recorded_at,
                    event.lease_id,
                    event.proxy_id,
                    event.consumer_id,
                    event.target,
                    event.recorded_at + timedelta(seconds=event.paced_seconds),
                )
            case LeasesPruned():
                _drop(state, event.pool_id, event.ended_before)
            case PoolRemoved():
                _drop(state, event.pool_id, None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset({"LeaseAcquired"}), _start),
            Fold(frozenset({"LeasesPruned"}), _prune),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _drop(state: dict[Any, LeaseStartRow], pool_id: UUID, before: datetime | None) -> None:
    """Delete the starts in a pool, or those of them that counted until before a moment."""
    for key, row in [*state.items()]:
        if row.pool_id == pool_id and (before is None or row.counts_until < before):
            del state[key]


def _start(events: Events) -> UpdateBase:
    second = literal_column("interval '1 second'", Interval)
    paced = fact(events, "paced_seconds", Double)
    columns: dict[str, Any] = {
        "pool_id": events.c.pool_id,
        "started_at": events.c.recorded_at,
        "lease_id": events.c.lease_id,
        "proxy_id": events.c.proxy_id,
        "consumer_id": events.c.consumer_id,
        "target": fact(events, "target", Text),
        "counts_until": events.c.recorded_at + paced * second,
    }
    started = select(*columns.values()).where(of_type(events, "LeaseAcquired"), paced.is_not(None))
    return insert(lease_starts).from_select(list(columns), started)


def _prune(events: Events) -> UpdateBase:
    return delete(lease_starts).where(
        lease_starts.c.pool_id == events.c.pool_id,
        lease_starts.c.counts_until < fact(events, "ended_before", DateTime(timezone=True)),
        of_type(events, "LeasesPruned"),
    )


def _remove(events: Events) -> UpdateBase:
    return delete(lease_starts).where(
        lease_starts.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


LEASE_STARTS = LeaseStarts()
