"""Write the log for the world outside: events as CloudEvents, one JSON object a line.

An :class:`Exporter` is a subscription whose handler writes. Its checkpoint moves after a
line has left this process, never before, so each event is written at least once.
"""

from .cloud_events import cloud_event, ledger_source, line_of
from .exporter import Exporter
from .outputs import LineFile, LinePipe, Output

__all__ = [
    "Exporter",
    "LineFile",
    "LinePipe",
    "Output",
    "cloud_event",
    "ledger_source",
    "line_of",
]
