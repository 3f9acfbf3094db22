"""The ledger on PostgreSQL."""

from .adapter import PostgresStorage

__all__ = ["PostgresStorage"]
