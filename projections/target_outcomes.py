"""target_outcomes: what each proxy has come to at each target, and whether the pair rests.

Each event has the record after it, so a fold takes the last one. A pair outlives its proxy, until
it is pruned: what is known of it is of use if the proxy comes back. A rest that a person ended is
kept with its end, so that no event makes a pair old, and a prune at the same time agrees with the
log. The key finds a pair while a lease is decided; three indexes find the pairs of a target that
rest, those that were reported lately, and those that succeed most.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    and_,
    case,
    delete,
    func,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    CoolDownSet,
    EventBase,
    LeasesPruned,
    OutcomeReported,
    PoolRemoved,
    PoolStateCarried,
)

from .base import Events, Fold, Projection, fact, metadata, of_type
from .carrying import carry, carry_fold


@dataclass(slots=True)
class TargetOutcomesRow:
    """One pair of a proxy and a target. ``outcome`` is the last one, None before the first."""

    pool_id: UUID
    proxy_id: UUID
    target: str
    successes: float
    failures: float
    streak: int
    cool_downs: int
    cools_until: datetime | None
    outcome: str | None
    status: int | None
    reported_at: datetime | None


target_outcomes = Table(
    "target_outcomes",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("proxy_id", Uuid, nullable=False),
    Column("target", Text, nullable=False),
    Column("successes", Double, nullable=False),
    Column("failures", Double, nullable=False),
    Column("streak", Integer, nullable=False),
    Column("cool_downs", Integer, nullable=False),
    Column("cools_until", DateTime(timezone=True)),
    Column("outcome", Text),
    Column("status", Integer),
    Column("reported_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("pool_id", "proxy_id", "target"),
    postgresql_with={"fillfactor": 80},
)
Index(
    "ix_target_outcomes_cooling",
    target_outcomes.c.pool_id,
    target_outcomes.c.target,
    target_outcomes.c.cools_until,
    postgresql_where=target_outcomes.c.cools_until.is_not(None),
)
Index(
    "ix_target_outcomes_reported",
    target_outcomes.c.pool_id,
    target_outcomes.c.target,
    target_outcomes.c.reported_at,
)

Index(
    "ix_target_outcomes_success",
    target_outcomes.c.pool_id,
    target_outcomes.c.target,
    text("((successes + 1) / (successes + failures + 2)) DESC"),
    target_outcomes.c.proxy_id,
)

_KEY = ("pool_id", "proxy_id", "target")
_RECORD: dict[str, Any] = {
    "successes": Double,
    "failures": Double,
    "streak": Integer,
    "cool_downs": Integer,
    "cools_until": DateTime(timezone=True),
    "outcome": Text,
    "status": Integer,
}
_TYPES = ("OutcomeReported", "CoolDownSet")


class TargetOutcomes(Projection):
    """Keeps the last record of each pair. Pairs that nobody has reported for long are pruned."""

    name = "target_outcomes"
    table = target_outcomes
    row: ClassVar[type] = TargetOutcomesRow
    key = _KEY

    def apply(self, state: dict[Any, TargetOutcomesRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case OutcomeReported(target=str(target)) | CoolDownSet(target=str(target)):
                reported_at: datetime | None = event.recorded_at
                cools_until = event.cools_until
                if isinstance(event, CoolDownSet):
                    reported_at = event.reported_at
                    cools_until = cools_until or event.recorded_at
                state[event.pool_id, event.proxy_id, target] = TargetOutcomesRow(
                    event.pool_id,
                    event.proxy_id,
                    target,
                    event.successes,
                    event.failures,
                    event.streak,
                    event.cool_downs,
                    cools_until,
                    event.outcome and event.outcome.value,
                    event.status,
                    reported_at,
                )
            case LeasesPruned():
                _drop(state, event.pool_id, event.ended_before)
            case PoolRemoved():
                _drop(state, event.pool_id, None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset(_TYPES), _keep),
            Fold(frozenset({"LeasesPruned"}), _prune),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _drop(state: dict[Any, TargetOutcomesRow], pool_id: UUID, before: datetime | None) -> None:
    """Delete a pool's pairs, or those of them with neither a report nor a rest since ``before``."""
    of_pool = [key for key, row in state.items() if row.pool_id == pool_id]
    for key in of_pool:
        row = state[key]
        times = [at for at in (row.reported_at, row.cools_until) if at is not None]
        if before is None or all(at < before for at in times):
            del state[key]


def _keep(events: Events) -> UpdateBase:
    keys = (events.c.pool_id, events.c.proxy_id, fact(events, "target", Text))
    of_pair = and_(of_type(events, *_TYPES), fact(events, "target", Text).is_not(None))
    values = {
        **{name: fact(events, name, type_) for name, type_ in _RECORD.items()},
        "cools_until": func.coalesce(
            fact(events, "cools_until", DateTime(timezone=True)),
            case((of_type(events, "CoolDownSet"), events.c.recorded_at)),
        ),
        "reported_at": case(
            (of_type(events, "OutcomeReported"), events.c.recorded_at),
            else_=fact(events, "reported_at", DateTime(timezone=True)),
        ),
    }
    latest = select(*keys, *values.values()).where(events.is_latest(of_pair, *keys))
    upsert = insert(target_outcomes).from_select([*_KEY, *values], latest)
    return upsert.on_conflict_do_update(
        constraint=target_outcomes.primary_key,
        set_={name: upsert.excluded[name] for name in values},
    )


def _prune(events: Events) -> UpdateBase:
    latest = func.greatest(target_outcomes.c.reported_at, target_outcomes.c.cools_until)
    return delete(target_outcomes).where(
        target_outcomes.c.pool_id == events.c.pool_id,
        func.coalesce(latest < fact(events, "ended_before", DateTime(timezone=True)), true()),
        of_type(events, "LeasesPruned"),
    )


def _remove(events: Events) -> UpdateBase:
    return delete(target_outcomes).where(
        target_outcomes.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


TARGET_OUTCOMES = TargetOutcomes()
