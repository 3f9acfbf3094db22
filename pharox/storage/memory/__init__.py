"""The in-memory ledger. Its modules are named as those of the PostgreSQL ledger."""

from .storage import InMemoryStorage

__all__ = ["InMemoryStorage"]
