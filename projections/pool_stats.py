"""pool_stats: counters for each pool, so that statistics need not count proxies.

Each pool has sixteen rows of counters. A writer updates the row of its own slot, so two
writers rarely wait for each other. A reader sums all sixteen. The slot is a parameter
of the statement, so it does not depend on how a server evaluates an expression.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import ENDED_STATUS, EventBase, PoolRegistered, PoolRemoved, ProxyState

from .base import HOT, Events, Fold, Projection, metadata, of_type

SLOTS = 16


@dataclass(slots=True)
class PoolCounts:
    """The counters of one pool."""

    pool_id: UUID
    total_proxies: int = 0
    active_proxies: int = 0
    available_proxies: int = 0
    leased_proxies: int = 0
    total_leases: int = 0

    def figures(self) -> dict[str, int]:
        """Return the counts by name."""
        return {name: getattr(self, name) for name in COUNTS}


COUNTS = (
    "total_proxies",
    "active_proxies",
    "available_proxies",
    "leased_proxies",
    "total_leases",
)

pool_stats = sa.Table(
    "pool_stats",
    metadata,
    sa.Column("pool_id", sa.Uuid, nullable=False),
    sa.Column("slot", sa.SmallInteger, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
    sa.PrimaryKeyConstraint("pool_id", "slot"),
    postgresql_with={"fillfactor": 50, **HOT},
)

_LEASE_EVENTS = frozenset({"LeaseAcquired", *ENDED_STATUS})
_EVENTS = _LEASE_EVENTS | {"ProxyRegistered", "ProxyChanged", "ProxyRemoved", "HealthChecked"}


def counts_of(state: ProxyState | None) -> tuple[int, int, int, int, int]:
    """Return what a proxy in this state adds to its pool's counters, in :data:`COUNTS` order."""
    if state is None:
        return (0, 0, 0, 0, 0)
    return (
        1,
        int(state.status == "active"),
        int(state.is_available),
        int(state.leases > 0),
        state.leases,
    )


class PoolStats(Projection):
    """Adds what a proxy counts after each event, and subtracts what it counted before."""

    name = "pool_stats"
    table = pool_stats
    row: ClassVar[type] = PoolCounts
    key = ("pool_id",)

    def apply(self, state: dict[Any, PoolCounts], event: EventBase) -> None:
        if event.touches_proxy:
            row = state[(event.pool_id,)]
            before = counts_of(event.before)  # type: ignore[attr-defined]
            after = counts_of(event.after)  # type: ignore[attr-defined]
            row.total_proxies += after[0] - before[0]
            row.active_proxies += after[1] - before[1]
            row.available_proxies += after[2] - before[2]
            row.leased_proxies += after[3] - before[3]
            row.total_leases += after[4] - before[4]
        elif isinstance(event, PoolRegistered):
            state[(event.pool_id,)] = PoolCounts(event.pool_id)
        elif isinstance(event, PoolRemoved):
            del state[(event.pool_id,)]

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"PoolRegistered"}), _register),
            Fold(_EVENTS, _add),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )

    def live(self) -> sa.Select[Any]:
        sums = (sa.func.sum(pool_stats.c[name]).cast(sa.BigInteger).label(name) for name in COUNTS)
        return sa.select(pool_stats.c.pool_id, *sums).group_by(pool_stats.c.pool_id)


def _register(events: Events) -> UpdateBase:
    slots = sa.func.generate_series(0, SLOTS - 1).table_valued("slot").render_derived()
    return sa.insert(pool_stats).from_select(
        ["pool_id", "slot", *COUNTS],
        sa.select(events.c.pool_id, slots.c.slot, *(sa.literal_column("0") for _ in COUNTS)).where(
            of_type(events, "PoolRegistered")
        ),
    )


def _state_counts(events: Events, side: str) -> dict[str, sa.ColumnElement[int]]:
    """Return :func:`counts_of` in SQL, for the state before or after an event."""
    status = events.c[f"status_{side}"]
    leases = events.c[f"leases_{side}"]
    capacity = events.c[f"max_concurrency_{side}"]
    one, zero = sa.literal_column("1", sa.Integer), sa.literal_column("0", sa.Integer)
    active = status == sa.literal_column("'active'", sa.Text)
    has_capacity = sa.or_(capacity.is_(None), leases < capacity)
    return {
        "total_proxies": sa.case((status.is_not(None), one), else_=zero),
        "active_proxies": sa.case((active, one), else_=zero),
        "available_proxies": sa.case((sa.and_(active, has_capacity), one), else_=zero),
        "leased_proxies": sa.case((leases > zero, one), else_=zero),
        "total_leases": sa.func.coalesce(leases, zero),
    }


def changes(events: Events) -> dict[str, sa.ColumnElement[int]]:
    """Return how much one event changes each of its pool's :data:`COUNTS`, in SQL."""
    after, before = _state_counts(events, "after"), _state_counts(events, "before")
    return {name: after[name] - before[name] for name in COUNTS}


def _add(events: Events) -> UpdateBase:
    change: Any = changes(events)
    pool_id = events.c.pool_id
    if not events.is_single:
        sums = (sa.func.sum(value).label(name) for name, value in change.items())
        touching = of_type(events, *sorted(_EVENTS))
        by_pool = sa.select(pool_id, *sums).where(touching).group_by(pool_id).subquery("change")
        change, pool_id = by_pool.c, by_pool.c.pool_id
    return (
        sa.update(pool_stats)
        .values({name: pool_stats.c[name] + change[name] for name in COUNTS})
        .where(
            pool_stats.c.pool_id == pool_id,
            pool_stats.c.slot == sa.bindparam("own_slot", type_=sa.SmallInteger),
        )
    )


def counts_after(events: Events) -> sa.Select[Any]:
    """Return the query for each pool's counts after each of these events.

    The events are already folded into the counters. The query reads the counters once and
    subtracts what later events changed.
    """
    sums = (sa.func.sum(pool_stats.c[name]).label(name) for name in COUNTS)
    total = sa.select(pool_stats.c.pool_id, *sums).group_by(pool_stats.c.pool_id)
    pools = sa.select(events.c.pool_id).correlate(None)
    now = total.where(pool_stats.c.pool_id.in_(pools)).subquery("now")

    def count(name: str, change: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
        later = sa.func.sum(change).over(
            partition_by=events.c.pool_id, order_by=events.c.position.desc(), rows=(None, -1)
        )
        zero = sa.literal_column("0", sa.Integer)
        return sa.cast(now.c[name] - sa.func.coalesce(later, zero), sa.Integer).label(name)

    return sa.select(
        events.c.position, *(count(name, change) for name, change in changes(events).items())
    ).select_from(events.rows.join(now, now.c.pool_id == events.c.pool_id))


def _remove(events: Events) -> UpdateBase:
    return sa.delete(pool_stats).where(
        pool_stats.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


POOL_STATS = PoolStats()
