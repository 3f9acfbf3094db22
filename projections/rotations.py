"""rotations: which proxies are to take another exit, and when each took its last one.

There is a row for each proxy that has ever rotated. ``ends_at`` is the bound of the rotation that
is under way, null if there is none; after it the rotation is over without an event, as the rest of
the proxy is, which ``available_proxies`` has. ``claimed_until`` keeps a second process from calling
the link. ``failure`` and ``status`` are of the last call, unless one was begun since. The index
finds what is under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import Column, DateTime, Index, Integer, PrimaryKeyConstraint, Table, Text, Uuid
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    PoolStateCarried,
    ProxyRemoved,
    RotationAnswered,
    RotationBegan,
    RotationCalled,
)

from .base import Events, Fold, Projection, delete_proxies, keep_last, metadata, of_type
from .carrying import carry, carry_fold

ROTATION_TYPES = ("RotationBegan", "RotationCalled", "RotationAnswered")


@dataclass(slots=True)
class RotationRow:
    """The record of one proxy's rotations."""

    proxy_id: UUID
    pool_id: UUID
    because: str | None
    ends_at: datetime | None
    calls_at: datetime | None
    claimed_until: datetime | None
    rotated_at: datetime | None
    rested_until: datetime | None
    failure: str | None
    status: int | None


rotations = Table(
    "rotations",
    metadata,
    Column("proxy_id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("because", Text),
    Column("ends_at", DateTime(timezone=True)),
    Column("calls_at", DateTime(timezone=True)),
    Column("claimed_until", DateTime(timezone=True)),
    Column("rotated_at", DateTime(timezone=True)),
    Column("rested_until", DateTime(timezone=True)),
    Column("failure", Text),
    Column("status", Integer),
    PrimaryKeyConstraint("proxy_id", "pool_id"),
)
Index(
    "ix_rotations_under_way",
    rotations.c.pool_id,
    rotations.c.ends_at,
    postgresql_where=rotations.c.ends_at.is_not(None),
)

_RECORD: dict[str, Any] = {
    "because": Text,
    **{
        name: DateTime(timezone=True)
        for name in ("ends_at", "calls_at", "claimed_until", "rotated_at", "rested_until")
    },
    "failure": Text,
    "status": Integer,
}


class Rotations(Projection):
    """Keeps the last record of each proxy, and deletes removed proxies."""

    name = "rotations"
    table = rotations
    row: ClassVar[type] = RotationRow
    key = ("proxy_id", "pool_id")

    def apply(self, state: dict[Any, RotationRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case RotationBegan() | RotationCalled() | RotationAnswered():
                key = (event.proxy_id, event.pool_id)
                record = (getattr(event, name, None) for name in _RECORD)
                state[key] = RotationRow(*key, *record)
            case ProxyRemoved():
                state.pop((event.proxy_id, event.pool_id), None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset(ROTATION_TYPES), _keep),
            Fold(frozenset({"ProxyRemoved"}), _remove),
        )


def _keep(events: Events) -> UpdateBase:
    return keep_last(events, rotations, _RECORD, of_type(events, *ROTATION_TYPES))


def _remove(events: Events) -> UpdateBase:
    return delete_proxies(events, rotations)


ROTATIONS = Rotations()
