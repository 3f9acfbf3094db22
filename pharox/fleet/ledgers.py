"""One ledger of a fleet: its name, its storage, and the manager that leases from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..connecting import connect, connect_async
from ..errors import DatabaseError
from ..manager import AsyncProxyManager, ProxyManager
from ..manager.leasing import Leasing
from .settings import FleetSettings, LedgerSettings

S_co = TypeVar("S_co", covariant=True)
M_co = TypeVar("M_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Ledger(Generic[S_co, M_co]):
    """A ledger of a fleet.

    Attributes
    ----------
    name:
        Its name in the fleet's settings.
    storage:
        Where it is kept.
    manager:
        What leases of its pools; the fleet's manager calls it.
    """

    name: str
    storage: S_co = field(repr=False)
    manager: M_co = field(repr=False)


AnyLedger = Ledger[Any, Leasing[Any]]


def open_ledger(name: str, settings: FleetSettings, **options: Any) -> Ledger[Any, ProxyManager]:
    """Return a ledger for threads. Nothing is connected yet."""
    storage = open_storage(name, settings)
    return Ledger(name, storage, ProxyManager(storage, **options))


def open_storage(name: str, settings: FleetSettings) -> Any:
    """Return the storage of a ledger for threads. Nothing is connected yet."""
    own = settings.ledgers[name]
    if own.storage is not None:
        return own.storage
    return connect(_url(name, own, settings), **_options(own, settings))


async def open_ledger_async(
    name: str, settings: FleetSettings, **options: Any
) -> Ledger[Any, AsyncProxyManager]:
    """Return a ledger for the running event loop. Nothing is connected yet."""
    storage = await open_storage_async(name, settings)
    return Ledger(name, storage, AsyncProxyManager(storage, **options))


async def open_storage_async(name: str, settings: FleetSettings) -> Any:
    """Return the storage of a ledger for the running event loop. Nothing is connected yet."""
    own = settings.ledgers[name]
    if own.storage is not None:
        return own.storage
    return await connect_async(_url(name, own, settings), **_options(own, settings))


def _options(own: LedgerSettings, settings: FleetSettings) -> dict[str, Any]:
    return {"schema": own.schema_name, "answer_timeout_s": settings.answer_timeout_s}


def _url(name: str, own: LedgerSettings, settings: FleetSettings) -> str:
    """Return the URL, with the fleet's time to connect if it says none."""
    url = own.database_url(name)
    if "connect_timeout=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}connect_timeout={settings.connect_timeout_s}"


def in_ledger(error: Exception, ledger: str) -> None:
    """Have an error of a database say which ledger it is about."""
    if isinstance(error, DatabaseError) and not hasattr(error, "ledger"):
        error.data["ledger"] = ledger
        error.ledger = ledger  # type: ignore[attr-defined]
        error.add_note(f"This is about the ledger {ledger!r} of the fleet.")
