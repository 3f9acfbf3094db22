"""Close the connections of an engine: those in its pool, and those that are lent as they come back.

``dispose()`` gives an engine another pool and forgets the one before, to which what is lent then
returns, open until Python happens to collect it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, Pool, event
from sqlalchemy.pool import ConnectionPoolEntry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine  # with its ORM, which takes a while to import


def dispose(engine: Engine) -> None:
    """Close an engine's connections. It opens new ones for whoever asks."""
    _close_what_returns_to(engine.pool)
    engine.dispose()


async def dispose_async(engine: AsyncEngine) -> None:
    """Close an engine's connections, as :func:`dispose` does."""
    _close_what_returns_to(engine.sync_engine.pool)
    await engine.dispose()


def _close_what_returns_to(pool: Pool) -> None:
    event.listen(pool, "checkin", _close)


def _close(_connection: Any, entry: ConnectionPoolEntry) -> None:
    entry.close()
