"""Lease and release proxies: the manager, in a blocking and an asyncio form.

``leasing`` has the logic of both. ``proxy_manager`` runs it in the calling thread,
``async_proxy_manager`` awaits it. ``pool_handle`` has handles with a worker's defaults,
``clients`` has HTTP clients that go through leased proxies, ``retrying`` the arguments of the
retries.
"""

from __future__ import annotations

from .async_proxy_manager import AsyncProxyManager
from .proxy_manager import ProxyManager

__all__ = ["AsyncProxyManager", "ProxyManager"]
