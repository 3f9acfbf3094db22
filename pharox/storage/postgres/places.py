"""The directory of a fleet: which ledger each pool is in."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from projections.pool_places import pool_places

from ...models import PoolPlace
from ..places import PlaceRequest, already_placed
from .appending import origin
from .driver import Program
from .reporting import in_utc
from .sql import Query, Statement, by_schema, call_of, parameter

_PLACE = {
    "own_slot": "smallint",
    "actor": "text",
    "correlation_id": "text",
    "pool_name": "text",
    "ledger": "text",
    "instead_of": "text",
}


def place_pool(schema: str, request: PlaceRequest) -> Program[bool]:
    """Record which ledger a pool is in. Return whether the directory had said something else."""
    ((known, is_new),) = yield Query(_place_statement(schema), origin() | request._asdict())
    if known is not None and known not in (request.ledger, request.instead_of):
        raise already_placed(request.pool_name, known)
    return bool(is_new)


def list_places(schema: str, pool_names: Collection[str] | None) -> Program[list[PoolPlace]]:
    """Return where pools are, ordered by name: the named ones, or all."""
    values = {} if pool_names is None else {"names": [*pool_names]}
    statement = _list_statement if pool_names is None else _some_statement
    rows = yield Query(statement(schema), values)
    return [
        PoolPlace(
            pool_name=row["pool_name"], ledger=row["ledger"], placed_at=in_utc(row["placed_at"])
        )
        for row in rows
    ]


@lru_cache(maxsize=8)
def _place_statement(schema: str) -> Statement:
    statement = call_of(schema, "place_pool_v1", _PLACE)
    return statement._replace(columns=("known", "is_new"), writes=True, is_bare=True)


@by_schema
def _list_statement() -> sa.Select[Any]:
    return sa.select(pool_places).order_by(pool_places.c.pool_name)


@by_schema
def _some_statement() -> sa.Select[Any]:
    named = pool_places.c.pool_name == sa.any_(parameter("names", ARRAY(sa.Text)))
    return sa.select(pool_places).where(named).order_by(pool_places.c.pool_name)
