"""The tables of the log: events, their order, and the progress of subscriptions.

Commands append to ``events`` without a lock. ``position`` is assigned before the
commit, so readers cannot rely on its order. ``seals`` give each committed event its
``seq``, the order that all readers use, and its digest. A reader writes them after
the commit. A tick stores the snapshot up to which everything is sealed, and a root
hash over the digests of its events and the previous root. The last tick grows until
it is complete.

Events and seals are partitioned by the same ranges of positions, so that old
partitions can be archived together. Rows of events, seals and ticks are never updated
or deleted: triggers that the migrations create reject it for every role.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    Uuid,
    case,
    func,
    literal_column,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.types import UserDefinedType

from projections.base import metadata


class Xid8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in DDL."""
        return "xid8"


class Snapshot(UserDefinedType[str]):
    """PostgreSQL's snapshot of transactions that a statement sees."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        """Return the type's name in DDL."""
        return "pg_snapshot"


_positions = Sequence("events_position_seq", metadata=metadata)

events = Table(
    "events",
    metadata,
    Column(
        "position",
        BigInteger,
        nullable=False,
        server_default=case((func.pg_current_xact_id().is_not(None), _positions.next_value())),
    ),
    Column(
        "tx",
        Xid8,
        nullable=False,
        server_default=literal_column("pg_current_xact_id()"),
    ),
    Column("recorded_at", DateTime(timezone=True), nullable=False),
    Column("expires_at", DateTime(timezone=True)),
    Column("acquired_at", DateTime(timezone=True)),
    Column("pool_id", Uuid, nullable=False),
    Column("proxy_id", Uuid),
    Column("lease_id", Uuid),
    Column("consumer_id", Uuid),
    Column("leases_before", Integer),
    Column("leases_after", Integer),
    Column("max_concurrency_before", Integer),
    Column("max_concurrency_after", Integer),
    Column("schema_version", SmallInteger, nullable=False, server_default=literal_column("1")),
    Column("type", Text, nullable=False),
    Column("status_before", Text),
    Column("status_after", Text),
    Column("selector", Text),
    Column("consumer", Text),
    Column("pool_name", Text),
    Column("actor", Text),
    Column("correlation_id", Text),
    Column("proxy_ids", ARRAY(Uuid)),
    Column("data", JSONB),
    PrimaryKeyConstraint("position"),
    CheckConstraint("isfinite(recorded_at)", name="recorded_at"),
    CheckConstraint("jsonb_typeof(data) = 'object'", name="data"),
    postgresql_partition_by="RANGE (position)",
)
"""Fields that folds read are columns. All other fields are in ``data``, null if there are none."""

Index(
    "ix_events_recorded_at",
    events.c.recorded_at,
    postgresql_using="brin",
    postgresql_with={"autosummarize": "on", "pages_per_range": 32},
)
Index("ix_events_lease", events.c.lease_id, postgresql_where=events.c.lease_id.is_not(None))
Index("ix_events_proxy", events.c.proxy_id, postgresql_where=events.c.proxy_id.is_not(None))
Index(
    "ix_events_proxies",
    events.c.proxy_ids,
    postgresql_using="gin",
    postgresql_with={"fastupdate": "off"},
    postgresql_where=events.c.proxy_ids.is_not(None),
)
Index("ix_events_consumer", events.c.consumer, postgresql_where=events.c.consumer.is_not(None))
Index(
    "ix_events_described",
    events.c.proxy_id,
    events.c.position,
    postgresql_where=literal_column("type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved')"),
)
Index(
    "ix_events_health",
    events.c.proxy_id,
    events.c.position,
    postgresql_where=literal_column("type = 'HealthChecked'"),
)
Index(
    "ix_events_pools",
    events.c.position,
    postgresql_where=literal_column("type IN ('PoolRegistered', 'PoolChanged', 'PoolRemoved')"),
)

seals = Table(
    "seals",
    metadata,
    Column("seq", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False, autoincrement=False),
    Column("version", SmallInteger, nullable=False, server_default=literal_column("1")),
    Column("digest", LargeBinary, nullable=False),
    PrimaryKeyConstraint("position"),
    Index("ix_seals_seq", "seq"),
    postgresql_partition_by="RANGE (position)",
)


def _tick_columns() -> list[Column[Any]]:
    return [
        Column("last_seq", BigInteger, nullable=False, autoincrement=False),
        Column("first_seq", BigInteger, nullable=False),
        Column("snapshot", Snapshot, nullable=False),
        Column("anchor", BigInteger, nullable=False),
        Column("system_identifier", BigInteger, nullable=False),
        Column("sealed_at", DateTime(timezone=True), nullable=False),
        Column("root", LargeBinary, nullable=False),
        Column("after_position", BigInteger, nullable=False),
        Column("last_position", BigInteger, nullable=False),
    ]


ticks = Table("ticks", metadata, *_tick_columns(), PrimaryKeyConstraint("last_seq"))
"""The complete ticks.

Events of a tick and of later ticks have positions above ``after_position``. Events of a
tick and of earlier ticks have positions up to ``last_position``.
"""

last_tick = Table(
    "last_tick",
    metadata,
    *_tick_columns(),
    Column("unsealed_after", BigInteger, nullable=False),
    Column("sealer_tx", Xid8, nullable=False),
    Column("appended_upto", BigInteger, nullable=False),
)
"""The last tick, which grows until it is complete, and the state that the next sealing needs."""

partitions = Table(
    "partitions",
    metadata,
    Column("first_position", BigInteger, nullable=False, autoincrement=False),
    Column("end_position", BigInteger, nullable=False),
    Column("first_seq", BigInteger),
    Column("last_seq", BigInteger),
    Column("first_recorded_at", DateTime(timezone=True)),
    Column("last_recorded_at", DateTime(timezone=True)),
    Column("archived_at", DateTime(timezone=True)),
    Column("archive", Text),
    PrimaryKeyConstraint("first_position"),
)
"""The parts of the log with their bounds. The other columns are set once a part is archived."""

snapshots = Table(
    "snapshots",
    metadata,
    Column("seq", BigInteger, nullable=False, autoincrement=False),
    Column("taken_at", DateTime(timezone=True), nullable=False),
    Column("projections", ARRAY(Text), nullable=False),
    PrimaryKeyConstraint("seq"),
)
snapshot_rows = Table(
    "snapshot_rows",
    metadata,
    Column("seq", BigInteger, nullable=False),
    Column("projection", Text, nullable=False),
    Column("row", JSONB, nullable=False),
    Index("ix_snapshot_rows_seq", "seq", "projection"),
)
"""The read models of ``projections`` after event ``seq``: a cache, never the source of truth."""

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("name", Text, nullable=False),
    Column("checkpoint", BigInteger, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", Uuid),
    Column("seen_at", DateTime(timezone=True)),
    PrimaryKeyConstraint("name"),
)
parked_events = Table(
    "parked_events",
    metadata,
    Column("subscription", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("key", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("error", Text),
    Column("parked_at", DateTime(timezone=True), nullable=False),
    Column("retry", Boolean, nullable=False, server_default=literal_column("false")),
    PrimaryKeyConstraint("subscription", "seq"),
    Index("ix_parked_events_key", "subscription", "key", "seq"),
)
"""Events that a subscription's handler failed on. Without an error: events held back behind one."""

fleet_counts = Table(
    "fleet_counts",
    metadata,
    Column("subscription", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("labels", ARRAY(Text), nullable=False),
    Column("value", Double, nullable=False),
    PrimaryKeyConstraint("subscription", "name", "labels"),
)
"""Counters that a subscription keeps, for metrics of the whole fleet."""
