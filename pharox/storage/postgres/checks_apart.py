"""The checks that an event keeps together, in SQL: each as the HealthChecked that it is.

``checks_v1`` of the schema takes them apart; this says which columns of the log they become.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Integer, Text, Uuid, column
from sqlalchemy.dialects.postgresql import JSONB

from .sql import schema_function, text_literal

CHECKED = "HealthChecked"


def checks_of(events: Any, *of_proxy: ColumnElement[Any]) -> Any:
    """Return the checks of each ProxiesChecked, beside which they are joined: of no other type."""
    call = schema_function("checks_v1", events.c.proxy_ids, events.c.data, *of_proxy, type_=JSONB)
    return call.table_valued(
        column("proxy_id", Uuid),
        column("status", Text),
        column("leases", Integer),
        column("max_concurrency", Integer),
        column("facts", JSONB),
        name="checked",
    ).lateral()


def check_columns(checked: FromClause) -> dict[str, ColumnElement[Any]]:
    """Return what a check says, by the columns of the log; the others are those of its event."""
    state = {
        f"{name}_{side}": checked.c[name]
        for name in ("status", "leases", "max_concurrency")
        for side in ("before", "after")
    }
    return {
        "type": text_literal(CHECKED),
        "proxy_id": checked.c.proxy_id,
        "data": checked.c.facts,
        **state,
    }
