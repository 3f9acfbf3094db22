"""What must stay level while everything else goes on: memory, connections, and tables.

The first third of a run is for warming up. The median of the last third is
compared with that of the second: a leak makes the later one larger, however long
it runs, while a burst of faults in one of them moves a median little. What is
tolerated is an amount rather than a share where a share would mean nothing.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import psycopg

LEAST_SAMPLES = 9
"""Fewer samples are not judged: a third of them would be one or two."""


class Tolerance(NamedTuple):
    """By how much a level may be higher in the last third: a share of it, and an amount.

    What has a ceiling instead may rise as far as that.
    """

    share: float
    amount: float
    unit: str
    why: str
    ceiling: float | None = None


MEMORY = Tolerance(
    0.10, 8, "MiB", "an allocator takes memory in arenas, and keeps what a burst of errors needed"
)
CONNECTIONS = Tolerance(
    0, 0, "", "a process keeps up to ten connections open after a burst, and two to listen", 12
)
"""For each process: how many are open by then is a matter of the bursts that there were."""
TABLES = Tolerance(
    0.50,
    2,
    "MiB",
    "autovacuum comes once a minute, and a killed server forgets its counts",
)

# Read models with as many rows as there are proxies, pools and readers; not those that grow
# with the history, as leases and the log do.
# Each rebuild makes most of them anew, so this is the bloat between
# two rebuilds; what is never rebuilt is `subscriptions`, whose row is written all the time.
_SIZES = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'pharox' AND c.relkind = 'r' AND c.relname = ANY(%s)
"""
_BOUNDED = [
    "available_proxies",
    "consumers",
    "pool_stats",
    "pools",
    "proxies",
    "proxy_health",
    "selector_cursors",
    "subscriptions",
]
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"


class Levels:
    """Takes samples and judges them."""

    def __init__(self, processes: int = 0) -> None:
        ceiling = processes * (CONNECTIONS.ceiling or 0)
        self._connections = CONNECTIONS._replace(ceiling=ceiling)
        self._samples: dict[str, list[float]] = defaultdict(list)
        self._tolerances: dict[str, Tolerance] = {}

    def sample_process(self, name: str, pid: int) -> None:
        """Note how much memory a process has."""
        self._note(f"memory of {name}", psutil.Process(pid).memory_info().rss / 2**20, MEMORY)

    def sample_server(self, connection: psycopg.Connection[Any]) -> None:
        """Note how many connections there are, and how large the tables that should not grow."""
        for name, query, values, scale, tolerance in (
            ("connections", _CONNECTIONS, None, 1, self._connections),
            ("tables that do not grow with the history", _SIZES, [_BOUNDED], 2**20, TABLES),
        ):
            row = connection.execute(query, values).fetchone()
            assert row is not None
            self._note(name, float(row[0]) / scale, tolerance)

    def _note(self, name: str, value: float, tolerance: Tolerance) -> None:
        self._samples[name].append(value)
        self._tolerances[name] = tolerance

    def judged(self) -> list[dict[str, Any]]:
        """Return for each level what it was in the second and the last third, and if that holds."""
        return [self._judge(name, samples) for name, samples in self._samples.items()]

    def _judge(self, name: str, samples: list[float]) -> dict[str, Any]:
        tolerance = self._tolerances[name]
        third = len(samples) // 3
        before = median(samples[third : 2 * third] or samples)
        after = median(samples[2 * third :] or samples)
        is_judged = len(samples) >= LEAST_SAMPLES
        most = before * (1 + tolerance.share) + tolerance.amount
        if tolerance.ceiling is not None:
            most = tolerance.ceiling
        return {
            "level": name,
            "unit": tolerance.unit,
            "second third": round(before, 1),
            "last third": round(after, 1),
            "at most": round(most, 1),
            "tolerated because": tolerance.why,
            "samples": len(samples),
            "judged": is_judged,
            "held": not is_judged or after <= most,
        }
