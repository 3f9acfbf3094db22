"""A lease, or a client that goes by one, for an endpoint of FastAPI.

    LeaseDep = Annotated[Lease, Depends(leased("residential"))]
    app = FastAPI(lifespan=pharox_lifespan())

    @app.get("/page")
    async def page(lease: LeaseDep): ...

The proxy is given back when the endpoint's function ends, before its answer is sent: a slow reader
holds none. A miss is answered with 503 and ``Retry-After``. If the lease is lost, an endpoint with
``await`` is cancelled there and answered with 503 as well; a function in a thread goes on, and
finds ``lease.is_lost``.
"""
# FastAPI reads annotations of nested functions, which must not be text: no __future__ here.

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Annotated, Any, Literal, Unpack

from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.clients import AsyncLeasedClient
from ..manager.options import OnLost, PoolOptions
from ..manager.pool_handle import AsyncPoolHandle
from ..models import Lease
from ._core import require

require("fastapi", "0.121")

from fastapi import Depends  # noqa: E402 - after it is known to be there
from starlette.requests import HTTPConnection  # noqa: E402

from .starlette import (  # noqa: E402
    UNAVAILABLE,
    _check_manager,
    exception_handlers,
    manager_of,
    pharox_lifespan,
    refusal,
)

__all__ = ["exception_handlers", "leased", "leased_client", "pharox_lifespan"]

Scope = Literal["function", "request"]
"""When a dependency is given back: as the function ends, or after the answer was sent."""

OptionsFor = Callable[[HTTPConnection], PoolOptions]
"""What differs for a request, such as its target or its sticky session."""


def leased(
    pool: str,
    *,
    scope: Scope = "function",
    manager: AsyncProxyManager | None = None,
    on_lost: OnLost = "cancel",
    options_for: OptionsFor | None = None,
    **options: Unpack[PoolOptions],
) -> Callable[..., Any]:
    """Return a dependency that is a lease: it is kept alive, and waited for up to 30 s.

    Parameters
    ----------
    pool:
        The pool.
    scope:
        Until when it is held: "function", or "request" for an answer that is streamed.
    manager:
        Who leases; the one of :func:`pharox_lifespan` if None.
    on_lost, options:
        As for :meth:`pharox.AsyncProxyManager.pool`.
    options_for:
        A function of the request that returns options which differ for it.

    Raises
    ------
    InvalidInputError
        If an option is not valid.
    """
    handle_of = _handles(pool, manager, on_lost, options)

    async def hold(connection: HTTPConnection) -> AsyncIterator[Lease]:
        try:
            chosen = options_for(connection) if options_for else {}
            async with handle_of(connection).lease(**chosen) as lease:
                yield lease
        except UNAVAILABLE as error:
            raise refusal(error) from error

    # Depends(leased(...)) names no scope. Only what this depends on can.
    async def lease(held: Annotated[Lease, Depends(hold, scope=scope)]) -> Lease:
        return held

    return lease


def leased_client(
    pool: str,
    *,
    scope: Scope = "function",
    manager: AsyncProxyManager | None = None,
    client_options: Mapping[str, Any] | None = None,
    report: bool = True,
    options_for: OptionsFor | None = None,
    **options: Unpack[PoolOptions],
) -> Callable[..., Any]:
    """Return a dependency that is a client of httpx through a leased proxy.

    It reports what became of each request, and is closed with its lease.

    Parameters
    ----------
    pool, scope, manager, options_for, options:
        As for :func:`leased`.
    client_options, report:
        As for :meth:`pharox.AsyncProxyManager.client`.
    """
    handle_of = _handles(pool, manager, "tell", options)

    async def hold(connection: HTTPConnection) -> AsyncIterator[AsyncLeasedClient]:
        try:
            chosen = options_for(connection) if options_for else {}
            opening = handle_of(connection).client(
                client_options=client_options, report=report, **chosen
            )
            async with opening as client:
                yield client
        except UNAVAILABLE as error:
            raise refusal(error) from error

    async def client(
        held: Annotated[AsyncLeasedClient, Depends(hold, scope=scope)],
    ) -> AsyncLeasedClient:
        return held

    return client


def _handles(
    pool: str, manager: AsyncProxyManager | None, on_lost: OnLost, options: PoolOptions
) -> Callable[[HTTPConnection], AsyncPoolHandle]:
    """Return what has the pool's handle for a request; one of a known manager is checked now."""
    _check_manager(manager)
    if manager is not None:
        handle = manager.pool(pool, on_lost=on_lost, **options)
        return lambda _: handle
    return lambda connection: manager_of(connection).pool(pool, on_lost=on_lost, **options)
