"""The rules that fold the log into read models, one file each.

A projection says the same thing twice: :meth:`Projection.apply` is the meaning
in Python, used in memory, as of a moment and in checking; :meth:`Projection.folds`
is the speed in SQL, run over the rows that a command has just appended. Tests
hold the two together. Whatever a projection keeps can be dropped and folded
again from the log.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pharox.errors import ProjectionError

from .available_proxies import AVAILABLE_PROXIES, Availability, AvailableProxies
from .base import Events, Fold, Projection, ProjectionRow, metadata
from .consumers import CONSUMERS, ConsumerRow, Consumers
from .lease_ids import LEASE_IDS, LeaseIdRow, LeaseIds
from .leases import LEASES, LeaseRow, Leases
from .pool_stats import POOL_STATS, PoolCounts, PoolStats
from .pools import POOLS, PoolRow, Pools
from .proxies import PROXIES, Proxies, ProxyRow
from .proxy_health import PROXY_HEALTH, HealthRow, ProxyHealth
from .selector_cursors import SELECTOR_CURSORS, CursorRow, SelectorCursors
from .verify import Finding, State, current, differences, fold

ALL: tuple[Projection, ...] = (
    POOLS,
    CONSUMERS,
    PROXIES,
    AVAILABLE_PROXIES,
    LEASES,
    LEASE_IDS,
    POOL_STATS,
    SELECTOR_CURSORS,
    PROXY_HEALTH,
)
"""Every read model of pharox itself, in the order in which an event is folded into them."""

ENTRY_POINTS = "pharox.projections"
"""The group of entry points under which a package offers projections of its own."""


@cache
def registered() -> tuple[Projection, ...]:
    """Return every projection that is folded: ours, then those of installed packages by name.

    Raises
    ------
    ProjectionError
        If one of those cannot be loaded.
    """
    offered = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return (*ALL, *map(_loaded, offered))


def _loaded(point: EntryPoint) -> Projection:
    try:
        projection: Projection = point.load()()
    except Exception as error:
        raise ProjectionError(
            f"the projection {point.name!r} ({point.value}) can't be loaded: {error}"
        ) from error
    return projection


__all__ = [
    "ALL",
    "AVAILABLE_PROXIES",
    "CONSUMERS",
    "LEASES",
    "LEASE_IDS",
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
    "Events",
    "Finding",
    "Fold",
    "HealthRow",
    "LeaseIdRow",
    "LeaseIds",
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
    "current",
    "differences",
    "fold",
    "metadata",
    "registered",
]
