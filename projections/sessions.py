"""sessions: which proxy each key of a pool is bound to, and until when.

A binding that is over stays until its key is bound again, or leases that ended later are pruned.
The key finds a binding; an index finds the bindings of a proxy, as two keys do not share one, and
one those that end first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Index,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    delete,
    false,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    ExitRotated,
    LeasesPruned,
    PoolRemoved,
    PoolStateCarried,
    SessionBound,
    SessionForgotten,
)

from .base import (
    Events,
    Fold,
    Projection,
    fact,
    metadata,
    of_type,
    recorded_exit,
    rotated_exit,
    with_session,
)
from .carrying import carry, carry_fold


@dataclass(slots=True)
class SessionRow:
    """A key's binding. ``country`` and ``exit_ip`` are those of the proxy when it was bound.

    ``exit`` is the exit of a gateway that the key keeps, if the proxy is a template.
    """

    pool_id: UUID
    key: str
    proxy_id: UUID
    target: str | None
    shared: bool
    country: str | None
    exit_ip: str | None
    bound_at: datetime
    expires_at: datetime
    exit: dict[str, Any] | None


sessions = Table(
    "sessions",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("key", Text(collation="C"), nullable=False),
    Column("proxy_id", Uuid, nullable=False),
    Column("target", Text),
    Column("shared", Boolean, nullable=False),
    Column("country", Text),
    Column("exit_ip", Text),
    Column("bound_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("exit", JSONB),
    PrimaryKeyConstraint("pool_id", "key"),
)
Index(
    "ix_sessions_proxy",
    sessions.c.pool_id,
    sessions.c.proxy_id,
    sessions.c.shared,
    sessions.c.expires_at,
)
Index("ix_sessions_expires", sessions.c.pool_id, sessions.c.expires_at)

_TYPES = ("SessionBound", "SessionForgotten")


class Sessions(Projection):
    """Keeps the last binding of each key."""

    name = "sessions"
    table = sessions
    row: ClassVar[type] = SessionRow
    key = ("pool_id", "key")

    def apply(self, state: dict[Any, SessionRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case SessionBound():
                state[event.pool_id, event.key] = SessionRow(
                    event.pool_id,
                    event.key,
                    event.proxy_id,
                    event.target,
                    event.shared,
                    event.country,
                    event.exit_ip,
                    event.recorded_at,
                    event.expires_at,
                    recorded_exit(event.exit),
                )
            case ExitRotated() if event.session is not None:
                row = state[event.pool_id, event.session]
                row.exit = rotated_exit(row.exit, event)
            case SessionForgotten():
                state.pop((event.pool_id, event.key), None)
            case LeasesPruned():
                _drop(state, event.pool_id, event.ended_before)
            case PoolRemoved():
                _drop(state, event.pool_id, None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset(_TYPES), _bind),
            Fold(frozenset(_TYPES), _forget),
            Fold(frozenset({*_TYPES, "ExitRotated"}), _rotate),
            Fold(frozenset({"LeasesPruned"}), _prune),
            Fold(frozenset({"PoolRemoved"}), _remove),
        )


def _drop(state: dict[Any, SessionRow], pool_id: UUID, before: datetime | None) -> None:
    """Delete a pool's bindings, or those of them that were over before a moment."""
    for key, row in [*state.items()]:
        if row.pool_id == pool_id and (before is None or row.expires_at < before):
            del state[key]


def _bind(events: Events) -> UpdateBase:
    """Keep the keys whose last event here is that they were bound."""
    keys = (events.c.pool_id, fact(events, "key", Text))
    values = {
        "proxy_id": events.c.proxy_id,
        "target": fact(events, "target", Text),
        "shared": func.coalesce(fact(events, "shared", Boolean), false()),
        "country": fact(events, "country", Text),
        "exit_ip": fact(events, "exit_ip", Text),
        "bound_at": events.c.recorded_at,
        "expires_at": events.c.expires_at,
        "exit": fact(events, "exit", JSONB),
    }
    latest = select(*keys, *values.values()).where(
        events.is_latest(of_type(events, *_TYPES), *keys), of_type(events, "SessionBound")
    )
    upsert = insert(sessions).from_select(["pool_id", "key", *values], latest)
    return upsert.on_conflict_do_update(
        constraint=sessions.primary_key, set_={name: upsert.excluded[name] for name in values}
    )


def _forget(events: Events) -> UpdateBase:
    """Delete the keys whose last event here is that they were forgotten."""
    keys = (events.c.pool_id, fact(events, "key", Text))
    latest = select(*keys).where(
        events.is_latest(of_type(events, *_TYPES), *keys), of_type(events, "SessionForgotten")
    )
    return delete(sessions).where(tuple_(sessions.c.pool_id, sessions.c.key).in_(latest))


def _rotate(events: Events) -> UpdateBase:
    """Set the exits of the keys of which the last event here is that they took another."""
    # A binding comes with the exit that it has by then. An ExitRotated has its key as "session".
    key = func.coalesce(fact(events, "key", Text), fact(events, "session", Text))
    every = of_type(events, *_TYPES, "ExitRotated")
    latest = (
        select(
            events.c.pool_id,
            key.label("key"),
            fact(events, "session_after", Text).label("session_after"),
        )
        .where(events.is_latest(every, events.c.pool_id, key), of_type(events, "ExitRotated"))
        .subquery("rotated")
    )
    return (
        update(sessions)
        .values(exit=with_session(sessions.c.exit, latest.c.session_after))
        .where(sessions.c.pool_id == latest.c.pool_id, sessions.c.key == latest.c.key)
    )


def _prune(events: Events) -> UpdateBase:
    return delete(sessions).where(
        sessions.c.pool_id == events.c.pool_id,
        sessions.c.expires_at < fact(events, "ended_before", DateTime(timezone=True)),
        of_type(events, "LeasesPruned"),
    )


def _remove(events: Events) -> UpdateBase:
    return delete(sessions).where(
        sessions.c.pool_id == events.c.pool_id, of_type(events, "PoolRemoved")
    )


SESSIONS = Sessions()
