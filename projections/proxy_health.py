"""proxy_health: the newest health check of each proxy, by the time of the check."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Integer,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    and_,
)
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import EventBase, HealthChecked, PoolStateCarried, ProxyRemoved

from .base import Events, Fold, Projection, delete_proxies, fact, keep_last, metadata, of_type
from .carrying import carry, carry_fold


@dataclass(slots=True)
class HealthRow:
    """The newest check of one proxy."""

    proxy_id: UUID
    pool_id: UUID
    status: str
    latency_ms: int | None
    protocol: str
    attempts: int
    status_code: int | None
    checked_at: datetime
    error: str | None
    failure: str | None


_RESULT: dict[str, Any] = {
    "status": Text,
    "latency_ms": Integer,
    "protocol": Text,
    "attempts": Integer,
    "status_code": Integer,
    "checked_at": DateTime(timezone=True),
    "error": Text,
    "failure": Text,
}

proxy_health = Table(
    "proxy_health",
    metadata,
    Column("proxy_id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("status", Text, nullable=False),
    Column("latency_ms", Integer),
    Column("protocol", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status_code", Integer),
    Column("checked_at", DateTime(timezone=True), nullable=False),
    Column("error", Text),
    Column("failure", Text),
    PrimaryKeyConstraint("proxy_id", "pool_id"),
)


class ProxyHealth(Projection):
    """Keeps the last applied result of each proxy. Results that came too late are only logged."""

    name = "proxy_health"
    table = proxy_health
    row: ClassVar[type] = HealthRow
    key = ("proxy_id", "pool_id")

    def apply(self, state: dict[Any, HealthRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case HealthChecked(applied=True):
                state[event.proxy_id, event.pool_id] = HealthRow(
                    event.proxy_id,
                    event.pool_id,
                    event.status.value,
                    event.latency_ms,
                    event.protocol.value,
                    event.attempts,
                    event.status_code,
                    event.checked_at,
                    event.error,
                    event.failure and event.failure.value,
                )
            case ProxyRemoved():
                state.pop((event.proxy_id, event.pool_id), None)

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset({"HealthChecked"}), _record),
            Fold(frozenset({"ProxyRemoved"}), _remove),
        )


def _record(events: Events) -> UpdateBase:
    applied = and_(of_type(events, "HealthChecked"), fact(events, "applied", Boolean))
    return keep_last(events, proxy_health, _RESULT, applied)


def _remove(events: Events) -> UpdateBase:
    return delete_proxies(events, proxy_health)


PROXY_HEALTH = ProxyHealth()
