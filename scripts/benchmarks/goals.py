"""What figures are meant to be, and where one falls short of it, what the limit is and why.

One place for all of them: a line of a table names its goal, and the page of the
benchmarks quotes the reason when the measured figure misses it.
"""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    """A bound for one figure; ``limit`` is told only where the figure is beyond it."""

    name: str
    at_least: float | None = None
    at_most: float | None = None
    limit: str = ""

    def is_met(self, value: float) -> bool:
        """Whether a figure is within the bound."""
        enough = self.at_least is None or value >= self.at_least
        return enough and (self.at_most is None or value <= self.at_most)


LEASE_FLOOR_1 = Goal("lease-floor-1", at_least=0.6)
LEASE_FLOOR_8 = Goal("lease-floor-8", at_least=0.6)
LEASE_PEER_1 = Goal("lease-peer-1", at_least=6)
LEASE_PEER_8 = Goal("lease-peer-8", at_least=20)
LEASE_FLAT_POOL = Goal("lease-flat-pool", at_least=0.9)
LEASE_FLAT_HISTORY = Goal("lease-flat-history", at_least=0.9)
MEMORY_RATE = Goal("memory-rate", at_least=10_000)
MEMORY_FLAT = Goal("memory-flat", at_least=0.7)
NO_ERRORS = Goal("no-errors", at_most=0)

APPEND_PLAIN = Goal("append-plain", at_least=0.6)
APPEND_SEALED = Goal("append-sealed", at_least=0.9)
SEAL_RATE = Goal("seal-rate", at_least=100_000)
REBUILD_RATE = Goal("rebuild-rate", at_least=300_000)
REBUILD_PEER = Goal("rebuild-peer", at_least=20)
DELIVERY_RATE = Goal("delivery-rate", at_least=20_000)
DELIVERY_P99 = Goal("delivery-p99", at_most=20)
EXCHANGE_LOCKED = Goal("exchange-locked", at_most=100)
EXCHANGE_PAUSE = Goal("exchange-pause", at_most=1)

HEALTH_FLOOR = Goal("health-floor", at_least=0.8)
HEALTH_ALL = Goal("health-all", at_least=2_000)
HEALTH_SILENT = Goal("health-silent", at_least=100)
HEALTH_ON_TIME = Goal("health-on-time", at_most=3)
HEALTH_MEMORY = Goal("health-memory", at_most=1.1)

ASYNC_BLOCKING = Goal("async-blocking", at_least=1.5)
ASYNC_PEER = Goal("async-peer", at_least=10)

OBSERVE_COST = Goal("observe-cost", at_most=1.15)

GOALS = {goal.name: goal for goal in list(globals().values()) if isinstance(goal, Goal)}
"""All of them, by name."""
