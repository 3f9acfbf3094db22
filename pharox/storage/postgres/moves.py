"""Where a pool is that is not here: the moves between this ledger and others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from projections.pool_moves import pool_moves
from projections.pools import pools

from ...models import MissReason, MoveStage, PoolMove
from ..moving import moved_away
from .driver import Program, Rows, Step
from .reporting import in_utc
from .sql import Query, by_schema, parameter, text_literal

_m = pool_moves.c
_TURN = 1885890934
"""The first number of the advisory locks of moves: pharox's own in a database."""


def list_moves(schema: str, pool_name: str | None) -> Program[list[PoolMove]]:
    """Return all moves, or those of pools of a name, the last one first."""
    rows = yield Query(_list_statement(schema), {"name": pool_name})
    return [move_from_row(row) for row in rows]


def last_move(schema: str, pool_name: str) -> Program[PoolMove | None]:
    """Return the last move of a pool of this name, or None."""
    found = yield from list_moves(schema, pool_name)
    return found[0] if found else None


def moved_reason(schema: str, pool_name: str) -> Program[MissReason | None]:
    """Return why there is no pool of this name; None if none moved away."""
    last = yield from last_move(schema, pool_name)
    if last is None or last.goes_to is None:
        return None
    return MissReason.POOL_MOVED if last.stage is MoveStage.MOVED else MissReason.POOL_MOVING


def unless_moved(schema: str, pool_name: str, pool_id: UUID, query: Query) -> list[Step]:
    """Return the steps of a transaction that carries out a query, unless the pool moved away.

    It fails if a pool of this id moved away, or no pool has this name because one did: it may come
    back. No move of either begins between this and the query, as a move has the turns of the pool
    and of its name. Whoever takes both takes the pool's first, so nobody waits in a circle.
    """

    def check(answers: Sequence[Rows]) -> Query:
        for rows in answers[2:]:
            last = move_from_row(rows[0]) if rows else None
            if last is not None and last.goes_to is not None:
                raise moved_away(last)
        return query

    return [
        pool_turn(schema, pool_id),
        name_turn(schema, pool_name),
        Query(_absent_statement(schema), {"name": pool_name}),
        last_of_pool_query(schema, pool_id),
        check,
    ]


def pool_turn(schema: str, pool_id: UUID) -> Query:
    """Return the query that takes the turn of a pool's moves, until the transaction ends."""
    return _turn(schema, str(pool_id))


def name_turn(schema: str, pool_name: str) -> Query:
    """Return the query that takes the turn of a pool's name, until the transaction ends."""
    return _turn(schema, f"name {pool_name}")


def _turn(schema: str, of_what: str) -> Query:
    return Query(_turn_statement(schema), {"turn": f"{schema} {of_what}"})


def move_from_row(row: dict[str, Any]) -> PoolMove:
    """Return the move in a row."""
    stage, changed_at = MoveStage(row["stage"]), in_utc(row["changed_at"])
    return PoolMove(**{**row, "stage": stage, "changed_at": changed_at})


def under_way() -> sa.ColumnElement[bool]:
    """Return what holds of the moves that have not ended."""
    return _m.stage.in_(text_literal(each) for each in MoveStage if each.is_under_way)


@by_schema
def unfinished_statement() -> sa.Select[Any]:
    """Query the moves that have not ended, the last one first."""
    return sa.select(pool_moves).where(under_way()).order_by(_m.position.desc())


def move_query(schema: str, move_id: UUID) -> Query:
    """Return the query for a move."""
    return Query(_move_statement(schema), {"move_id": move_id})


def last_of_pool_query(schema: str, pool_id: UUID) -> Query:
    """Return the query for the last move of a pool."""
    return Query(_last_of_pool_statement(schema), {"pool_id": pool_id})


@by_schema
def _turn_statement() -> sa.Select[Any]:
    of_what = sa.func.hashtext(parameter("turn"))
    lock = sa.func.pg_advisory_xact_lock(sa.literal_column(str(_TURN), sa.Integer), of_what)
    return sa.select(sa.cast(lock, sa.Text).label("turn"))


@by_schema
def _list_statement() -> sa.Select[Any]:
    name = parameter("name")
    of_name = sa.or_(name.is_(None), _m.pool_name == name)
    return sa.select(pool_moves).where(of_name).order_by(_m.position.desc())


@by_schema
def _absent_statement() -> sa.Select[Any]:
    """Return the last move of a name that no pool has."""
    name = parameter("name")
    return (
        sa.select(pool_moves)
        .where(_m.pool_name == name, ~sa.exists().where(pools.c.name == name))
        .order_by(_m.position.desc())
        .limit(sa.literal_column("1"))
    )


@by_schema
def _move_statement() -> sa.Select[Any]:
    return sa.select(pool_moves).where(_m.move_id == parameter("move_id", sa.Uuid))


@by_schema
def _last_of_pool_statement() -> sa.Select[Any]:
    return (
        sa.select(pool_moves)
        .where(_m.pool_id == parameter("pool_id", sa.Uuid))
        .order_by(_m.position.desc())
        .limit(sa.literal_column("1"))
    )
