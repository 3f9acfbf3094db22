"""Where a pool is that is not here: the moves between this ledger and others."""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from projections import PoolMoveRow

from ...models import MissReason, MoveStage, PoolMove
from ..moving import moved_away
from .state import State

_REASONS = {
    MoveStage.BEGAN: MissReason.POOL_MOVING,
    MoveStage.DEPARTED: MissReason.POOL_MOVING,
    MoveStage.MOVED: MissReason.POOL_MOVED,
}


def moves(state: State, pool_name: str | None = None) -> list[PoolMove]:
    """Return all moves, or those of pools of a name, the last one first."""
    rows: list[PoolMoveRow] = [
        row for row in state.rows["pool_moves"].values() if pool_name in (None, row.pool_name)
    ]
    return [
        PoolMove(**asdict(row)) for row in sorted(rows, key=lambda row: row.position, reverse=True)
    ]


def move_of(state: State, move_id: UUID) -> PoolMove | None:
    """Return a move, or None."""
    row = state.rows["pool_moves"].get((move_id,))
    return None if row is None else PoolMove(**asdict(row))


def last_move(state: State, pool_name: str) -> PoolMove | None:
    """Return the last move of a pool of this name, or None."""
    return next(iter(moves(state, pool_name)), None)


def moved_reason(state: State, pool_name: str) -> MissReason | None:
    """Return why there is no pool of this name; None if none moved away."""
    last = last_move(state, pool_name)
    return None if last is None else _REASONS.get(last.stage)


def check_not_moved(state: State, pool_name: str, pool_id: UUID) -> None:
    """Fail if a pool of this id moved away, or no pool has this name because one did."""
    of_name = [] if pool_name in state.pool_ids else moves(state, pool_name)
    of_id = [move for move in moves(state) if move.pool_id == pool_id]
    for last in (*of_name[:1], *of_id[:1]):
        if last.goes_to is not None:
            raise moved_away(last)
