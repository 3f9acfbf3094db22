"""aiohttp through a leased proxy: a session whose connector belongs to the lease.

The session is aiohttp's own. What is its connector refuses requests once the lease has ended, and
what traces it reports responses and errors. With SOCKS the proxy resolves names.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Unpack
from weakref import WeakSet

from ..errors import InvalidInputError, LeaseEndedError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.clients import SOCKS, socks_text
from ..manager.holding import Holding
from ..manager.options import PoolOptions
from ..models import LeasedProxy
from ..models.text import url_of
from ._core import give_back_async, open_async, require

require("aiohttp", "3.11")
require("aiohttp-socks", "0.10", extra="aiohttp")

import aiohttp  # noqa: E402 - after what says which version is needed
from aiohttp_socks import (  # noqa: E402
    ProxyConnectionError,
    ProxyConnector,
    ProxyError,
    ProxyTimeoutError,
)
from multidict import CIMultiDict  # noqa: E402 - it comes with aiohttp

_OUR_OWN = ("connector", "connector_owner", "proxy", "proxy_auth", "response_class", "trust_env")
_CALLERS_OWN = (aiohttp.InvalidURL, aiohttp.TooManyRedirects)
"""What says nothing of the proxy; the redirects are reported by themselves."""


@asynccontextmanager
async def pharox_session(
    manager: AsyncProxyManager,
    pool: str,
    *,
    report: bool = True,
    session_options: Mapping[str, Any] | None = None,
    connector_options: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> AsyncIterator[aiohttp.ClientSession]:
    """Lease a proxy, and open a session of aiohttp that goes through it.

    Parameters
    ----------
    manager:
        Who leases.
    pool:
        The pool.
    report:
        Whether each response and each failure is reported in the background, with the host as
        target. A redirect counts as well.
    session_options:
        Further arguments of ``aiohttp.ClientSession``, such as ``timeout``.
    connector_options:
        Further arguments of its connector, such as ``limit``.
    options:
        As for :meth:`pharox.AsyncProxyManager.pool`: the lease is kept alive, and waited for up to
        30 seconds.

    Yields
    ------
    aiohttp.ClientSession
        The session; ``session.connector.lease`` is the lease. A request after the lease has ended
        raises :class:`pharox.LeaseEndedError`.

    Raises
    ------
    ProxyUnavailableError
        If nothing was free; ``reason`` says why.
    InvalidInputError
        If ``session_options`` choose the way.
    """
    chosen = dict(session_options or {})
    if own := [name for name in _OUR_OWN if name in chosen]:
        raise InvalidInputError(
            f"requests go through the leased proxy; session_options cannot have {', '.join(own)}"
        )
    make = partial(_session, options=chosen, of_connector=dict(connector_options or {}))
    session, holding = await open_async(manager, pool, make, report=report, **options)
    error: BaseException | None = None
    try:
        yield session
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            await session.close()
        finally:
            await give_back_async(holding, error)


def _session(
    holding: Holding, options: dict[str, Any], of_connector: dict[str, Any]
) -> tuple[aiohttp.ClientSession, Holding]:
    """Return a session that goes through the proxy of a lease."""
    traces = [*(options.pop("trace_configs", None) or []), _reporting(holding)]
    connector = _connector(holding, of_connector)
    if isinstance(connector, _TcpConnector):
        options["proxy"] = _address(holding.lease.proxy)
    session = aiohttp.ClientSession(
        connector=connector, trace_configs=traces, response_class=_Response, **options
    )
    return session, holding


def _connector(holding: Holding, options: dict[str, Any]) -> _TcpConnector | _SocksConnector:
    proxy, login = holding.lease.proxy, holding.lease.proxy.credentials
    kind = SOCKS.get(proxy.protocol)
    if kind is None:
        return _TcpConnector(holding, **options)
    return _SocksConnector(
        holding,
        host=proxy.host,
        port=proxy.port,
        proxy_type=kind,
        username=socks_text(login.user if login else None),
        password=socks_text(login.password.get_secret_value() if login else None),
        rdns=True,
        **options,
    )


def _address(proxy: LeasedProxy) -> str:
    """Return the URL of a proxy without its credentials."""
    return url_of(proxy.protocol, proxy.host, proxy.port)


class _LeasedConnector(aiohttp.TCPConnector):
    """A connector that belongs to a lease: no connection after its end."""

    def __init__(self, holding: Holding, **options: Any) -> None:
        super().__init__(**options)
        self._holding, self.lease = holding, holding.lease
        self._lent: WeakSet[Any] = WeakSet()
        holding.call_when_lost(self._on_lost)

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """Lend a connection for a request, unless the lease has ended."""
        self._holding.check()
        if not self._goes_through(req.proxy):
            raise InvalidInputError("requests go through the leased proxy; leave proxy out")
        connection = await super().connect(req, traces, timeout)
        self._lent.add(connection)
        try:
            self._holding.check()  # It may have been lost in the meantime.
        except LeaseEndedError:
            connection.close()
            raise
        return connection

    def _goes_through(self, proxy: Any) -> bool:
        return proxy is None

    def _on_lost(self, *_: object) -> None:
        """End what is in flight: whoever waits for an answer has an error at once."""
        for connection in list(self._lent):
            if connection.transport is not None:
                connection.transport.abort()


class _TcpConnector(_LeasedConnector):
    """Through an HTTP proxy, which the session names in each request. It logs in with UTF-8."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        login = self.lease.proxy.credentials
        if login is not None:
            text = f"{login.user}:{login.password.get_secret_value()}"
            header = {"Proxy-Authorization": f"Basic {b64encode(text.encode()).decode()}"}
            if req.is_ssl():
                req.proxy_headers = CIMultiDict(header)  # of the CONNECT
            else:
                req.headers.update(header)
        return await super().connect(req, traces, timeout)

    def _goes_through(self, proxy: Any) -> bool:
        return str(proxy).rstrip("/") == _address(self.lease.proxy)


class _SocksConnector(_LeasedConnector, ProxyConnector):
    """Through a SOCKS proxy, of which aiohttp knows nothing. Its errors are those of aiohttp."""

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        try:
            return await super().connect(req, traces, timeout)
        except ProxyTimeoutError as error:
            raise aiohttp.ServerTimeoutError(str(error)) from error
        except (ProxyConnectionError, ProxyError) as error:
            raise aiohttp.ClientConnectionError(str(error)) from error


class _Response(aiohttp.ClientResponse):
    """A response that reports if it breaks off in its body."""

    _holding: Holding | None = None  # until it was answered
    _is_over = False

    async def read(self) -> bytes:
        was_over = self._is_over
        try:
            return await super().read()
        except Exception as error:
            if self._holding is not None and self._holding.is_lost:
                raise self._holding.lost_error() from error
            if not was_over and self.content.exception() is None:  # else it is noted
                self._note(error)
            raise

    def release(self) -> Any:
        self._end()
        return super().release()

    def close(self) -> None:
        self._end()
        super().close()

    def _end(self) -> None:
        """Report the error of a body, once, before aiohttp sets one of its own."""
        error = None if self.content is None else self.content.exception()
        if error is not None and not self._is_over:
            self._note(error)
        self._is_over = True

    def _note(self, error: BaseException) -> None:
        if self._holding is not None:
            self._holding.note(error, target=self.url.host)


def _reporting(holding: Holding) -> aiohttp.TraceConfig:
    """Return what reports the responses and errors of a session."""

    async def answered(_session: Any, _context: Any, params: Any) -> None:
        holding.note(params.response, target=params.response.url.host)
        params.response._holding = holding

    async def failed(_session: Any, _context: Any, params: Any) -> None:
        error = params.exception
        is_ours = isinstance(error, LeaseEndedError | asyncio.CancelledError)
        if holding.is_lost and not is_ours:
            raise holding.lost_error() from error
        if not isinstance(error, _CALLERS_OWN):
            holding.note(_answer_of(error) or error, target=params.url.host)

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    trace.on_request_redirect.append(answered)
    trace.on_request_exception.append(failed)
    return trace


def _answer_of(error: BaseException) -> Any:
    """Return the answer for whose status ``raise_for_status`` raised an error; None if none did."""
    if type(error) is not aiohttp.ClientResponseError or error.__cause__ is not None:
        return None
    return SimpleNamespace(
        status=error.status, headers=error.headers or {}, url=error.request_info.real_url
    )
