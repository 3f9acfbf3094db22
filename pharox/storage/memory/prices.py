"""What leases and bytes cost at this time, as ``sql/0006/spending.sql`` says it."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal
from uuid import UUID

from projections import PoolRow, ProxyRow

from .state import State


def price_of(
    state: State, pool_id: UUID, proxy_id: UUID, name: Literal["cost_per_gb", "cost_per_lease"]
) -> Decimal | None:
    """Return a price of a proxy, or that of its pool if the proxy has none or was removed."""
    proxy: ProxyRow | None = state.rows["proxies"].get((proxy_id, pool_id))
    of_proxy: Decimal | None = None if proxy is None else getattr(proxy, name)
    if of_proxy is not None:
        return of_proxy
    pool: PoolRow = state.rows["pools"][(pool_id,)]
    of_pool: Decimal | None = getattr(pool, name)
    return of_pool
