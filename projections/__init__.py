"""The rules that fold the log into read models, one file each.

A projection says the same thing twice: :meth:`Projection.apply` is the meaning
in Python, used in memory, as of a moment and in checking; :meth:`Projection.folds`
is the speed in SQL, run over the rows that a command has just appended. Tests
hold the two together. Whatever a projection keeps can be dropped and folded
again from the log.
"""

from .available_proxies import AVAILABLE_PROXIES, Availability, AvailableProxies
from .base import Events, Fold, Projection, ProjectionRow, metadata
from .consumers import CONSUMERS, ConsumerRow, Consumers
from .leases import LEASES, LeaseRow, Leases
from .pool_stats import POOL_STATS, PoolCounts, PoolStats
from .pools import POOLS, PoolRow, Pools
from .proxies import PROXIES, Proxies, ProxyRow
from .proxy_health import PROXY_HEALTH, HealthRow, ProxyHealth
from .selector_cursors import SELECTOR_CURSORS, CursorRow, SelectorCursors
from .verify import Drift, State, drifts, fold, standing

ALL: tuple[Projection, ...] = (
    POOLS,
    CONSUMERS,
    PROXIES,
    AVAILABLE_PROXIES,
    LEASES,
    POOL_STATS,
    SELECTOR_CURSORS,
    PROXY_HEALTH,
)
"""Every read model of pharox itself, in the order in which an event is folded into them."""

__all__ = [
    "ALL",
    "AVAILABLE_PROXIES",
    "CONSUMERS",
    "LEASES",
    "POOLS",
    "POOL_STATS",
    "PROXIES",
    "PROXY_HEALTH",
    "SELECTOR_CURSORS",
    "Availability",
    "AvailableProxies",
    "ConsumerRow",
    "Consumers",
    "CursorRow",
    "Drift",
    "Events",
    "Fold",
    "HealthRow",
    "LeaseRow",
    "Leases",
    "PoolCounts",
    "PoolRow",
    "PoolStats",
    "Pools",
    "Projection",
    "ProjectionRow",
    "Proxies",
    "ProxyHealth",
    "ProxyRow",
    "SelectorCursors",
    "State",
    "drifts",
    "fold",
    "metadata",
    "standing",
]
