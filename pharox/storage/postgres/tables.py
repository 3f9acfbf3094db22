"""The tables that are neither of the log nor read models.

``proxy_credentials`` is the only table with proxies' secrets, which are encrypted. The log has
no secrets to fold: an event refers to a row by ``credential_id``. When credentials change, a new
row replaces the old one. ``account`` and ``identity`` are keyed fingerprints, by which an import
finds a proxy; see :mod:`pharox.storage.postgres.vault`.

``source_secrets`` has the URLs of sources with their headers, encrypted. ``source_turns`` has who
refreshes which source now, and how its last answer is told from the next; see
:mod:`pharox.storage.postgres.sources`.

``waiting_processes`` and ``waiting_tickets`` are the queues of those who wait for a proxy, which
only functions of the schema use; see :mod:`pharox.storage.postgres.waiting`.
"""

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from projections.base import metadata

proxy_credentials = Table(
    "proxy_credentials",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("pool_id", Uuid, nullable=False),
    Column("proxy_id", Uuid, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    Column("account", LargeBinary, nullable=False),
    Column("identity", LargeBinary, nullable=False),
    PrimaryKeyConstraint("proxy_id", "id", "pool_id"),
    # The index needs no pool: an account's fingerprint covers its pool.
    Index("ix_proxy_credentials_identity", "account", "identity"),
)

source_secrets = Table(
    "source_secrets",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("source_id", Uuid, nullable=False),
    Column("secret", LargeBinary, nullable=False),
    PrimaryKeyConstraint("id"),
)

source_turns = Table(
    "source_turns",
    metadata,
    Column("source_id", Uuid, nullable=False),
    Column("holder", Uuid),
    Column("held_until", DateTime(timezone=True)),
    Column("checked_at", DateTime(timezone=True)),
    Column("succeeded_at", DateTime(timezone=True)),
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("secret_id", Uuid),
    Column("etag", Text),
    Column("last_modified", Text),
    Column("owned", BigInteger),
    PrimaryKeyConstraint("source_id"),
)

waiting_processes = Table(
    "waiting_processes",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False),
    PrimaryKeyConstraint("id"),
)

waiting_tickets = Table(
    "waiting_tickets",
    metadata,
    Column("pool_id", Uuid, nullable=False),
    Column("round", BigInteger, nullable=False),
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("process_id", Uuid, nullable=False),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("consumer", Text, nullable=False),
    Column("selector", Text, nullable=False),
    Column("condition", Text),
    Column("arguments", JSONB),
    Column("details", JSONB),
    Column("needs", Integer, nullable=False),
    Column("is_distinct", Boolean, nullable=False),
    Column("lease_ids", ARRAY(Uuid), nullable=False),
    Column("own_ids", Boolean, nullable=False),
    Column("duration", Double, nullable=False),
    Column("actor", Text),
    Column("correlation_id", Text),
    Column("looks", Boolean, nullable=False),
    PrimaryKeyConstraint("pool_id", "round", "number"),
    ForeignKeyConstraint(
        ["process_id"],
        ["pharox.waiting_processes.id"],
        name="fk_waiting_tickets_process_id",
        ondelete="CASCADE",
    ),
    Index("uq_waiting_tickets_lease", text("(lease_ids[1])"), unique=True),
    Index("ix_waiting_tickets_consumer", "pool_id", "consumer", "round"),
    Index("ix_waiting_tickets_process", "process_id"),
)
