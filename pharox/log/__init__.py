"""The tables of the log, and the conversion of its rows to events and to sealed bytes."""

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
    tree_nodes,
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
    "tree_nodes",
]
