"""leases: all leases, active and ended, until the ended ones are pruned.

Ids are time-ordered, so inserts go to the end of the index, however many leases
there have been. The partial index on expiry holds active leases only: checking
whether one is due reads one entry. Those of limited leases count what a consumer holds, and what is
held for a target; other leases are in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Index,
    PrimaryKeyConstraint,
    Select,
    Table,
    Text,
    Uuid,
    and_,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    ENDED_STATUS,
    EventBase,
    ExitRotated,
    LeaseAcquired,
    LeaseExpired,
    LeaseReleased,
    LeaseRenewed,
    LeaseRevoked,
)
from pharox.events import LeasesPruned as Pruned

from .base import (
    Events,
    Fold,
    Projection,
    fact,
    last,
    metadata,
    of_type,
    recorded_exit,
    rotated_exit,
    with_session,
)


@dataclass(slots=True)
class LeaseRow:
    """One lease."""

    id: UUID
    pool_id: UUID
    pool_name: str
    proxy_id: UUID
    consumer_id: UUID
    consumer_name: str
    status: str
    acquired_at: datetime
    expires_at: datetime
    released_at: datetime | None
    fencing_token: int
    renewed_at: datetime | None
    revoke_reason: str | None
    target: str | None
    limited: bool | None
    exit: dict[str, Any] | None


leases = Table(
    "leases",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("pool_name", Text, nullable=False),
    Column("proxy_id", Uuid, nullable=False),
    Column("consumer_id", Uuid, nullable=False),
    Column("consumer_name", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("acquired_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("released_at", DateTime(timezone=True)),
    Column("fencing_token", BigInteger, nullable=False),
    Column("renewed_at", DateTime(timezone=True)),
    Column("revoke_reason", Text),
    Column("target", Text),
    Column("limited", Boolean),
    Column("exit", JSONB),
    PrimaryKeyConstraint("id", "pool_id"),
    CheckConstraint("status IN ('active', 'released', 'expired', 'revoked')", name="status"),
    CheckConstraint("(status = 'active') = (released_at IS NULL)", name="released_at"),
    postgresql_with={"fillfactor": 70},
)

Index(
    "ix_leases_due",
    leases.c.pool_id,
    leases.c.expires_at,
    postgresql_where=literal_column("status = 'active'"),
)
Index(
    "ix_leases_held",
    leases.c.pool_id,
    leases.c.proxy_id,
    postgresql_where=literal_column("status = 'active'"),
)
Index(
    "ix_leases_of_consumer",
    leases.c.pool_id,
    leases.c.consumer_id,
    postgresql_where=literal_column("status = 'active' AND limited"),
)
Index(
    "ix_leases_for_target",
    leases.c.pool_id,
    leases.c.target,
    postgresql_where=literal_column("status = 'active' AND limited AND target IS NOT NULL"),
)


class Leases(Projection):
    """Adds a lease when it is acquired, extends it, and sets its status when an event ends it."""

    name = "leases"
    table = leases
    row: ClassVar[type] = LeaseRow
    key = ("id", "pool_id")

    def apply(self, state: dict[Any, LeaseRow], event: EventBase) -> None:
        match event:
            case LeaseAcquired():
                state[event.lease_id, event.pool_id] = LeaseRow(
                    event.lease_id,
                    event.pool_id,
                    event.pool_name,
                    event.proxy_id,
                    event.consumer_id,
                    event.consumer,
                    "active",
                    event.recorded_at,
                    event.expires_at,
                    None,
                    event.position,
                    None,
                    None,
                    event.target,
                    event.limited or None,
                    recorded_exit(event.exit),
                )
            case LeaseRenewed():
                row = state[event.lease_id, event.pool_id]
                row.expires_at, row.renewed_at = event.expires_at, event.recorded_at
            case ExitRotated():
                row = state[event.lease_id, event.pool_id]
                row.exit = rotated_exit(row.exit, event)
            case LeaseReleased() | LeaseExpired() | LeaseRevoked():
                row = state[event.lease_id, event.pool_id]
                row.status = ENDED_STATUS[event.type].value
                row.released_at = event.recorded_at
                if isinstance(event, LeaseRevoked):
                    row.revoke_reason = event.reason
            case Pruned():
                ended = [
                    key
                    for key, row in state.items()
                    if row.pool_id == event.pool_id
                    and row.released_at is not None
                    and row.released_at < event.ended_before
                ]
                for key in ended:
                    del state[key]

    def is_current(self, row: LeaseRow) -> bool:
        return row.status == "active"

    def current(self) -> ColumnElement[bool]:
        return leases.c.status == literal_column("'active'", Text)

    def folds(self) -> tuple[Fold, ...]:
        return (
            Fold(frozenset({"LeaseAcquired"}), _acquire),
            Fold(frozenset(ENDED_STATUS), _end),
            Fold(frozenset({"LeaseRenewed"}), _renew),
            Fold(frozenset({"ExitRotated"}), _rotate),
            Fold(frozenset({"LeasesPruned"}), _prune),
        )


def _acquire(events: Events) -> UpdateBase:
    """Insert new leases, already ended if a later one of these events ends them."""
    columns: dict[str, Any] = {
        "id": events.c.lease_id,
        "pool_id": events.c.pool_id,
        "pool_name": events.c.pool_name,
        "proxy_id": events.c.proxy_id,
        "consumer_id": events.c.consumer_id,
        "consumer_name": events.c.consumer,
        "status": literal_column("'active'", Text),
        "acquired_at": events.c.recorded_at,
        "expires_at": events.c.expires_at,
        "fencing_token": events.c.position,
        "target": fact(events, "target", Text),
        "limited": fact(events, "limited", Boolean),
        "exit": fact(events, "exit", JSONB),
    }
    if events.is_single:
        return insert(leases).from_select(list(columns), select(*columns.values()))
    ends = events.rows.alias("ends")
    ended = and_(ends.c.lease_id == events.c.lease_id, of_type(Events(ends), *ENDED_STATUS))
    columns["status"] = func.coalesce(_status(Events(ends)), columns["status"])
    columns["released_at"] = ends.c.recorded_at
    columns["revoke_reason"] = _revoke_reason(Events(ends))
    acquired = (
        select(*columns.values())
        .select_from(events.rows.outerjoin(ends, ended))
        .where(of_type(events, "LeaseAcquired"))
        .order_by(events.c.lease_id)
    )
    return insert(leases).from_select(list(columns), acquired)


def _end(events: Events) -> UpdateBase:
    """Update leases that these events end and that were inserted before them."""
    ended = (
        update(leases)
        .values(
            status=_status(events),
            released_at=events.c.recorded_at,
            revoke_reason=_revoke_reason(events),
        )
        .where(
            leases.c.pool_id == events.c.pool_id,
            leases.c.id == events.c.lease_id,
            of_type(events, *ENDED_STATUS),
        )
    )
    if events.is_single:
        return ended
    began = events.rows.alias("began")
    here: Select[Any] = select(literal_column("1")).where(
        began.c.lease_id == events.c.lease_id, of_type(Events(began), "LeaseAcquired")
    )
    return ended.where(~here.exists())


def _renew(events: Events) -> UpdateBase:
    """Set the end of each renewed lease to that of its last renewal."""
    c = events.c
    # One pass over the events: what is appended together is joined without hashing.
    last_of_each = (
        select(
            c.lease_id,
            c.pool_id,
            last(events, c.expires_at).label("expires_at"),
            last(events, c.recorded_at).label("renewed_at"),
        )
        .where(of_type(events, "LeaseRenewed"))
        .group_by(c.lease_id, c.pool_id)
        .subquery("renewed")
    )
    return (
        update(leases)
        .values(expires_at=last_of_each.c.expires_at, renewed_at=last_of_each.c.renewed_at)
        .where(leases.c.pool_id == last_of_each.c.pool_id, leases.c.id == last_of_each.c.lease_id)
    )


def _rotate(events: Events) -> UpdateBase:
    """Set the session id of each lease's exit to that of its last rotation."""
    c = events.c
    last_of_each = (
        select(
            c.lease_id,
            c.pool_id,
            last(events, fact(events, "session_after", Text)).label("session_after"),
        )
        .where(of_type(events, "ExitRotated"))
        .group_by(c.lease_id, c.pool_id)
        .subquery("rotated")
    )
    return (
        update(leases)
        .values(exit=with_session(leases.c.exit, last_of_each.c.session_after))
        .where(leases.c.pool_id == last_of_each.c.pool_id, leases.c.id == last_of_each.c.lease_id)
    )


def _status(events: Events) -> ColumnElement[str]:
    return case(
        *(
            (of_type(events, type_), literal_column(f"'{status.value}'", Text))
            for type_, status in ENDED_STATUS.items()
        )
    )


def _revoke_reason(events: Events) -> ColumnElement[str]:
    return case((of_type(events, "LeaseRevoked"), fact(events, "reason", Text)))


def _prune(events: Events) -> UpdateBase:
    return delete(leases).where(
        leases.c.pool_id == events.c.pool_id,
        leases.c.status != literal_column("'active'", Text),
        leases.c.released_at < fact(events, "ended_before", DateTime(timezone=True)),
        of_type(events, "LeasesPruned"),
    )


LEASES = Leases()
