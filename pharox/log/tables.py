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

import sqlalchemy as sa
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


_positions = sa.Sequence("events_position_seq", metadata=metadata)

events = sa.Table(
    "events",
    metadata,
    sa.Column(
        "position",
        sa.BigInteger,
        nullable=False,
        server_default=sa.case(
            (sa.func.pg_current_xact_id().is_not(None), _positions.next_value())
        ),
    ),
    sa.Column(
        "tx",
        Xid8,
        nullable=False,
        server_default=sa.literal_column("pg_current_xact_id()"),
    ),
    sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("expires_at", sa.DateTime(timezone=True)),
    sa.Column("acquired_at", sa.DateTime(timezone=True)),
    sa.Column("pool_id", sa.Uuid, nullable=False),
    sa.Column("proxy_id", sa.Uuid),
    sa.Column("lease_id", sa.Uuid),
    sa.Column("consumer_id", sa.Uuid),
    sa.Column("leases_before", sa.Integer),
    sa.Column("leases_after", sa.Integer),
    sa.Column("max_concurrency_before", sa.Integer),
    sa.Column("max_concurrency_after", sa.Integer),
    sa.Column(
        "schema_version", sa.SmallInteger, nullable=False, server_default=sa.literal_column("1")
    ),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("status_before", sa.Text),
    sa.Column("status_after", sa.Text),
    sa.Column("selector", sa.Text),
    sa.Column("consumer", sa.Text),
    sa.Column("pool_name", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("correlation_id", sa.Text),
    sa.Column("proxy_ids", ARRAY(sa.Uuid)),
    sa.Column("data", JSONB),
    sa.PrimaryKeyConstraint("position"),
    sa.CheckConstraint("isfinite(recorded_at)", name="recorded_at"),
    sa.CheckConstraint("jsonb_typeof(data) = 'object'", name="data"),
    postgresql_partition_by="RANGE (position)",
)
"""Fields that folds read are columns. All other fields are in ``data``, null if there are none."""

sa.Index(
    "ix_events_recorded_at",
    events.c.recorded_at,
    postgresql_using="brin",
    postgresql_with={"autosummarize": "on", "pages_per_range": 32},
)
sa.Index(
    "ix_events_kinds",
    events.c.pool_id,
    events.c.type,
    postgresql_using="brin",
    postgresql_ops={
        "pool_id": "uuid_bloom_ops (n_distinct_per_range = 64)",
        "type": "text_bloom_ops (n_distinct_per_range = 32)",
    },
    postgresql_with={"autosummarize": "on", "pages_per_range": 32},
)
sa.Index("ix_events_lease", events.c.lease_id, postgresql_where=events.c.lease_id.is_not(None))
sa.Index("ix_events_proxy", events.c.proxy_id, postgresql_where=events.c.proxy_id.is_not(None))
sa.Index(
    "ix_events_proxies",
    events.c.proxy_ids,
    postgresql_using="gin",
    postgresql_with={"fastupdate": "off"},
    postgresql_where=events.c.proxy_ids.is_not(None),
)
sa.Index("ix_events_consumer", events.c.consumer, postgresql_where=events.c.consumer.is_not(None))
sa.Index(
    "ix_events_described",
    events.c.proxy_id,
    events.c.position,
    postgresql_where=sa.literal_column(
        "type IN ('ProxyRegistered', 'ProxyChanged', 'ProxyRemoved')"
    ),
)
sa.Index(
    "ix_events_health",
    events.c.proxy_id,
    events.c.position,
    postgresql_where=sa.literal_column("type = 'HealthChecked'"),
)
sa.Index(
    "ix_events_pools",
    events.c.position,
    postgresql_where=sa.literal_column("type IN ('PoolRegistered', 'PoolChanged', 'PoolRemoved')"),
)

seals = sa.Table(
    "seals",
    metadata,
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("version", sa.SmallInteger, nullable=False, server_default=sa.literal_column("1")),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("position"),
    sa.Index("ix_seals_seq", "seq"),
    postgresql_partition_by="RANGE (position)",
)


def _tick_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("last_seq", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("first_seq", sa.BigInteger, nullable=False),
        sa.Column("snapshot", Snapshot, nullable=False),
        sa.Column("anchor", sa.BigInteger, nullable=False),
        sa.Column("system_identifier", sa.BigInteger, nullable=False),
        sa.Column("sealed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("root", sa.LargeBinary, nullable=False),
        sa.Column("after_position", sa.BigInteger, nullable=False),
        sa.Column("last_position", sa.BigInteger, nullable=False),
    ]


ticks = sa.Table("ticks", metadata, *_tick_columns(), sa.PrimaryKeyConstraint("last_seq"))
"""The complete ticks.

Events of a tick and of later ticks have positions above ``after_position``. Events of a
tick and of earlier ticks have positions up to ``last_position``.
"""

last_tick = sa.Table(
    "last_tick",
    metadata,
    *_tick_columns(),
    sa.Column("unsealed_after", sa.BigInteger, nullable=False),
    sa.Column("sealer_tx", Xid8, nullable=False),
    sa.Column("appended_upto", sa.BigInteger, nullable=False),
)
"""The last tick, which grows until it is complete, and the state that the next sealing needs."""

tree_nodes = sa.Table(
    "tree_nodes",
    metadata,
    sa.Column("level", sa.SmallInteger, nullable=False, autoincrement=False),
    sa.Column("index", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("level", "index"),
)
"""Hashes of complete subtrees of the log's Merkle tree, see ``pharox.log.tree``.

Those of every eighth level, so far as they were needed, those that a published checkpoint
ends with, and the leaves at the end of what was archived. They follow from the seals."""

partitions = sa.Table(
    "partitions",
    metadata,
    sa.Column("first_position", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("end_position", sa.BigInteger, nullable=False),
    sa.Column("first_seq", sa.BigInteger),
    sa.Column("last_seq", sa.BigInteger),
    sa.Column("first_recorded_at", sa.DateTime(timezone=True)),
    sa.Column("last_recorded_at", sa.DateTime(timezone=True)),
    sa.Column("archived_at", sa.DateTime(timezone=True)),
    sa.Column("archive", sa.Text),
    sa.PrimaryKeyConstraint("first_position"),
)
"""The parts of the log with their bounds. The other columns are set once a part is archived."""

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("seq", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("projections", ARRAY(sa.Text), nullable=False),
    sa.PrimaryKeyConstraint("seq"),
)
snapshot_rows = sa.Table(
    "snapshot_rows",
    metadata,
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("projection", sa.Text, nullable=False),
    sa.Column("row", JSONB, nullable=False),
    sa.Index("ix_snapshot_rows_seq", "seq", "projection"),
)
"""The read models of ``projections`` after event ``seq``: a cache, never the source of truth."""

subscriptions = sa.Table(
    "subscriptions",
    metadata,
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("checkpoint", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("owner", sa.Uuid),
    sa.Column("seen_at", sa.DateTime(timezone=True)),
    sa.PrimaryKeyConstraint("name"),
)
parked_events = sa.Table(
    "parked_events",
    metadata,
    sa.Column("subscription", sa.Text, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("parked_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("retry", sa.Boolean, nullable=False, server_default=sa.literal_column("false")),
    sa.PrimaryKeyConstraint("subscription", "seq"),
    sa.Index("ix_parked_events_key", "subscription", "key", "seq"),
)
"""Events that a subscription's handler failed on. Without an error: events held back behind one."""

fleet_counts = sa.Table(
    "fleet_counts",
    metadata,
    sa.Column("subscription", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("labels", ARRAY(sa.Text), nullable=False),
    sa.Column("value", sa.Double, nullable=False),
    sa.PrimaryKeyConstraint("subscription", "name", "labels"),
)
"""Counters that a subscription keeps, for metrics of the whole fleet."""
