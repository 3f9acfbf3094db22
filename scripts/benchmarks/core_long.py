"""A long log without seals: sealing, a rebuild of all read models, and verify."""

from __future__ import annotations

import sys

import pharox
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_log import BACKLOG, make_backlog, work_through
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import new_database


def part(bench: Bench) -> Part:
    """Return the part that measures a long log, with a new copy of it in each round."""
    print(f"making a log of {bench.events:,} events", file=sys.stderr)
    make_backlog(bench, BACKLOG, bench.events)

    def measure() -> Figures:
        storage = pharox.connect(new_database(bench.url, "copied", BACKLOG))
        figures = work_through(storage)
        storage.close()
        return figures

    lines = (
        Line("sealed, events", "sealed", goal=goals.CORE_SEAL),
        Line("rebuilt into all read models, events", "rebuilt", goal=goals.CORE_REBUILD),
        Line("verified, events", "verified"),
        Line("findings of verify", "findings", "", goal=goals.NO_ERRORS),
    )
    return Part("long", {f"8. A log of {bench.events:,} events": lines}, measure)
