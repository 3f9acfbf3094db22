"""Import :class:`InMemoryStorage` from here, as in pharox 0.11.0."""

from .memory import InMemoryStorage

__all__ = ["InMemoryStorage"]
