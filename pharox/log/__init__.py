"""The log: one table of events, written once and read in order."""

from .rows import event_from_row
from .tables import events

__all__ = ["event_from_row", "events"]
