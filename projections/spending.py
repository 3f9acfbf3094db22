"""spending: what each consumer, and a whole pool, has used of money and bytes on each day.

A day is one of UTC, by the time at which the event was recorded. The row without a consumer is that
of the whole pool. Only what costs or has bytes is counted, so a plain lease writes nothing here.

A row is kept for each slot of writers, as in ``pool_stats``, and a reader sums them: otherwise all
that cost something in a pool would wait for each other. Days before that of a prune go with it;
today's never do, so no budget forgets leases that were pruned.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    LeaseAcquired,
    LeasesPruned,
    OutcomeReported,
    PoolRemoved,
    PoolStateCarried,
)
from pharox.models.money import total

from .base import Events, Fold, Projection, fact, metadata, of_type
from .carrying import carry, carry_fold
from .pool_stats import SLOTS

WHOLE_POOL = ""
"""The consumer of the row that sums up a pool."""


@dataclass(slots=True)
class SpendingRow:
    """What a consumer used of a pool on one day. ``leases`` are those that cost something."""

    pool_id: UUID
    day: date
    consumer: str
    bytes: int = 0
    money: Decimal = Decimal(0)
    leases: int = 0


spending = sa.Table(
    "spending",
    metadata,
    sa.Column("pool_id", sa.Uuid, nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("consumer", sa.Text, nullable=False),
    sa.Column("slot", sa.SmallInteger, nullable=False),
    sa.Column("bytes", sa.Numeric, nullable=False),
    sa.Column("money", sa.Numeric, nullable=False),
    sa.Column("leases", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("pool_id", "day", "consumer", "slot"),
    postgresql_with={"fillfactor": 80},
)

_TYPES = frozenset({"LeaseAcquired", "OutcomeReported"})
_SUMS = ("bytes", "money", "leases")


class Spending(Projection):
    """Adds what leases and outcomes come to."""

    name = "spending"
    table = spending
    row: ClassVar[type] = SpendingRow
    key = ("pool_id", "day", "consumer")

    def apply(self, state: dict[Any, SpendingRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case LeaseAcquired(cost=Decimal() as cost):
                _add_to(state, event, 0, cost, 1)
            case OutcomeReported() if event.bytes is not None or event.cost is not None:
                _add_to(state, event, event.bytes or 0, event.cost or Decimal(0), 0)
            case LeasesPruned():
                _drop(state, event.pool_id, day_of(event.ended_before))
            case PoolRemoved():
                _drop(state, event.pool_id, None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(_TYPES, _add),
            Fold(frozenset({"LeasesPruned"}), _prune),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )

    def live(self) -> sa.Select[Any]:
        key = [spending.c[name] for name in self.key]
        # What is in no writer's slot was written by nobody, and is missed by who verifies.
        is_a_slot = spending.c.slot.between(
            sa.literal_column("0"), sa.literal_column(str(SLOTS - 1))
        )
        money = sa.func.trim_scale(sa.func.sum(spending.c.money), type_=sa.Numeric)
        return (
            sa.select(
                *key,
                sa.func.sum(spending.c.bytes).label("bytes"),
                money.label("money"),
                sa.func.sum(spending.c.leases).cast(sa.BigInteger).label("leases"),
            )
            .where(is_a_slot)
            .group_by(*key)
        )


def day_of(moment: datetime) -> date:
    """Return the day of UTC in which a moment is."""
    return moment.astimezone(UTC).date()


def day_in_sql(moment: Any) -> sa.ColumnElement[date]:
    """Return :func:`day_of` in SQL."""
    in_utc = sa.func.timezone(sa.literal_column("'UTC'", sa.Text), moment)
    return sa.cast(in_utc, sa.Date)


def _add_to(
    state: dict[Any, SpendingRow],
    event: LeaseAcquired | OutcomeReported,
    count: int,
    cost: Decimal,
    leases: int,
) -> None:
    day = day_of(event.recorded_at)
    for consumer in (event.consumer, WHOLE_POOL):
        key = (event.pool_id, day, consumer)
        row = state.setdefault(key, SpendingRow(*key))
        row.bytes += count
        row.money = total(row.money, cost)
        row.leases += leases


def _drop(state: dict[Any, SpendingRow], pool_id: UUID, before: date | None) -> None:
    """Delete a pool's days, or those before a day."""
    for key, row in [*state.items()]:
        if row.pool_id == pool_id and (before is None or row.day < before):
            del state[key]


def _add(events: Events) -> UpdateBase:
    zero = sa.literal_column("0", sa.Integer)
    is_lease = of_type(events, "LeaseAcquired")
    is_counted = sa.or_(events.c.data.has_key("cost"), events.c.data.has_key("bytes"))
    counted = (
        sa.select(
            events.c.pool_id,
            day_in_sql(events.c.recorded_at).label("day"),
            events.c.consumer,
            sa.func.coalesce(fact(events, "bytes", sa.Numeric), zero).label("bytes"),
            sa.func.coalesce(fact(events, "cost", sa.Numeric), zero).label("money"),
            sa.cast(is_lease, sa.Integer).label("leases"),
        )
        .where(of_type(events, *sorted(_TYPES)), is_counted)
        .subquery("counted")
    )
    pool_id, day, consumer = counted.c.pool_id, counted.c.day, counted.c.consumer
    name = sa.func.coalesce(consumer, sa.literal_column(f"'{WHOLE_POOL}'", sa.Text))
    sums = (
        sa.select(
            pool_id,
            day,
            name.label("name"),
            sa.cast(sa.bindparam("own_slot", type_=sa.SmallInteger), sa.SmallInteger),
            *(sa.func.sum(counted.c[each]) for each in _SUMS),
        )
        .group_by(sa.func.grouping_sets(sa.tuple_(pool_id, day, consumer), sa.tuple_(pool_id, day)))
        # Whoever adds to several rows takes them in one order, so nobody waits in a circle.
        .order_by(pool_id, day, sa.literal_column("name"))
    )
    upsert = insert(spending).from_select(["pool_id", "day", "consumer", "slot", *_SUMS], sums)
    return upsert.on_conflict_do_update(
        constraint=spending.primary_key,
        set_={each: spending.c[each] + upsert.excluded[each] for each in _SUMS},
    )


def _prune(events: Events) -> UpdateBase:
    ended_before = fact(events, "ended_before", sa.DateTime(timezone=True))
    return sa.delete(spending).where(
        spending.c.pool_id == events.c.pool_id,
        spending.c.day < day_in_sql(ended_before),
        of_type(events, "LeasesPruned"),
    )


def _remove(events: Events) -> UpdateBase:
    return sa.delete(spending).where(
        spending.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


SPENDING = Spending()
