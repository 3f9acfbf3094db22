"""The ledger in memory: the rooms have the names of those of the ledger in PostgreSQL."""

from .storage import InMemoryStorage

__all__ = ["InMemoryStorage"]
