"""Where the ledger is kept: the interface, and the adapter that needs no server."""

from .in_memory import InMemoryStorage
from .interface import AcquireRequest, Acquisition, Ending, IStorage, Return

__all__ = ["AcquireRequest", "Acquisition", "Ending", "IStorage", "InMemoryStorage", "Return"]
