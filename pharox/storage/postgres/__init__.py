"""The ledger on PostgreSQL, for blocking code and for asyncio."""

from .adapter import PostgresStorage
from .async_adapter import AsyncPostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage"]
