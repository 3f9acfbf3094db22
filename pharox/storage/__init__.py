"""The storage interface, and the in-memory adapter, which needs no server."""

from .async_in_memory import AsyncInMemoryStorage
from .async_interface import IAsyncStorage
from .interface import IStorage
from .memory import InMemoryStorage
from .requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    EndedLease,
    ReleaseRequest,
    ReleaseResult,
    RenewRequest,
    RevokeRequest,
    SetAcquisition,
)

__all__ = [
    "AcquireRequest",
    "AcquireSetRequest",
    "Acquisition",
    "AsyncInMemoryStorage",
    "EndedLease",
    "IAsyncStorage",
    "IStorage",
    "InMemoryStorage",
    "ReleaseRequest",
    "ReleaseResult",
    "RenewRequest",
    "RevokeRequest",
    "SetAcquisition",
]
