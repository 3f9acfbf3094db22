"""Download handlers that lease a proxy around the one that downloads.

A handler is called when a download slot lets a request go, after its turn and its delay; so
nothing is leased for a request that waits for those, and waiting for a proxy is part of the
download that the slot counts. A request names its proxy during the download only: a retry or a
redirect, which copies its ``meta``, leases anew. One with a ``proxy`` of its own is left alone.

Scrapy keeps connections by the address of a proxy. Of a gateway, where the user name says which
exit it is, each login has a handler of its own, with connections of its own.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from uuid import UUID

from scrapy import version_info
from scrapy.crawler import Crawler
from scrapy.http import Request, Response
from scrapy.utils.defer import deferred_from_coro, maybe_deferred_to_future
from scrapy.utils.httpobj import urlparse_cached
from scrapy.utils.misc import build_from_crawler, load_object
from twisted.internet.defer import Deferred

from ...models import LeasedProxy, Outcome, ProxyProtocol
from ...models.text import in_url
from .crawl import Crawl, Exchange
from .leases import Loan
from .outcomes import outcome_of_failure

logger = logging.getLogger("pharox")

PROXY = "pharox_proxy"
"""The key of ``request.meta`` that says which proxy the last download went through."""

TRIED = "pharox_tried"
"""The key of ``request.meta`` with the ids of proxies that it was refused with."""

MOST_LOGINS = 100
"""How many handlers with nothing to do are kept, for further logins of the same address."""

_TAKES_DEFERREDS = tuple(version_info[:2]) < (2, 14)

_OF_HTTPX = "HttpxDownloadHandler"
_HTTP_ONLY = frozenset({ProxyProtocol.HTTP})


def protocols_of(handler: type) -> frozenset[ProxyProtocol]:
    """Return the protocols of the proxies that a class of download handlers can go through.

    Scrapy's own speaks HTTP to proxies, for both kinds of pages; so do those that are not known.
    That of httpx speaks SOCKS5 as well, if httpx can.
    """
    if _is_of_httpx(handler) and getattr(sys.modules[handler.__module__], "HAS_SOCKS", False):
        return _HTTP_ONLY | {ProxyProtocol.SOCKS5}
    return _HTTP_ONLY


def _is_of_httpx(handler: type) -> bool:
    return any(kind.__name__ == _OF_HTTPX for kind in handler.__mro__)


class _LeasedHandler:
    """Leases a proxy for each request, and downloads with the handler of the settings."""

    lazy = True
    scheme: ClassVar[str]

    def __init__(self, crawler: Crawler) -> None:
        self._crawl = Crawl.of(crawler)
        handler = self._crawl.inner_handler(self.scheme)
        self._inner = _InnerHandlers(crawler, handler)
        self._crawl.check_event_loop()
        self._protocols = self._crawl.options.protocols or protocols_of(self._inner.kind)
        self._encoding = crawler.settings.get("HTTPPROXY_AUTH_ENCODING") or "latin-1"

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> _LeasedHandler:
        return cls(crawler)

    async def download(self, request: Request) -> Response:
        """Download through a leased proxy; wait for one if need be."""
        if "proxy" in request.meta and not request.meta.get("_scheme_proxy"):
            self._crawl.count("bypassed")
            return await self._inner.download(request, None)
        tried = tuple(UUID(each) for each in request.meta.get(TRIED, ()))
        loan = await self._crawl.borrow(request, self._protocols, tried)
        target = urlparse_cached(request).hostname
        try:
            async with loan.used():
                with self._through(request, loan.lease.proxy):
                    response = await self._inner.download(request, loan.lease.proxy)
        except BaseException as error:
            self._end(request, loan, _outcome_of(error, target))
            raise
        self._end(request, loan, _outcome_of(response, target))
        return response

    def _end(self, request: Request, loan: Loan, outcome: Outcome | None) -> None:
        """Give the lease back, and keep what the middleware has to know."""
        exchange = Exchange(loan, outcome)
        self._crawl.exchanges[request] = exchange
        if exchange.is_of_the_proxy:
            request.meta[TRIED] = [*request.meta.get(TRIED, ()), str(loan.lease.proxy_id)]
        now = None if self._crawl.is_judged_later(exchange) else outcome
        self._crawl.end(loan, now, retire=exchange.is_of_the_proxy)

    @contextmanager
    def _through(self, request: Request, proxy: LeasedProxy) -> Iterator[None]:
        """Have a request say that it goes through a proxy, in Scrapy's own way."""
        before = {key: request.meta[key] for key in ("proxy",) if key in request.meta}
        login = request.headers.getlist("Proxy-Authorization")
        place = f"{proxy.protocol}://{_address(proxy)}"
        # The handler of httpx puts a login of the header into the URL, where a slash breaks it.
        is_in_url = _is_of_httpx(self._inner.kind)
        request.meta["proxy"] = proxy.url if is_in_url else place
        request.meta[PROXY] = place
        request.headers.pop("Proxy-Authorization", None)
        if proxy.credentials is not None and not is_in_url:
            request.headers["Proxy-Authorization"] = self._basic(proxy)
        try:
            yield
        finally:
            request.meta.pop("proxy", None)
            request.meta.update(before)
            request.headers.pop("Proxy-Authorization", None)
            if login:
                request.headers.setlist("Proxy-Authorization", login)

    def _basic(self, proxy: LeasedProxy) -> bytes:
        user, password = _login(proxy)
        text = f"{user}:{password}"
        try:
            encoded = text.encode(self._encoding)
        except UnicodeEncodeError:
            encoded = text.encode()
        return b"Basic " + base64.b64encode(encoded)

    async def close_all(self) -> None:
        """Close the handlers that download."""
        await self._inner.close()

    if _TAKES_DEFERREDS:

        def download_request(self, request: Request, spider: Any) -> Deferred[Response]:
            """Download as 2.13 asks for it."""
            return deferred_from_coro(self.download(request))

        def close(self) -> Deferred[None]:
            """Close as 2.13 asks for it."""
            return deferred_from_coro(self.close_all())

    else:

        async def download_request(self, request: Request) -> Response:  # type: ignore[misc]
            """Download a request through a leased proxy."""
            return await self.download(request)

        async def close(self) -> None:  # type: ignore[misc]
            """Close the handlers that download."""
            await self.close_all()


class LeasedHttpHandler(_LeasedHandler):
    """Leases a proxy for pages of ``http``."""

    scheme = "http"


class LeasedHttpsHandler(_LeasedHandler):
    """Leases a proxy for pages of ``https``."""

    scheme = "https"


class _InnerHandlers:
    """The handlers that download: one, and one for each further login of the same address."""

    def __init__(self, crawler: Crawler, path: Any) -> None:
        self._crawler = crawler
        self.kind: type = load_object(path)
        self._first = build_from_crawler(self.kind, crawler)
        self._logins: dict[str, tuple[str, str] | None] = {}
        self._others: OrderedDict[tuple[str, Any], _Counted] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def download(self, request: Request, proxy: LeasedProxy | None) -> Response:
        """Download with the handler whose connections are of this proxy's login."""
        if proxy is None:
            return await _downloaded(self._first, request, self._crawler)
        address = _address(proxy)
        login = None if proxy.credentials is None else _login(proxy)
        if self._logins.setdefault(address, login) == login:
            return await _downloaded(self._first, request, self._crawler)
        counted = self._other(address, login)
        counted.users += 1
        try:
            return await _downloaded(counted.handler, request, self._crawler)
        finally:
            counted.users -= 1
            self._close_some()

    def _other(self, address: str, login: Any) -> _Counted:
        key = (address, login)
        if key not in self._others:
            self._others[key] = _Counted(build_from_crawler(self.kind, self._crawler))
        self._others.move_to_end(key)
        return self._others[key]

    def _close_some(self) -> None:
        """Close the handlers that were used longest ago, if there are many."""
        while len(self._others) > MOST_LOGINS:
            key, counted = next(iter(self._others.items()))
            if counted.users:
                return
            del self._others[key]
            task = asyncio.get_running_loop().create_task(_closed(counted.handler))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all of them."""
        for handler in (self._first, *(each.handler for each in self._others.values())):
            await _closed(handler)


class _Counted:
    """A handler, and how many downloads it has now."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler
        self.users = 0


def _outcome_of(result: Response | BaseException, target: str | None) -> Outcome | None:
    """Return what a response or an exception says. It never raises: a lease is to be given back."""
    try:
        if isinstance(result, BaseException):
            return outcome_of_failure(result, target) if isinstance(result, Exception) else None
        outcome = Outcome.from_response(result, target=target)
        return outcome.model_copy(update={"bytes": len(result.body)})
    except Exception:
        logger.exception("pharox.report.failed: of a request to %s", target)
        return None


async def _downloaded(handler: Any, request: Request, crawler: Crawler) -> Response:
    """Download with a handler; that of 2.13 takes the spider, and returns a Deferred."""
    if _takes_spider(handler):
        result = handler.download_request(request, crawler.spider)
    else:
        result = handler.download_request(request)
    if isinstance(result, Deferred):
        result = maybe_deferred_to_future(result)
    response: Response = await result
    return response


def _takes_spider(handler: Any) -> bool:
    return _TAKES_DEFERREDS or not asyncio.iscoroutinefunction(handler.download_request)


async def _closed(handler: Any) -> None:
    if not hasattr(handler, "close"):
        return
    result = handler.close()
    if isinstance(result, Deferred):
        result = maybe_deferred_to_future(result)
    if result is not None:
        await result


def _address(proxy: LeasedProxy) -> str:
    return f"{in_url(proxy.host)}:{proxy.port}"


def _login(proxy: LeasedProxy) -> tuple[str, str]:
    assert proxy.credentials is not None  # noqa: S101 - who asks for it has looked
    return proxy.credentials.user, proxy.credentials.password.get_secret_value()
