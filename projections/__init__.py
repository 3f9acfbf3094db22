"""The rules that fold the log into read models, one file each.

Each projection states its fold twice. :meth:`Projection.apply` defines it in Python,
for the in-memory storage, point-in-time queries and verification.
:meth:`Projection.folds` is the same fold as SQL, run over the rows that a command has
just appended. Tests check that the two agree. A read model can be dropped and
rebuilt from the log at any time.
"""

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from pharox.errors import ProjectionError

from .api_tokens import API_TOKENS, ApiTokenRow, ApiTokens
from .available_proxies import AVAILABLE_PROXIES, Availability, AvailableProxies
from .base import Events, Fold, Projection, ProjectionRow, metadata
from .consumers import CONSUMERS, ConsumerRow, Consumers
from .lease_ids import LEASE_IDS, LeaseIdRow, LeaseIds
from .lease_starts import LEASE_STARTS, LeaseStartRow, LeaseStarts
from .leases import LEASES, LeaseRow, Leases
from .pool_moves import POOL_MOVES, PoolMoveRow, PoolMoves
from .pool_places import POOL_PLACES, PoolPlaceRow, PoolPlaces
from .pool_stats import POOL_STATS, PoolCounts, PoolStats
from .pools import POOLS, PoolRow, Pools
from .proxies import PROXIES, Proxies, ProxyRow
from .proxy_health import PROXY_HEALTH, HealthRow, ProxyHealth
from .rotations import ROTATIONS, RotationRow, Rotations
from .selector_cursors import SELECTOR_CURSORS, CursorRow, SelectorCursors
from .sessions import SESSIONS, SessionRow, Sessions
from .sources import SOURCES, SourceRow, Sources
from .spending import SPENDING, Spending, SpendingRow
from .target_outcomes import TARGET_OUTCOMES, TargetOutcomes, TargetOutcomesRow
from .target_rules import TARGET_RULES, TargetRules, TargetRulesRow
from .troubled_targets import TROUBLED_TARGETS, TroubledTargetRow, TroubledTargets
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
    TARGET_OUTCOMES,
    TROUBLED_TARGETS,
    SESSIONS,
    LEASE_STARTS,
    SPENDING,
    TARGET_RULES,
    SOURCES,
    ROTATIONS,
    API_TOKENS,
    POOL_PLACES,
    POOL_MOVES,
)
"""The built-in projections, in the order in which an event is folded into them."""

ENTRY_POINTS = "pharox.projections"
"""The entry point group in which other packages register their projections."""


@cache
def registered() -> tuple[Projection, ...]:
    """Return all projections: the built-in ones, then those of installed packages by name.

    Raises
    ------
    ProjectionError
        If a projection of a package cannot be loaded.
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
    "API_TOKENS",
    "AVAILABLE_PROXIES",
    "CONSUMERS",
    "LEASES",
    "LEASE_IDS",
    "LEASE_STARTS",
    "POOLS",
    "POOL_MOVES",
    "POOL_PLACES",
    "POOL_STATS",
    "PROXIES",
    "PROXY_HEALTH",
    "ROTATIONS",
    "SELECTOR_CURSORS",
    "SESSIONS",
    "SOURCES",
    "SPENDING",
    "TARGET_OUTCOMES",
    "TARGET_RULES",
    "TROUBLED_TARGETS",
    "ApiTokenRow",
    "ApiTokens",
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
    "LeaseStartRow",
    "LeaseStarts",
    "Leases",
    "PoolCounts",
    "PoolMoveRow",
    "PoolMoves",
    "PoolPlaceRow",
    "PoolPlaces",
    "PoolRow",
    "PoolStats",
    "Pools",
    "Projection",
    "ProjectionRow",
    "Proxies",
    "ProxyHealth",
    "ProxyRow",
    "RotationRow",
    "Rotations",
    "SelectorCursors",
    "SessionRow",
    "Sessions",
    "SourceRow",
    "Sources",
    "Spending",
    "SpendingRow",
    "State",
    "TargetOutcomes",
    "TargetOutcomesRow",
    "TargetRules",
    "TargetRulesRow",
    "TroubledTargetRow",
    "TroubledTargets",
    "current",
    "differences",
    "fold",
    "metadata",
    "registered",
]
