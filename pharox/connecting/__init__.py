"""Connect to a ledger: by URL, or on the embedded server that pharox starts itself."""

from __future__ import annotations

from .url import connect, connect_async

__all__ = ["connect", "connect_async"]
