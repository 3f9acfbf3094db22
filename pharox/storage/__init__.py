"""The storage interface, and the in-memory adapter, which needs no server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .async_interface import IAsyncStorage
from .interface import IStorage
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

if TYPE_CHECKING:
    from .async_in_memory import AsyncInMemoryStorage
    from .memory import InMemoryStorage

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


def __getattr__(name: str) -> Any:
    """Import the adapters in memory when they are asked for: a ledger on a server needs none."""
    if name == "InMemoryStorage":
        from .memory import InMemoryStorage  # noqa: PLC0415

        return InMemoryStorage
    if name == "AsyncInMemoryStorage":
        from .async_in_memory import AsyncInMemoryStorage  # noqa: PLC0415

        return AsyncInMemoryStorage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
