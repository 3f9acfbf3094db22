"""proxies: the description of each proxy, without its current state.

It is separate from ``available_proxies`` because that table is updated twice per
lease and should stay narrow. This one is updated when a person changes
something, and when a health check finds another ``exit_ip`` or a rotation takes one: the
address from which a target saw the proxy. The index on host and port finds a proxy by its
identity. The index on ids finds the next page of a pool, and the one on ``placeholders``
whether it has a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    Numeric,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    and_,
    or_,
    select,
    update,
)
from sqlalchemy.sql.dml import UpdateBase

from pharox.events import (
    EventBase,
    HealthChecked,
    PoolStateCarried,
    ProxyDescribed,
    ProxyRemoved,
    RotationAnswered,
)

from .base import (
    Events,
    Fold,
    Projection,
    delete_proxies,
    fact,
    keep_last,
    last,
    metadata,
    of_type,
)
from .carrying import carry, carry_fold


@dataclass(slots=True)
class ProxyRow:
    """The description of one proxy."""

    id: UUID
    pool_id: UUID
    protocol: str
    host: str
    port: int
    credential_id: UUID | None
    source: str | None
    country: str | None
    city: str | None
    latitude: float | None
    longitude: float | None
    isp: str | None
    asn: int | None
    exit_ip: str | None
    cost_per_gb: Decimal | None
    cost_per_lease: Decimal | None
    placeholders: str | None
    weight: int | None
    rotate_id: UUID | None


proxies = Table(
    "proxies",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("credential_id", Uuid),
    Column("source", Text),
    Column("country", Text),
    Column("city", Text),
    Column("latitude", Double),
    Column("longitude", Double),
    Column("isp", Text),
    Column("asn", BigInteger),
    Column("exit_ip", Text),
    Column("cost_per_gb", Numeric),
    Column("cost_per_lease", Numeric),
    Column("placeholders", Text),
    Column("weight", Integer),
    Column("rotate_id", Uuid),
    PrimaryKeyConstraint("id", "pool_id"),
    CheckConstraint("port BETWEEN 1 AND 65535", name="port"),
    Index("ix_proxies_identity", "pool_id", "host", "port", "protocol"),
    Index("ix_proxies_page", "pool_id", "id"),
)
Index(
    "ix_proxies_templates",
    proxies.c.pool_id,
    proxies.c.id,
    postgresql_where=proxies.c.placeholders.is_not(None),
)
Index(
    "ix_proxies_cost_per_lease",
    proxies.c.pool_id,
    postgresql_where=proxies.c.cost_per_lease.is_not(None),
)

_DESCRIBED: dict[str, Any] = {
    "protocol": Text,
    "host": Text,
    "port": Integer,
    "credential_id": Uuid,
    "source": Text,
    "country": Text,
    "city": Text,
    "latitude": Double,
    "longitude": Double,
    "isp": Text,
    "asn": BigInteger,
    "cost_per_gb": Numeric,
    "cost_per_lease": Numeric,
    "placeholders": Text,
    "weight": Integer,
    "rotate_id": Uuid,
}


class Proxies(Projection):
    """Keeps the last description of each proxy, and deletes removed proxies."""

    name = "proxies"
    table = proxies
    row: ClassVar[type] = ProxyRow
    key = ("id", "pool_id")

    def apply(self, state: dict[Any, ProxyRow], event: EventBase) -> None:
        match event:
            case PoolStateCarried():
                carry(self, state, event)
            case ProxyDescribed():
                known = state.get((event.proxy_id, event.pool_id))
                state[event.proxy_id, event.pool_id] = ProxyRow(
                    event.proxy_id,
                    event.pool_id,
                    event.protocol.value,
                    event.host,
                    event.port,
                    event.credential_id,
                    event.source,
                    event.country,
                    event.city,
                    event.latitude,
                    event.longitude,
                    event.isp,
                    event.asn,
                    None if known is None else known.exit_ip,
                    event.cost_per_gb,
                    event.cost_per_lease,
                    event.placeholders,
                    event.weight,
                    event.rotate_id,
                )
            case HealthChecked(applied=True) if event.exit_ip is not None:
                state[event.proxy_id, event.pool_id].exit_ip = event.exit_ip
            case RotationAnswered(failure=None):
                state[event.proxy_id, event.pool_id].exit_ip = event.exit_ip
            case ProxyRemoved():
                del state[event.proxy_id, event.pool_id]

    def folds(self) -> tuple[Fold, ...]:
        return (
            carry_fold(self),
            Fold(frozenset({"ProxyRegistered", "ProxyChanged"}), _describe),
            Fold(frozenset({"HealthChecked", "RotationAnswered"}), _see_exits),
            Fold(frozenset({"ProxyRemoved"}), _remove),
        )


def _describe(events: Events) -> UpdateBase:
    ours = of_type(events, "ProxyRegistered", "ProxyChanged")
    return keep_last(events, proxies, _DESCRIBED, ours)


def _see_exits(events: Events) -> UpdateBase:
    exit_ip = fact(events, "exit_ip", Text)
    newest = (
        select(
            events.c.pool_id,
            events.c.proxy_id,
            last(events, exit_ip).label("exit_ip"),
        )
        .where(
            or_(
                and_(
                    of_type(events, "HealthChecked"),
                    exit_ip.is_not(None),
                    fact(events, "applied", Boolean),
                ),
                # Another exit is not known unless the link says which.
                and_(
                    of_type(events, "RotationAnswered"),
                    fact(events, "failure", Text).is_(None),
                ),
            )
        )
        .group_by(events.c.pool_id, events.c.proxy_id)
        .subquery("newest")
    )
    return (
        update(proxies)
        .values(exit_ip=newest.c.exit_ip)
        .where(
            proxies.c.pool_id == newest.c.pool_id,
            proxies.c.id == newest.c.proxy_id,
        )
    )


def _remove(events: Events) -> UpdateBase:
    return delete_proxies(events, proxies)


PROXIES = Proxies()
