"""Publish signed checkpoints of the log where its owner cannot take them back.

A :class:`Publisher` signs what the log is, has witnesses cosign it, and writes it to a file or to a
web server. Before it signs, it checks that the log continues what was signed last.
"""

from .checkpoint_file import CheckpointFile
from .proving import ProvingLog, prove
from .publisher import Place, ProvableLog, Published, Publisher
from .web import CheckpointUrl, Witness

__all__ = [
    "CheckpointFile",
    "CheckpointUrl",
    "Place",
    "ProvableLog",
    "ProvingLog",
    "Published",
    "Publisher",
    "Witness",
    "prove",
]
