"""Several ledgers on any number of servers, used as one: pools found by name, each in its ledger.

A pool lives in one ledger, a ledger in one schema, and no transaction spans two of them. So the
fleet grows by ledgers, and each keeps its own order, seal and clock. One of them, the home ledger,
keeps the directory of which pool is where. A pool can be moved from one ledger to another.
"""

from __future__ import annotations

from .fleets import AsyncFleet, Fleet
from .moving import (
    LedgerEnd,
    MoveOptions,
    Places,
    cancel_move,
    cancel_move_async,
    move_pool,
    move_pool_async,
)
from .settings import FleetSettings, LedgerSettings

__all__ = [
    "AsyncFleet",
    "Fleet",
    "FleetSettings",
    "LedgerEnd",
    "LedgerSettings",
    "MoveOptions",
    "Places",
    "cancel_move",
    "cancel_move_async",
    "move_pool",
    "move_pool_async",
]
