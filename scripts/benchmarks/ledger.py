"""The ledger on one server: appending, sealing, rebuilding, delivering, and reading the past.

The peer is eventsourcing 9.5.6; the floor is pgbench with a plain table.
"""

from __future__ import annotations

import sys

from scripts.benchmarks import (
    ledger_append,
    ledger_exchange,
    ledger_growth,
    ledger_latency,
    ledger_log,
    ledger_subscription,
)
from scripts.benchmarks.parts import Bench, Part


def prepare(bench: Bench) -> list[Part]:
    """Return the parts that measure the ledger, after making a long log."""
    print(f"making a log of {bench.events:,} events", file=sys.stderr)
    return [
        ledger_log.part(bench),  # first, as others copy its log
        ledger_append.part(bench),
        ledger_subscription.part(bench),
        ledger_latency.part(bench),
        ledger_exchange.part(bench),
        *ledger_growth.parts(bench),
    ]
