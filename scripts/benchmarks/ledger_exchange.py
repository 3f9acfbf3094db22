"""Rebuilds while eight processes lease: how long they wait, and whether anything fails."""

from __future__ import annotations

from statistics import median

import pharox
from pharox.ledger.rebuild import rebuild
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_leasing import Leasing
from scripts.benchmarks.ledger_log import BACKLOG
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import fill, new_database

WORKERS = 8
REBUILDS = 5

LINES = (
    Line("locks held for the exchange, median of 5", "median", "ms", goal=goals.EXCHANGE_LOCKED),
    Line("locks held for the exchange, longest of 5", "max", "ms", goal=goals.EXCHANGE_LOCKED),
    Line("attempts to get the locks, most of 5", "attempts", ""),
    Line("rebuild under load, median of 5", "rebuild", "s"),
    Line("longest cycle of any worker", "pause", "s", goal=goals.EXCHANGE_PAUSE),
    Line("cycles of all workers", "cycles"),
    Line("errors of any worker", "errors", "", goal=goals.NO_ERRORS),
    Line("findings of verify afterwards", "findings", "", goal=goals.NO_ERRORS),
)


def part(bench: Bench) -> Part:
    """Return the part that measures rebuilds of a long log under load."""

    def measure() -> Figures:
        url = new_database(bench.url, "exchanging", BACKLOG)
        storage = pharox.connect(url)
        fill(storage, "busy", 100)
        rebuild(storage)  # the live tables are those of the long log from here on
        with Leasing(url, "busy", WORKERS) as leasing:
            done = [rebuild(storage) for _ in range(REBUILDS)]
        findings = storage.verify()
        storage.close()
        locked_ms = [one.locked_ms for one in done]
        return {
            "median": median(locked_ms),
            "max": max(locked_ms),
            "attempts": max(one.attempts for one in done),
            "rebuild": median(one.seconds for one in done),
            "pause": leasing.tally.longest_s,
            "cycles": leasing.tally.cycles / leasing.tally.seconds,
            "errors": leasing.tally.errors,
            "findings": len(findings),
        }

    return Part(
        "exchange", {f"6. Rebuild under {WORKERS} leasing processes": LINES}, measure, once=True
    )
