"""Where the ledger is kept: the interface, and the adapter that needs no server."""

from .async_in_memory import AsyncInMemoryStorage
from .async_interface import IAsyncStorage
from .in_memory import InMemoryStorage
from .interface import IStorage
from .requests import AcquireRequest, Acquisition, EndedLease, ReleaseResult

__all__ = [
    "AcquireRequest",
    "Acquisition",
    "AsyncInMemoryStorage",
    "EndedLease",
    "IAsyncStorage",
    "IStorage",
    "InMemoryStorage",
    "ReleaseResult",
]
