"""What is read of each ledger for the merged views of the present."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..effects import Calls
from ..models import HeldLease, PoolMove, PoolStatsSnapshot
from .ledgers import Ledger

PAGE = 1000


def stats_of(ledger: Ledger[Any, Any]) -> Calls[list[PoolStatsSnapshot]]:
    """Read the statistics of a ledger's pools."""
    return [*(yield ledger.storage.list_pool_stats)]


def moves_of(pool_name: str | None) -> Callable[[Ledger[Any, Any]], Calls[list[PoolMove]]]:
    """Return a program that reads the moves of a ledger's pools, or of one."""

    def reading(ledger: Ledger[Any, Any]) -> Calls[list[PoolMove]]:
        return [*(yield partial(ledger.storage.list_pool_moves, pool_name))]

    return reading


def leases_of(
    pool_name: str | None, consumer_name: str | None
) -> Callable[[Ledger[Any, Any]], Calls[list[HeldLease]]]:
    """Return a program that reads a ledger's active leases, page by page."""

    def reading(ledger: Ledger[Any, Any]) -> Calls[list[HeldLease]]:
        found: list[HeldLease] = []
        last, is_full = None, True
        while is_full:
            page = yield partial(
                ledger.storage.list_held_leases,
                pool_name,
                consumer_name=consumer_name,
                after=last,
                limit=PAGE,
            )
            found += page
            is_full = len(page) == PAGE
            last = page[-1] if page else None
        return found

    return reading
