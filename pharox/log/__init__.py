"""The log: one table of events, written once and read in order."""

from .rows import event_from_row
from .tables import events
from .tail import Look, Tail

__all__ = ["Look", "Tail", "event_from_row", "events"]
