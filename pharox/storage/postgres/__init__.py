"""The ledger on PostgreSQL, for code that blocks and for code that awaits."""

from .adapter import PostgresStorage
from .async_adapter import AsyncPostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
