"""The ledger on one server: appending, sealing, rebuilding, telling, and asking for the past.

Each part is measured once a round, so that what disturbs the machine disturbs
them all; figures are medians over the rounds. The peer is eventsourcing 9.5.6,
the floor is what pgbench gets into a plain table.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from pharox import embedded
from scripts.benchmarks import (
    ledger_append,
    ledger_exchange,
    ledger_latency,
    ledger_log,
    ledger_subscription,
)
from scripts.benchmarks.ledger_table import Bench, Figures, Part, show

PARTS = (
    ledger_log.part,  # first, as others copy its log
    ledger_append.part,
    ledger_subscription.part,
    ledger_latency.part,
    ledger_exchange.part,
)


def run(*, seconds: float, rounds: int, events: int) -> dict[str, Any]:
    """Measure, print a table for each part, and return the medians and what each round found."""
    with tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "data")
        try:
            print(f"making a log of {events:,} events", file=sys.stderr)
            parts = [prepare(Bench(server.url, seconds, events)) for prepare in PARTS]
            found = _measure(parts, rounds)
        finally:
            server.close()
    medians = {name: _medians(figures) for name, figures in found.items()}
    tables = [(title, part) for part in parts for title in part.tables]
    for title, part in sorted(tables, key=itemgetter(0)):
        show(title, part.tables[title], medians[part.name])
    return {"medians": medians, "rounds": found}


def _measure(parts: Sequence[Part], rounds: int) -> dict[str, list[Figures]]:
    found: dict[str, list[Figures]] = {part.name: [] for part in parts}
    for number in range(rounds):
        for part in parts:
            if number == 0 or not part.once:
                print(f"round {number + 1} of {rounds}: {part.name}", file=sys.stderr)
                found[part.name].append(part.measure())
    return found


def _medians(figures: Sequence[Figures]) -> Figures:
    return {name: median(one[name] for one in figures) for name in figures[0]}
