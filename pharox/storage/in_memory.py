"""The name under which :class:`InMemoryStorage` is imported."""

from .memory import InMemoryStorage

__all__ = ["InMemoryStorage"]
