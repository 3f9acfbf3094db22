"""proxy_credentials: the one place where a proxy's secrets are kept, encrypted.

It is no read model: nothing in the log could fold to it. An event refers to a
row by ``credential_id``; when credentials change, a new row replaces the old.
``account`` and ``identity`` are keyed fingerprints, by which an import recognises a
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
    # An account is of one pool: its fingerprint says which.
    Index("ix_proxy_credentials_identity", "account", "identity"),
)
