"""Bound what is used of a pool on one day, as ``budgets_v1`` in ``sql/0006/spending.sql`` does."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import NamedTuple
from uuid import UUID

from projections import SpendingRow
from projections.spending import WHOLE_POOL, day_of

from ...models import LimitReached, PoolLimits
from .state import State

UNBOUNDED = 2**31 - 1
"""The room where nothing bounds a request."""


class Bound(NamedTuple):
    """A limit with how much of it is used, its room in leases, and when time frees enough."""

    limit: LimitReached
    room: int
    frees_at: datetime | None


_BUDGETS = (
    ("bytes_per_day", "pool"),
    ("money_per_day", "pool"),
    ("consumer_bytes_per_day", "consumer"),
    ("consumer_money_per_day", "consumer"),
)


def budgets(
    state: State, pool_id: UUID, limits: PoolLimits, consumer: str, now: datetime
) -> list[Bound]:
    """Return the budgets of a pool and of a consumer in it. Each has room until it is used up."""
    found = []
    for name, per in _BUDGETS:
        most: int | Decimal | None = getattr(limits, name)
        if most is not None:
            row = _spent(state, pool_id, WHOLE_POOL if per == "pool" else consumer, now)
            used: int | Decimal = row.bytes if "bytes" in name else row.money
            is_used_up = used >= most
            limit = LimitReached(name=name, per=per, most=_number(most), used=_number(used))
            frees_at = next_day(now) if is_used_up else None
            found.append(Bound(limit, 0 if is_used_up else UNBOUNDED, frees_at))
    return found


def has_budget(limits: PoolLimits) -> bool:
    """Return whether a pool has a budget."""
    return any(getattr(limits, name) is not None for name, _ in _BUDGETS)


def is_budget(limit: LimitReached) -> bool:
    """Return whether a limit is of bytes or money, and not of leases."""
    return limit.unit is not None


def next_day(now: datetime) -> datetime:
    """Return when the next day begins, in UTC."""
    return datetime.combine(day_of(now) + timedelta(days=1), time(), UTC)


def _spent(state: State, pool_id: UUID, consumer: str, now: datetime) -> SpendingRow:
    key = (pool_id, day_of(now), consumer)
    row: SpendingRow = state.rows["spending"].get(key) or SpendingRow(*key)
    return row


def _number(amount: int | Decimal) -> float:
    """Return an amount as the event of a miss has it; what decides is compared before, exactly."""
    shown = float(amount)
    return int(shown) if shown.is_integer() else shown
