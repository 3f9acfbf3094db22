"""The peer, eventsourcing 9.5.6, in its own environment: see ``ledger_eventsourcing.py``."""

from __future__ import annotations

from scripts.benchmarks.peers import EVENTSOURCING, told_by
from scripts.benchmarks.server import new_database


def append_rate(url: str, clients: int, seconds: float) -> float:
    """Return the number of events that it appends a second, each with its own save and commit."""
    return _run("append", new_database(url, "peer"), clients, seconds)


def projection_rate(url: str, events: int) -> float:
    """Return the number of events that its projection runner folds a second."""
    return _run("project", new_database(url, "peer"), events)


def _run(task: str, url: str, *asked: float) -> float:
    told = told_by(EVENTSOURCING, "ledger_eventsourcing.py", task, url, *asked)
    return float(told["events"] / told["seconds"])
