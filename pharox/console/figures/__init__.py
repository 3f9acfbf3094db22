"""What the console's pages show beside what every storage answers.

Each figure has two meanings that tests hold together: :mod:`.plain` says in Python what it is, for
any storage, and :mod:`.postgres` asks PostgreSQL for it without reading more than is shown.
"""

from __future__ import annotations

from typing import Any

from ..shares import Share
from .plain import PlainFigures
from .shapes import Figures, PoolFigures, SubscriptionFigures

__all__ = ["Figures", "PoolFigures", "Share", "SubscriptionFigures", "figures_of"]


def figures_of(storage: Any) -> Figures:
    """Return the figures of a storage."""
    try:
        from ...storage.postgres import PostgresStorage  # noqa: PLC0415 - it comes with an extra
    except ImportError:
        return PlainFigures(storage)
    if isinstance(storage, PostgresStorage):
        from .postgres import PostgresFigures  # noqa: PLC0415

        return PostgresFigures(storage)
    return PlainFigures(storage)
