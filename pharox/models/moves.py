"""Moves of pools from one ledger to another."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from pydantic import ConfigDict

from .model import Model
from .validation import UtcDatetime


class MoveStage(StrEnum):
    """How far the move of a pool is, as one of its two ledgers knows it.

    In the ledger that the pool leaves: BEGAN while no more is leased and the last leases end,
    DEPARTED once it is removed, MOVED once the other ledger has it. In the other one: ARRIVED.
    In both: CANCELLED.
    """

    BEGAN = "began"
    DEPARTED = "departed"
    MOVED = "moved"
    ARRIVED = "arrived"
    CANCELLED = "cancelled"

    @property
    def is_under_way(self) -> bool:
        """Whether the move goes on if it is called again, and can still be cancelled."""
        return self in (self.BEGAN, self.DEPARTED)


class CarriedBan(Model):
    """Who banned a proxy of a pool that came from another ledger, when and why.

    It has the names of the event with which the other ledger recorded that.
    """

    model_config = ConfigDict(frozen=True)

    proxy_id: UUID
    recorded_at: UtcDatetime
    actor: str | None = None
    correlation_id: str | None = None
    reason: str | None = None


class PoolMove(Model):
    """The move of a pool, as one of its two ledgers has it. ``ledger`` names the other one.

    ``last_seq``, ``last_position`` and ``root`` say where its history ends in the ledger that it
    left: the last sealed event, the highest position, and the hash of the chain (hex; None in
    memory). They are None while the move has only begun, or was cancelled.
    """

    model_config = ConfigDict(frozen=True)

    move_id: UUID
    pool_id: UUID
    pool_name: str
    ledger: str
    stage: MoveStage
    position: int
    changed_at: UtcDatetime
    last_seq: int | None = None
    last_position: int | None = None
    root: str | None = None

    @property
    def goes_to(self) -> str | None:
        """The ledger to ask for the pool instead of this one; None if it is, or stays, here."""
        gone = (MoveStage.BEGAN, MoveStage.DEPARTED, MoveStage.MOVED)
        return self.ledger if self.stage in gone else None
