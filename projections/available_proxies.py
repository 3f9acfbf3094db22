"""available_proxies: the current state of each proxy, indexed for each selector.

This table is narrow and updated often. A lease locks one row of it, and that lock
serializes decisions about the proxy. ``lease_rank`` is 0 for a proxy that may be leased, 1
for a SLOW one with free capacity (leased only if its pool allows it), and null otherwise.
Each selector has an index over the ranked rows in its own order, so finding a proxy
costs the same in a pool of a hundred and of a million.

LOWEST_LATENCY orders by ``latency_ms``, LEAST_RECENTLY_USED by ``leased_at``, the time of the
proxy's last lease, which is null before its first. ``streak`` counts consecutive successful health
checks, or failed ones as a negative number, since a person last set the status.

WEIGHTED orders by ``next_turn``, which is null before the proxy's first lease by it. The greatest
``turn`` of a status is how far its proxies have come: who was away goes on from there.

A ban with an end has ``banned_until`` and ``returns_to``, the status that follows it. The end is
an event of its own, so the index on it finds what is due, as that on leases does.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    ENDED_STATUS,
    EventBase,
    HealthChecked,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    LeaseRevoked,
    PoolStateCarried,
    ProxyChanged,
    ProxyRegistered,
    ProxyRemoved,
    RotationAnswered,
    RotationBegan,
    RotationCalled,
)

from .base import HOT, Events, Fold, Projection, fact, last, metadata, of_type
from .carrying import carry, carry_fold
from .rotations import ROTATION_TYPES


@dataclass(slots=True)
class Availability:
    """The current state of one proxy."""

    proxy_id: UUID
    pool_id: UUID
    status: str
    checked_at: datetime
    max_concurrency: int | None
    current_leases: int
    latency_ms: int | None
    probed_at: datetime | None
    streak: int
    rests_until: datetime | None
    drains: bool | None
    banned_until: datetime | None
    returns_to: str | None
    leased_at: datetime | None
    turn: int | None
    next_turn: int | None


RANK = """
CASE
    WHEN current_leases >= max_concurrency THEN NULL
    WHEN status = 'active' THEN 0
    WHEN status = 'slow' THEN 1
END
"""

available_proxies = sa.Table(
    "available_proxies",
    metadata,
    sa.Column("proxy_id", sa.Uuid, nullable=False),
    sa.Column("pool_id", sa.Uuid, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("max_concurrency", sa.Integer),
    sa.Column("current_leases", sa.Integer, nullable=False),
    sa.Column("latency_ms", sa.Integer),
    sa.Column("probed_at", sa.DateTime(timezone=True)),
    sa.Column("streak", sa.Integer, nullable=False),
    sa.Column("rests_until", sa.DateTime(timezone=True)),
    sa.Column("drains", sa.Boolean),
    sa.Column("banned_until", sa.DateTime(timezone=True)),
    sa.Column("returns_to", sa.Text),
    sa.Column("leased_at", sa.DateTime(timezone=True)),
    sa.Column("turn", sa.BigInteger),
    sa.Column("next_turn", sa.BigInteger),
    sa.Column("lease_rank", sa.SmallInteger, sa.Computed(RANK.strip(), persisted=True)),
    sa.PrimaryKeyConstraint("proxy_id", "pool_id"),
    sa.CheckConstraint("status IN ('active', 'inactive', 'slow', 'banned')", name="status"),
    sa.CheckConstraint("current_leases >= 0", name="current_leases"),
    sa.CheckConstraint("max_concurrency > 0", name="max_concurrency"),
    postgresql_with={"fillfactor": 70, **HOT},
)

_RANKED = available_proxies.c.lease_rank.is_not(None)
sa.Index(
    "ix_available_proxies_first_available",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.checked_at.desc(),
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_least_used",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.current_leases,
    available_proxies.c.checked_at,
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_round_robin",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_lowest_latency",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.latency_ms,
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_banned",
    available_proxies.c.pool_id,
    available_proxies.c.banned_until,
    postgresql_where=available_proxies.c.banned_until.is_not(None),
)
sa.Index(
    "ix_available_proxies_least_recently_used",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.leased_at.nulls_first(),
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_weighted",
    available_proxies.c.pool_id,
    available_proxies.c.lease_rank,
    available_proxies.c.next_turn.nulls_first(),
    available_proxies.c.proxy_id,
    postgresql_where=_RANKED,
)
sa.Index(
    "ix_available_proxies_turns",
    available_proxies.c.pool_id,
    available_proxies.c.status,
    available_proxies.c.turn,
    postgresql_where=available_proxies.c.turn.is_not(None),
)


class AvailableProxies(Projection):
    """Keeps the last state of each proxy. Fields that an event does not have keep their values."""

    name = "available_proxies"
    table = available_proxies
    row: ClassVar[type] = Availability
    key = ("proxy_id", "pool_id")

    def apply(self, state: dict[Any, Availability], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case LeaseAcquired() | LeaseReleased() | LeaseExpired() | LeaseRevoked():
                row = state[event.proxy_id, event.pool_id]
                row.current_leases = event.after.leases
                if isinstance(event, LeaseAcquired):
                    row.rests_until, row.leased_at = None, event.recorded_at
                    if event.next_turn is not None:
                        row.turn, row.next_turn = event.turn, event.next_turn
                else:
                    row.rests_until = event.rests_until
            case RotationBegan() | RotationCalled() | RotationAnswered():
                state[event.proxy_id, event.pool_id].rests_until = event.rests_until
            case ProxyRegistered():
                state[event.proxy_id, event.pool_id] = Availability(
                    event.proxy_id,
                    event.pool_id,
                    event.after.status.value,
                    event.checked_at,
                    event.after.max_concurrency,
                    event.after.leases,
                    None,
                    None,
                    0,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                    None,
                )
            case ProxyChanged() | HealthChecked(applied=True):
                _apply_change(state[event.proxy_id, event.pool_id], event)
            case ProxyRemoved():
                del state[event.proxy_id, event.pool_id]

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"ProxyRegistered"}), _register),
            carry_fold(self),
            Fold(frozenset({"LeaseAcquired", *ENDED_STATUS, *ROTATION_TYPES}), _count_leases),
            Fold(frozenset({"ProxyChanged", "HealthChecked"}), _change),
            Fold(frozenset({"ProxyRemoved"}), _remove),
        )


def _apply_change(row: Availability, event: ProxyChanged | HealthChecked) -> None:
    row.status = event.after.status.value
    row.max_concurrency = event.after.max_concurrency
    row.checked_at = event.checked_at
    if isinstance(event, HealthChecked):
        row.probed_at = event.checked_at
        row.streak = event.streak
        if event.mean_latency_ms is not None:
            row.latency_ms = event.mean_latency_ms
        return
    row.drains = event.drains or None
    row.banned_until = event.until
    row.returns_to = event.returns_to and event.returns_to.value
    if event.before.status is not event.after.status:
        row.streak = 0


def _register(events: Events) -> UpdateBase:
    return sa.insert(available_proxies).from_select(
        [
            "proxy_id",
            "pool_id",
            "status",
            "checked_at",
            "max_concurrency",
            "current_leases",
            "streak",
        ],
        sa.select(
            events.c.proxy_id,
            events.c.pool_id,
            events.c.status_after,
            fact(events, "checked_at", sa.DateTime(timezone=True)),
            events.c.max_concurrency_after,
            events.c.leases_after,
            sa.literal_column("0", sa.Integer),
        ).where(of_type(events, "ProxyRegistered")),
    )


_TURNS = ("turn", "next_turn")


def _count_leases(events: Events) -> UpdateBase:
    acquired = of_type(events, "LeaseAcquired")
    # A rotation changes no number of leases, but the rest: which comes last has to be known.
    ours = of_type(events, "LeaseAcquired", *ENDED_STATUS, *ROTATION_TYPES)
    rests_until = fact(events, "rests_until", sa.DateTime(timezone=True))
    before = available_proxies.c.leased_at
    turns = sa.and_(acquired, events.c.selector == sa.literal_column("'weighted'", sa.Text))
    if events.is_single:
        own: dict[str, sa.ColumnElement[Any]] = {
            "current_leases": events.c.leases_after,
            "rests_until": rests_until,
            "leased_at": sa.case((acquired, events.c.recorded_at), else_=before),
            **{
                name: sa.case(
                    (turns, fact(events, name, sa.BigInteger)), else_=available_proxies.c[name]
                )
                for name in _TURNS
            },
        }
        return _of_proxy(events.c).values(own).where(ours)
    # One pass over the events: what is appended together is joined without hashing.
    newest = (
        sa.select(
            events.c.pool_id,
            events.c.proxy_id,
            last(events, events.c.leases_after).label("leases_after"),
            last(events, rests_until).label("rests_until"),
            last(events, events.c.recorded_at, acquired).label("leased_at"),
            *(
                last(events, fact(events, name, sa.BigInteger), turns).label(name)
                for name in _TURNS
            ),
        )
        .where(ours)
        .group_by(events.c.pool_id, events.c.proxy_id)
        .subquery("newest")
    )
    return _of_proxy(newest.c).values(
        current_leases=newest.c.leases_after,
        rests_until=newest.c.rests_until,
        leased_at=sa.func.coalesce(newest.c.leased_at, before),
        **{name: sa.func.coalesce(newest.c[name], available_proxies.c[name]) for name in _TURNS},
    )


def _of_proxy(source: Any) -> sa.Update:
    """Return the update of the proxy that ``source`` names by its columns."""
    return sa.update(available_proxies).where(
        available_proxies.c.pool_id == source.pool_id,
        available_proxies.c.proxy_id == source.proxy_id,
    )


_LAST_CHANGE: dict[str, tuple[str, Any]] = {
    "drains": ("drains", sa.Boolean),
    "banned_until": ("until", sa.DateTime(timezone=True)),
    "returns_to": ("returns_to", sa.Text),
}
"""What the last ProxyChanged says, or does not: each column with its name in the event."""


def _change(events: Events) -> UpdateBase:
    checked_at = fact(events, "checked_at", sa.DateTime(timezone=True))
    checked = of_type(events, "HealthChecked")
    changed = of_type(events, "ProxyChanged")
    mean = fact(events, "mean_latency_ms", sa.Integer)
    decided = events.c.status_before != events.c.status_after
    streak = sa.func.coalesce(
        fact(events, "streak", sa.Integer), sa.literal_column("0", sa.Integer)
    )
    # A check that came late is not applied: it is in the log only.
    newest = (
        sa.select(
            events.c.pool_id,
            events.c.proxy_id,
            last(events, events.c.status_after).label("status"),
            last(events, events.c.max_concurrency_after).label("max_concurrency"),
            last(events, checked_at).label("checked_at"),
            last(events, checked_at, checked).label("probed_at"),
            last(events, mean, mean.is_not(None)).label("latency_ms"),
            last(events, streak, sa.or_(checked, decided)).label("streak"),
            sa.func.bool_or(changed).label("is_changed"),
            *(
                last(events, fact(events, name, type_), changed).label(column)
                for column, (name, type_) in _LAST_CHANGE.items()
            ),
        )
        .where(
            of_type(events, "ProxyChanged", "HealthChecked"),
            sa.func.coalesce(fact(events, "applied", sa.Boolean), sa.true()),
        )
        .group_by(events.c.pool_id, events.c.proxy_id)
        .subquery("newest")
    )
    return (
        sa.update(available_proxies)
        .values(
            status=newest.c.status,
            max_concurrency=newest.c.max_concurrency,
            checked_at=newest.c.checked_at,
            latency_ms=sa.func.coalesce(newest.c.latency_ms, available_proxies.c.latency_ms),
            probed_at=sa.func.coalesce(newest.c.probed_at, available_proxies.c.probed_at),
            streak=sa.func.coalesce(newest.c.streak, available_proxies.c.streak),
            **{
                column: sa.case(
                    (newest.c.is_changed, newest.c[column]), else_=available_proxies.c[column]
                )
                for column in _LAST_CHANGE
            },
        )
        .where(
            available_proxies.c.pool_id == newest.c.pool_id,
            available_proxies.c.proxy_id == newest.c.proxy_id,
        )
    )


def _remove(events: Events) -> UpdateBase:
    return sa.delete(available_proxies).where(
        available_proxies.c.pool_id == events.c.pool_id,
        available_proxies.c.proxy_id == events.c.proxy_id,
        of_type(events, "ProxyRemoved"),
    )


AVAILABLE_PROXIES = AvailableProxies()
