"""The ledger on PostgreSQL, for blocking code and for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .adapter import PostgresStorage

if TYPE_CHECKING:
    from .async_adapter import AsyncPostgresStorage

__all__ = ["AsyncPostgresStorage", "PostgresStorage"]


def __getattr__(name: str) -> Any:
    """Import what is for asyncio when it is asked for: SQLAlchemy's part of it brings its ORM."""
    if name != "AsyncPostgresStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .async_adapter import AsyncPostgresStorage  # noqa: PLC0415

    return AsyncPostgresStorage
