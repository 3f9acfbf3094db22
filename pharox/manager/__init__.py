"""Lease proxies and give them back: the manager, for code that blocks and code that awaits.

``leasing`` decides what a manager does, ``proxy_manager`` does it in the calling thread and
``async_proxy_manager`` by awaiting; ``clients`` are HTTP clients over leased proxies, and
``retrying`` holds the arguments of the retries.
"""

from __future__ import annotations

from .async_proxy_manager import AsyncProxyManager
from .proxy_manager import ProxyManager

__all__ = ["AsyncProxyManager", "ProxyManager"]
