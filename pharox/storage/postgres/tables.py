"""proxy_credentials: the only table with proxies' secrets, which are encrypted.

It is not a read model, because the log has no secrets to fold. An event refers to a
row by ``credential_id``. When credentials change, a new row replaces the old one.
``account`` and ``identity`` are keyed fingerprints, by which an import finds a
proxy; see :mod:`pharox.storage.postgres.vault`.
"""

from sqlalchemy import Column, Index, LargeBinary, PrimaryKeyConstraint, Table, Uuid

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
