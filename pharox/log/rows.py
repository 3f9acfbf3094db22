"""Convert a row of the log to an event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pharox.errors import UndecodableEventError
from pharox.events import ENVELOPE, Event, decode

from .tables import events

ATTRIBUTES = ("expires_at", "acquired_at", "consumer_id", "pool_name", "selector", "proxy_ids")
"""The columns of ``events`` that only some event types use. They are named as the fields."""

_OWN = frozenset((*events.c.keys(), "before", "after", "seq"))
"""The fields of events that are not in their ``data``."""


def row_from_event(event: Event) -> dict[str, Any]:
    """Return an event as a row of ``events``, for a log that has no table.

    ``tx`` is the position, as each event is a transaction of its own there, and ``data`` is text.
    """
    known = {name: getattr(event, name) for name in ENVELOPE}
    fields = event.model_dump(mode="json", exclude_defaults=True)
    rest = {name: value for name, value in fields.items() if name not in _OWN}
    row = dict.fromkeys(events.c.keys()) | known | {"tx": event.position}
    row |= {name: getattr(event, name, None) for name in ATTRIBUTES}
    for side in ("before", "after"):
        if (state := getattr(event, side, None)) is not None:
            row |= {f"{name}_{side}": value for name, value in asdict(state).items()}
    row["data"] = json.dumps(rest, ensure_ascii=False) if rest else None
    return row


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
