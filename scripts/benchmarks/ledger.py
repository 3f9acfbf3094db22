"""The ledger on one server: appending, sealing, rebuilding, telling, and asking for the past.

Each part is measured once a round, so that what disturbs the machine disturbs
them all; figures are medians over the rounds. The peer is eventsourcing 9.5.6,
the floor is what pgbench gets into a plain table.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from pharox import embedded
from scripts.benchmarks import (
    ledger_append,
    ledger_exchange,
    ledger_latency,
    ledger_log,
    ledger_subscription,
)
from scripts.benchmarks.parts import Bench, measure, report

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
            found = measure(parts, rounds)
        finally:
            server.close()
    return report(parts, found)
