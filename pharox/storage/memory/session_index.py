"""The in-memory index of sticky sessions: which keys are bound to a proxy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from projections import SessionRow


class SessionIndex:
    """The keys that were bound to each proxy, as far as they still are in the rows.

    Parameters
    ----------
    rows:
        The read model, by pool and key.
    """

    def __init__(self, rows: dict[Any, SessionRow]) -> None:
        self._rows = rows
        self._keys: dict[tuple[UUID, UUID], set[str]] = {}

    def place(self, row: SessionRow) -> None:
        """Add a binding."""
        self._keys.setdefault((row.pool_id, row.proxy_id), set()).add(row.key)

    def of(self, pool_id: UUID, proxy_id: UUID) -> Iterator[SessionRow]:
        """Yield the bindings to a proxy, also those that are over."""
        keys = self._keys.get((pool_id, proxy_id), set())
        for key in list(keys):
            row = self._rows.get((pool_id, key))
            if row is not None and row.proxy_id == proxy_id:
                yield row
            else:
                keys.discard(key)
