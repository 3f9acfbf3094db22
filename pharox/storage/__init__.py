"""Where the ledger is kept: the interface, and the adapter that needs no server."""


from .interface import Acquisition, AcquireRequest, Ending, IStorage

__all__ = ["AcquireRequest", "Acquisition", "Ending", "IStorage", "InMemoryStorage"]
