"""Acquire for a caller of another process, who hears why there is nothing.

The API leases for others: it needs to know whether an acquisition is new, so that it can take it
back, and when a miss may pass.
"""

from __future__ import annotations

from typing import Any

from ..effects import Calls, call_async, run_async
from ..storage.requests import Acquisition, SetAcquisition
from .async_proxy_manager import AsyncProxyManager
from .leasing import AcquireArguments, AcquireSetArguments


async def grant_lease(manager: AsyncProxyManager, arguments: AcquireArguments) -> Acquisition:
    """Lease a proxy, or raise :class:`ProxyUnavailableError` with when to ask again."""

    def program() -> Calls[Acquisition]:
        found: Acquisition = yield from manager._acquiring(arguments)
        if found.lease is None:
            raise (yield from manager._unavailable(arguments, found))
        return found

    return await run_async(program(), call_async)


async def grant_set(manager: AsyncProxyManager, arguments: AcquireSetArguments) -> SetAcquisition:
    """Lease several proxies, or raise :class:`ProxyUnavailableError` with when to ask again."""

    def program() -> Calls[Any]:
        found: SetAcquisition = yield from manager._acquiring_set(arguments)
        if not found.acquisitions:
            raise (yield from manager._unavailable(arguments, found))
        return found

    answer: SetAcquisition = await run_async(program(), call_async)
    return answer
