"""The peer, eventsourcing 9.5.6, in an environment of its own: see ``ledger_eventsourcing.py``."""

from __future__ import annotations

from scripts.benchmarks.peers import EVENTSOURCING, told_by
from scripts.benchmarks.server import new_database


def append_rate(url: str, clients: int, seconds: float) -> float:
    """Return how many events a second it appends, each with a save and a commit of its own."""
    return _run("append", new_database(url, "peer"), clients, seconds)


def projection_rate(url: str, events: int) -> float:
    """Return how many events a second its projection runner folds into read models."""
    return _run("project", new_database(url, "peer"), events)


def _run(task: str, url: str, *asked: float) -> float:
    told = told_by(EVENTSOURCING, "ledger_eventsourcing.py", task, url, *asked)
    return float(told["events"] / told["seconds"])
