"""A context of a browser through a leased proxy; of Playwright, or of what has its API.

    async with leased_context(manager, browser, "residential") as context:
        page = await context.new_page()

The lease is kept alive while the context is open. What became of documents, and of what scripts
fetched, is reported with its host as target; images, styles and the like say little, and there
are many. A context that is closed, also as its browser was or has crashed, gives its lease back.

Browsers cannot log in to a SOCKS proxy: such a proxy is refused, or passed over with the filters
:data:`FOR_BROWSERS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Unpack, overload

from ..effects import call, call_async, run, run_async
from ..errors import InvalidInputError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.holding import Holding
from ..manager.options import OnLost, PoolOptions
from ..manager.proxy_manager import ProxyManager
from ..models import Lease, LeasedProxy, Proxy, ProxyFilters, ProxyProtocol
from ..models.text import url_of
from ._browser_errors import outcome_of_failure
from ._core import give_back, give_back_async, require

if find_spec("patchright") is None:
    require("playwright", "1.45")

if TYPE_CHECKING:
    from playwright.async_api import Browser as AsyncBrowser
    from playwright.async_api import BrowserContext as AsyncBrowserContext
    from playwright.sync_api import Browser, BrowserContext

CLOSING_S = 15.0
"""How long a context may take to close before its lease is given back nonetheless."""

REPORTED = frozenset({"document", "fetch", "xhr"})
"""The types of resources whose requests are reported."""

_SOCKS = (ProxyProtocol.SOCKS4, ProxyProtocol.SOCKS5)

logger = logging.getLogger("pharox")


def can_log_in(proxy: Proxy | LeasedProxy) -> bool:
    """Return whether a browser can use a proxy: SOCKS with a login it cannot."""
    return proxy.protocol not in _SOCKS or proxy.credentials is None


FOR_BROWSERS = ProxyFilters(predicate=can_log_in)
"""Filters that pass over what a browser cannot use; ``all_of=[FOR_BROWSERS, ...]`` for more."""


def pharox_context(lease: Lease) -> dict[str, Any]:
    """Return the arguments of ``browser.new_context`` that have it go through a leased proxy.

    ``launch`` and ``launch_persistent_context`` take them as well.

    Raises
    ------
    InvalidInputError
        If it is a SOCKS proxy with a login, which no browser can use.
    """
    proxy = lease.proxy
    if not can_log_in(proxy):
        raise InvalidInputError(
            f"browsers cannot log in to a SOCKS proxy, and {proxy.host}:{proxy.port} asks for a "
            "login; lease with filters=pharox.integrations.playwright.FOR_BROWSERS, or through HTTP"
        )
    spelled = {"server": url_of(proxy.protocol, proxy.host, proxy.port)}
    login = proxy.credentials
    if login is not None:
        spelled["username"] = login.user
        spelled["password"] = login.password.get_secret_value()
    return {"proxy": spelled}


@overload
def leased_context(
    manager: AsyncProxyManager,
    browser: AsyncBrowser,
    pool: str,
    *,
    context_options: Mapping[str, Any] | None = None,
    report: bool = True,
    on_lost: OnLost = "cancel",
    **options: Unpack[PoolOptions],
) -> AbstractAsyncContextManager[AsyncBrowserContext]: ...


@overload
def leased_context(
    manager: ProxyManager,
    browser: Browser,
    pool: str,
    *,
    context_options: Mapping[str, Any] | None = None,
    report: bool = True,
    on_lost: OnLost = "cancel",
    **options: Unpack[PoolOptions],
) -> AbstractContextManager[BrowserContext]: ...


def leased_context(
    manager: Any,
    browser: Any,
    pool: str,
    *,
    context_options: Mapping[str, Any] | None = None,
    report: bool = True,
    on_lost: OnLost = "cancel",
    **options: Unpack[PoolOptions],
) -> Any:
    """Open a context of a browser that goes through a leased proxy, for a block.

    It is ``async with`` for an ``AsyncProxyManager`` and a browser of ``async_api``, and ``with``
    for a ``ProxyManager`` and one of ``sync_api``.

    Parameters
    ----------
    manager:
        Who leases.
    browser:
        A browser that runs.
    pool:
        The pool.
    context_options:
        Further arguments of ``browser.new_context``.
    report:
        Whether to report what became of documents and fetches.
    on_lost, options:
        As for the manager's ``pool``. A lease is waited for up to 30 s.

    Raises
    ------
    ProxyUnavailableError
        If nothing was free.
    InvalidInputError
        If the proxy is SOCKS with a login, or the context has a proxy of its own.
    LeaseLostError
        If the lease was lost: a task is cancelled where it waits, a thread is told at the end.
    """
    own = dict(context_options or {})
    if "proxy" in own:
        raise InvalidInputError("the context goes through the leased proxy; leave out its proxy")
    open_ = _open_async if isinstance(manager, AsyncProxyManager) else _open
    handle = manager.pool(pool, on_lost=on_lost, **options)
    return open_(handle, browser, own, report=report)


@asynccontextmanager
async def _open_async(
    handle: Any, browser: Any, own: dict[str, Any], *, report: bool
) -> AsyncIterator[Any]:
    lease = await run_async(handle._leasing(None, {}), call_async)
    holding = Holding(handle._manager, lease, report=report)

    async def release(_: object) -> None:  # It may have been given back already.
        await give_back_async(holding)

    async with handle._manager._held(lease, release, handle.on_lost):
        arguments = own | pharox_context(lease)
        context = await browser.new_context(**arguments)
        returning: set[asyncio.Task[None]] = set()

        def on_close(*_: object) -> None:
            returning.add(asyncio.create_task(_quietly(give_back_async(holding))))

        _listen(context, holding, on_close)
        try:
            yield context
        finally:
            context.remove_listener("close", on_close)
            if returning:
                await asyncio.wait(returning)
            else:
                await _quietly(asyncio.wait_for(context.close(), CLOSING_S))


@contextmanager
def _open(handle: Any, browser: Any, own: dict[str, Any], *, report: bool) -> Iterator[Any]:
    lease = run(handle._leasing(None, {}), call)
    holding = Holding(handle._manager, lease, report=report)
    with handle._manager._held(lease, lambda _: give_back(holding), handle.on_lost):
        arguments = own | pharox_context(lease)
        context = browser.new_context(**arguments)

        def on_close(*_: object) -> None:
            try:
                give_back(holding)
            except Exception:
                logger.exception("pharox.release.failed: lease %s", lease.id)

        _listen(context, holding, on_close)
        try:
            yield context
        finally:
            context.remove_listener("close", on_close)
            try:
                context.close()
            except Exception as error:  # Such as a browser that has gone.
                logger.warning("pharox.context.unclosed: of lease %s: %s", lease.id, error)


async def _quietly(work: Any) -> None:
    """Await work whose failure must not replace what ended the block."""
    try:
        await work
    except Exception as error:
        logger.warning("pharox.context.unclosed: closing it, or its lease: %r", error)


def _listen(context: Any, holding: Holding, on_close: Callable[..., None]) -> None:
    """Have a context's requests reported, and its end acted upon."""

    def on_response(response: Any) -> None:
        if _is_reported(response.request):
            holding.note(response)

    def on_failed(request: Any) -> None:
        outcome = outcome_of_failure(request.failure) if _is_reported(request) else None
        if outcome is not None:
            holding.note(outcome, target=request.url)

    context.on("response", on_response)
    context.on("requestfailed", on_failed)
    context.on("close", on_close)


def _is_reported(request: Any) -> bool:
    return request.resource_type in REPORTED and request.url.startswith(("http:", "https:"))
