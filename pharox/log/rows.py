"""Convert a row of the log to an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharox.errors import UndecodableEventError
from pharox.events import ENVELOPE, Event, decode

ATTRIBUTES = ("expires_at", "acquired_at", "consumer_id", "pool_name", "selector", "proxy_ids")
"""The columns of ``events`` that only some event types use. They are named as the fields."""


def event_from_row(row: Mapping[str, Any]) -> Event:
    """Return the event in a row: the columns of ``events``, and ``seq`` where it was read.

    Raises
    ------
    EventVersionError
        If a newer pharox recorded it.
    UndecodableEventError
        If the row does not have the shape of its event type.
    """
    fields = {name: row[name] for name in ENVELOPE}
    if "seq" in row:
        fields["seq"] = row["seq"]
    for name in ATTRIBUTES:
        if row[name] is not None:
            fields[name] = row[name]
    for side in ("before", "after"):
        if row[f"status_{side}"] is not None:
            fields[side] = {
                "status": row[f"status_{side}"],
                "leases": row[f"leases_{side}"],
                "max_concurrency": row[f"max_concurrency_{side}"],
            }
    data = row["data"]
    if data is not None and not isinstance(data, dict):
        raise UndecodableEventError.at(row["position"], row["type"], "its data is not an object")
    try:
        return decode(fields, data or {})
    except ValueError as error:  # pydantic.ValidationError is one
        why = str(error).partition("\n")[0]
        raise UndecodableEventError.at(row["position"], row["type"], why) from error
