"""From a row of the log to an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharox.events import ENVELOPE, Event, decode


def event_from_row(row: Mapping[str, Any]) -> Event:
    """Return the event in a row: the columns of ``events``, and ``seq`` where it was read."""
    columns = {name: row[name] for name in ENVELOPE}
    if "seq" in row:
        columns["seq"] = row["seq"]
    return decode(columns, row["data"])
