"""The table of events.

``position`` is handed out when an event is appended, under the lock of the
proxy it is about, so the events of one proxy stand in the order in which they
happened. Across proxies a later position can become visible first; ``tx`` is
what a reader compares with a snapshot to miss none.

Nothing refers to this table and its key leads with the position, so it can be
partitioned by ranges of it. That no row is changed or deleted is the work of a
trigger that the migrations create and no role can pass.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    literal_column,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

from projections.base import metadata


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in DDL."""
        return "xid8"


events = Table(
    "events",
    metadata,
    Column("position", BigInteger, Identity(always=True), nullable=False),
    Column(
        "tx",
        Xid8,
        nullable=False,
        server_default=literal_column("pg_current_xact_id()"),
    ),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    Column("type", Text, nullable=False),
    Column("schema_version", SmallInteger, nullable=False, server_default=literal_column("1")),
    Column("pool_id", Uuid, nullable=False),
    Column("proxy_id", Uuid),
    Column("lease_id", Uuid),
    Column("consumer", Text),
    Column("actor", Text),
    Column("correlation_id", Text),
    Column("data", JSONB, nullable=False),
    PrimaryKeyConstraint("position", "pool_id"),
)

Index(
    "ix_events_health",
    events.c.proxy_id,
    events.c.position,
    postgresql_where=literal_column("type = 'HealthChecked'"),
)
