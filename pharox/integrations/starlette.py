"""A manager for as long as an application of Starlette (or FastAPI) runs, and 503 for a miss.

    app = Starlette(routes, lifespan=pharox_lifespan(), exception_handlers=exception_handlers)

    async def page(request):
        async with request.state.pharox.pool("residential").lease() as lease:
            ...

The lifespan connects when the server starts, in each of its workers, and closes the connections
when it ends. A database that is not there fails the start, and not the first request.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ..connecting import connect_async
from ..errors import InvalidInputError, LeaseLostError, ProxyUnavailableError, QueueFullError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..models import MissReason
from ._core import require

require("starlette", "0.40")

from starlette.exceptions import HTTPException  # noqa: E402 - after it is known to be there
from starlette.requests import HTTPConnection  # noqa: E402
from starlette.responses import JSONResponse, Response  # noqa: E402

STATE = "pharox"
"""The name of the manager in the application's state: ``request.state.pharox``."""

UNAVAILABLE = (ProxyUnavailableError, QueueFullError, LeaseLostError)
"""What 503 is the answer for: it may pass, and is not the fault of who asked."""

_UNKNOWN_S = 30
"""When to ask again if nobody knows when a proxy is free."""

logger = logging.getLogger("pharox")


def pharox_lifespan(
    url: str | None = None, *, manager: AsyncProxyManager | None = None, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, AsyncProxyManager]]]:
    """Return a lifespan that has a manager in ``request.state.pharox``.

    It is entered within a lifespan of your own so::

        async with pharox_lifespan()(app) as state:
            yield {**state, "mine": ...}

    Parameters
    ----------
    url, options:
        The ledger, and further options, of :func:`pharox.connect_async`.
    manager:
        One of your own in place of a new one. It is yours to close its storage.

    Raises
    ------
    InvalidInputError
        If the manager is not one for coroutines.
    """
    _check_manager(manager)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[dict[str, AsyncProxyManager]]:
        if manager is not None:
            yield {STATE: manager}
            await manager.flush_reports()
            return
        storage = await connect_async(url, **options)
        try:
            await storage.ping()
            yield {STATE: AsyncProxyManager(storage)}
        finally:
            await storage.close()

    return lifespan


def manager_of(connection: HTTPConnection) -> AsyncProxyManager:
    """Return the manager that the lifespan has put into the state.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    found = getattr(connection.state, STATE, None)
    if not isinstance(found, AsyncProxyManager):
        raise InvalidInputError(
            "the application has no manager: give it lifespan=pharox_lifespan(), or a manager here"
        )
    return found


def refusal(error: Exception) -> HTTPException:
    """Return 503 for an error of :data:`UNAVAILABLE`, with ``Retry-After`` if waiting may help.

    The answer has the reason of a miss, but neither pool nor lease: these are in the log.
    """
    if isinstance(error, LeaseLostError):
        logger.warning("pharox.lease.lost: while a request was served: %s", error)
        return HTTPException(503, "The proxy was lost. Try again.", {"Retry-After": "1"})
    reason = getattr(error, "reason", None)
    why = f": {reason}" if reason else ""
    headers = {}
    if reason is None or MissReason(reason).may_pass:
        seconds = getattr(error, "retry_after_seconds", None)
        after_s = _UNKNOWN_S if seconds is None else max(1, math.ceil(seconds))
        headers["Retry-After"] = str(after_s)
    else:  # Somebody has to add a pool, or proxies.
        logger.error("pharox.request.refused: %s", error)
    return HTTPException(503, f"No proxy is free{why}.", headers)


async def answer_refusal(_: Any, error: Exception) -> Response:
    """Answer a request that raised an error of :data:`UNAVAILABLE`; an exception handler."""
    refused = refusal(error)
    return JSONResponse({"detail": refused.detail}, refused.status_code, refused.headers)


exception_handlers: dict[Any, Callable[[Any, Exception], Any]] = dict.fromkeys(
    UNAVAILABLE, answer_refusal
)
"""What an application is given to answer misses in its own code with 503."""


def _check_manager(manager: object) -> None:
    if manager is not None and not isinstance(manager, AsyncProxyManager):
        raise InvalidInputError("the manager must be an AsyncProxyManager", value=manager)
