"""The peer, eventsourcing 9.5.6, in an environment of its own: see ``ledger_eventsourcing.py``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from scripts.benchmarks.server import new_database

HERE = Path(__file__).parent
# Isolated, so that it finds its own packages and not ours.
PEER = [str(HERE.parents[1] / ".venv-eventsourcing" / "bin" / "python"), "-I"]


def append_rate(url: str, clients: int, seconds: float) -> float:
    """Return how many events a second it appends, each with a save and a commit of its own."""
    return _run("append", new_database(url, "peer"), clients, seconds)


def projection_rate(url: str, events: int) -> float:
    """Return how many events a second its projection runner folds into read models."""
    return _run("project", new_database(url, "peer"), events)


def _run(task: str, url: str, *asked: float) -> float:
    command = [*PEER, str(HERE / "ledger_eventsourcing.py"), task, url, *map(str, asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(done.stdout)
    return float(told["events"] / told["seconds"])
