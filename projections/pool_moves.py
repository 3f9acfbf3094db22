"""pool_moves: the moves of pools between this ledger and others, and how far each one is.

The row of a move stays for good. So a ledger knows where a pool went that somebody still asks it
for, and a mover that was held up for days cannot bring a pool a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    case,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    PoolArrived,
    PoolDeparted,
    PoolMoveBegan,
    PoolMoveCancelled,
    PoolMoved,
)

from .base import Events, Fold, Projection, fact, metadata, of_type

STAGES = {
    "PoolMoveBegan": "began",
    "PoolDeparted": "departed",
    "PoolArrived": "arrived",
    "PoolMoved": "moved",
    "PoolMoveCancelled": "cancelled",
}
"""How far a move is after an event."""


@dataclass(slots=True)
class PoolMoveRow:
    """One move. ``ledger`` is the other one; what only some stages have is None at the others."""

    move_id: UUID
    pool_id: UUID
    pool_name: str
    ledger: str
    stage: str
    position: int
    changed_at: datetime
    last_seq: int | None
    last_position: int | None
    root: str | None


pool_moves = Table(
    "pool_moves",
    metadata,
    Column("move_id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("pool_name", Text, nullable=False),
    Column("ledger", Text, nullable=False),
    Column("stage", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("changed_at", DateTime(timezone=True), nullable=False),
    Column("last_seq", BigInteger),
    Column("last_position", BigInteger),
    Column("root", Text),
    PrimaryKeyConstraint("move_id"),
    Index("ix_pool_moves_name", "pool_name", "position"),
    Index("ix_pool_moves_pool", "pool_id", "position"),
)


class PoolMoves(Projection):
    """Keeps the last event of each move."""

    name = "pool_moves"
    table = pool_moves
    row: ClassVar[type] = PoolMoveRow
    key = ("move_id",)

    def apply(self, state: dict[Any, PoolMoveRow], event: EventBase) -> None:
        match event:
            case (
                PoolMoveBegan() | PoolDeparted() | PoolArrived() | PoolMoved() | PoolMoveCancelled()
            ):
                state[(event.move_id,)] = PoolMoveRow(
                    event.move_id,
                    event.pool_id,
                    event.pool_name,
                    event.ledger,
                    STAGES[event.type],
                    event.position,
                    event.recorded_at,
                    getattr(event, "last_seq", None),
                    getattr(event, "last_position", None),
                    getattr(event, "root", None),
                )

    def folds(self) -> tuple[Fold, ...]:
        return (Fold(frozenset(STAGES), _keep),)


def _keep(events: Events) -> UpdateBase:
    ours, move_id = of_type(events, *STAGES), fact(events, "move_id", Uuid)
    values = {
        "pool_id": events.c.pool_id,
        "pool_name": events.c.pool_name,
        "ledger": fact(events, "ledger", Text),
        "stage": case(
            *(
                (of_type(events, type_), literal_column(f"'{stage}'", Text))
                for type_, stage in STAGES.items()
            )
        ),
        "position": events.c.position,
        "changed_at": events.c.recorded_at,
        "last_seq": fact(events, "last_seq", BigInteger),
        "last_position": fact(events, "last_position", BigInteger),
        "root": fact(events, "root", Text),
    }
    latest = select(move_id, *values.values()).where(events.is_latest(ours, move_id), ours)
    upsert = insert(pool_moves).from_select(["move_id", *values], latest)
    return upsert.on_conflict_do_update(
        constraint=pool_moves.primary_key, set_={name: upsert.excluded[name] for name in values}
    )


POOL_MOVES = PoolMoves()
