"""Record what a person did that no other event says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from ...models.ids import NIL
from .appending import append, event_row, origin
from .driver import Program
from .sql import Query, by_schema, parameter


def record(schema: str, taken: Mapping[str, Any], pool_id: UUID | None) -> Program[None]:
    """Append that an action was taken, with its subject and reason."""
    values = {**origin(), "of_pool": pool_id or NIL, "taken": json.dumps(taken)}
    yield Query(_statement(schema), values)


@by_schema
def _statement() -> sa.Select[Any]:
    of_pool = parameter("of_pool", sa.Uuid)
    row = event_row("ActionTaken", pool_id=of_pool, data=parameter("taken", JSONB))
    return sa.select(sa.func.count().label("appended")).select_from(append(sa.select(row)))
