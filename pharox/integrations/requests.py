"""requests through a leased proxy: a session that reports, and gives its lease back when closed.

Every request goes through the leased proxy, whatever the environment says of proxies, and with
SOCKS the proxy resolves names. If the lease is lost, what is in flight ends and nothing more is
sent.
"""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Unpack
from urllib.parse import urlsplit
from weakref import WeakSet

from ..errors import InvalidInputError
from ..manager.holding import Holding
from ..manager.options import PoolOptions
from ..manager.proxy_manager import ProxyManager
from ..models import MOST_BODY_BYTES, LeasedProxy, ProxyProtocol
from ._core import give_back, open_now, require, url_resolving_there

require("requests", "2.32.2")

import requests  # noqa: E402 - after what says which version is needed
from requests.adapters import BaseAdapter, HTTPAdapter  # noqa: E402


def session(
    manager: ProxyManager, pool: str, *, report: bool = True, **options: Unpack[PoolOptions]
) -> LeasedSession:
    """Lease a proxy and return a session of requests that goes through it.

    Parameters
    ----------
    manager:
        Who leases.
    pool:
        The pool.
    report:
        Whether each response and each failure is reported in the background, with the host as
        target. A redirect counts as well.
    options:
        As for :meth:`pharox.ProxyManager.pool`: the lease is kept alive, and waited for up to 30
        seconds.

    Returns
    -------
    LeasedSession
        A ``requests.Session``. Close it, or use it in a ``with`` block, to give the lease back.

    Raises
    ------
    ProxyUnavailableError
        If nothing was free; ``reason`` says why.
    """
    return open_now(manager, pool, LeasedSession, report=report, **options)


class LeasedSession(requests.Session):
    """A ``requests.Session`` whose requests go through a leased proxy.

    Made by :func:`session`. A request after the lease has ended raises
    :class:`pharox.LeaseEndedError`. Adapters that are mounted go through the proxy as well; what
    they have in flight is not ended if the lease is lost.

    Attributes
    ----------
    lease:
        What is given back when the session is closed.
    """

    def __init__(self, holding: Holding) -> None:
        self._holding, self.lease = holding, holding.lease
        self._connected: WeakSet[socket.socket] = WeakSet()
        _check_login(self.lease.proxy)
        super().__init__()
        for prefix in ("https://", "http://"):
            self.mount(prefix, _Adapter(self))
        holding.call_when_lost(self._on_lost)

    def request(self, method: Any, url: Any, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request, as ``requests.Session.request`` does.

        Raises
        ------
        InvalidInputError
            If ``proxies`` are given.
        """
        if options.get("proxies"):
            raise InvalidInputError("requests go through the leased proxy; leave proxies out")
        return super().request(method, url, *arguments, **options)

    def get_adapter(self, url: str) -> BaseAdapter:
        """Return what sends a request to a URL through the leased proxy."""
        return _Leased(self._holding, super().get_adapter(url))

    def close(self) -> None:
        """Close the connections and give the lease back."""
        self._close(None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._close(exc_value)

    def _close(self, error: BaseException | None) -> None:
        try:
            super().close()
        finally:
            give_back(self._holding, error)

    def _on_lost(self, *_: object) -> None:
        """Shut connections down: threads that wait for an answer have an error at once."""
        for each in list(self._connected):
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)


class _Leased(BaseAdapter):
    """Sends with an adapter, but through the leased proxy, and reports what comes of it."""

    def __init__(self, holding: Holding, adapter: BaseAdapter) -> None:
        super().__init__()
        self._holding, self._adapter = holding, adapter

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # type: ignore[override]
        self._holding.check()
        request.headers.pop("Proxy-Authorization", None)  # That of the environment's proxy.
        url = url_resolving_there(self._holding.lease.proxy)
        options["proxies"] = {"http": url, "https": url}
        sent = _Request(self._holding, request)
        with sent.reporting():
            response = self._adapter.send(request, **options)
        sent.answered(response, is_stream=bool(options.get("stream")))
        return response

    def close(self) -> None:
        self._adapter.close()


class _Request:
    """A request that was sent, and what is reported of it."""

    def __init__(self, holding: Holding, request: requests.PreparedRequest) -> None:
        self._holding, self._target = holding, urlsplit(request.url or "").hostname
        self._unread: requests.Response | None = None

    def answered(self, response: requests.Response, *, is_stream: bool) -> None:
        """Report a response, and again if its body breaks off.

        If it is judged by its body as well, it is reported once that was read; a stream is not.
        """
        if type(response) is requests.Response:
            response.__class__ = _Response
            response._request_of_it = self  # type: ignore[attr-defined]
            if not is_stream and self._holding.needs_body(self._target):
                self._unread = response
                return
        self._holding.note(response, target=self._target)

    def watched(self, parts: Iterator[Any], close: Callable[[], None]) -> Iterator[Any]:
        """Yield the parts of a body until its end, or the lease's, which closes it."""
        beginning = bytearray()
        with self.reporting():
            try:
                for part in parts:
                    if self._holding.is_lost:
                        close()
                        raise self._holding.lost_error()
                    if self._unread is not None:
                        beginning += part[: MOST_BODY_BYTES - len(beginning)]
                    yield part
            finally:
                self._judge(bytes(beginning))

    def _judge(self, body: bytes) -> None:
        """Report a response by its body, unless it was reported before."""
        response, self._unread = self._unread, None
        if response is not None:
            self._holding.note(response, target=self._target, body=body)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report a failure; of one that comes of a lost lease, raise that instead."""
        try:
            yield
        except Exception as error:
            if self._holding.is_lost:
                raise self._holding.lost_error() from error
            self._holding.note(error, target=self._target)
            raise


class _Response(requests.Response):
    """A response that reports if it breaks off in its body."""

    _request_of_it: _Request | None = None  # None of one that was pickled

    def iter_content(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        parts = super().iter_content(*arguments, **options)
        sent = self._request_of_it
        return parts if sent is None else sent.watched(parts, self.close)


class _Adapter(HTTPAdapter):
    """The adapter of a leased session, which knows its connections, and logs in with UTF-8."""

    def __init__(self, session: LeasedSession) -> None:
        self._connected, self._holding = session._connected, session._holding
        super().__init__()

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        """Return a pool of connections that are known here."""
        pool = super().get_connection_with_tls_context(*arguments, **options)
        if not issubclass(pool.ConnectionCls, _Known):
            pool.ConnectionCls = _known(pool.ConnectionCls, self._connected, self._holding)
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Have certificates verified, that of a proxy with TLS also where the target has none."""
        if self._holding.lease.proxy.protocol is ProxyProtocol.HTTPS:
            url = "https://" + url.partition("://")[2]
        super().cert_verify(conn, url, verify, cert)

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        """Return the headers that log in to a proxy; requests itself can say Latin-1 only."""
        return _login_of(self._holding.lease.proxy)


class _Known:
    """A connection that a session can end."""


def _known(kind: type[Any], connected: WeakSet[socket.socket], holding: Holding) -> type[Any]:
    """Return the kind of connection with which a session knows the sockets."""

    class Connection(_Known, kind):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            sock: Any = self.sock
            connected.add(getattr(sock, "socket", sock))  # With TLS in TLS, it is in an object.
            holding.check()  # It may have been lost in the meantime.

    return Connection


def _check_login(proxy: LeasedProxy) -> None:
    """Refuse a login that PySocks does not offer a proxy."""
    login = proxy.credentials
    if proxy.protocol is ProxyProtocol.SOCKS5 and login and not login.password.get_secret_value():
        raise InvalidInputError(
            "requests cannot log in to a SOCKS5 proxy with an empty password; use manager.client"
        )


def _login_of(proxy: LeasedProxy) -> dict[str, str]:
    login = proxy.credentials
    if login is None:
        return {}
    text = f"{login.user}:{login.password.get_secret_value()}"
    return {"Proxy-Authorization": f"Basic {b64encode(text.encode()).decode()}"}
