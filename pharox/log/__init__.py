"""The tables of the log, and how a row of it becomes an event or the bytes that were sealed."""

from .extract import Extract
from .rows import event_from_row
from .tables import (
    events,
    fleet_counts,
    last_tick,
    parked_events,
    partitions,
    seals,
    subscriptions,
    ticks,
)

__all__ = [
    "Extract",
    "event_from_row",
    "events",
    "fleet_counts",
    "last_tick",
    "parked_events",
    "partitions",
    "seals",
    "subscriptions",
    "ticks",
]
