"""Split a ProxiesChecked in SQL into one HealthChecked for each of its checks.

The schema's ``checks_v1`` splits them. This module maps its result to the log's columns.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Integer, Text, Uuid, column
from sqlalchemy.dialects.postgresql import JSONB

from .sql import schema_function, text_literal

CHECKED = "HealthChecked"


def checks_of(events: Any, *of_proxy: ColumnElement[Any]) -> Any:
    """Return the checks of each ProxiesChecked, to be joined to the events; none of other types."""
    call = schema_function("checks_v1", events.c.proxy_ids, events.c.data, *of_proxy, type_=JSONB)
    return call.table_valued(
        column("proxy_id", Uuid),
        column("status", Text),
        column("leases", Integer),
        column("max_concurrency", Integer),
        column("attributes", JSONB),
        name="checked",
    ).lateral()


def check_columns(checked: FromClause) -> dict[str, ColumnElement[Any]]:
    """Return the log's columns that a check has of its own. The others are those of its event."""
    state = {
        f"{name}_{side}": checked.c[name]
        for name in ("status", "leases", "max_concurrency")
        for side in ("before", "after")
    }
    return {
        "type": text_literal(CHECKED),
        "proxy_id": checked.c.proxy_id,
        "data": checked.c.attributes,
        **state,
    }
