"""From a row of the log to an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pharox.events import ENVELOPE, Event, decode


def event_from_row(row: Mapping[str, Any]) -> Event:
    """Return the event in a row of the log, read with the columns of the ``events`` table."""
    return decode({name: row[name] for name in ENVELOPE}, row["data"])
