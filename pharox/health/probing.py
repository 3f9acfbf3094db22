"""One check of one proxy: fetch a page through it, as a client that just leased it would.

Every check has connections of its own, shared by its attempts and redirects and
closed at its end. An attempt has one deadline for everything: name lookup,
connection, handshakes, TLS, response, redirects and body. The body is read as it
arrives and never decoded, so a compressed body cannot grow. If a text is expected in
it, it is unpacked up to the same limit.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import Any

import httpcore
import httpx
from httpx_socks import AsyncProxyTransport

from ..failures import CheckFailedError, Failure, failure_of
from ..manager.clients import SOCKS, socks_text
from ..models import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from .answers import TextSearch, check_headers
from .exits import ExitSearch

MAX_REDIRECTS = 20

MAX_PIECES = 500
"""How many pieces of a body to wait for: each costs time, however small it is."""

LOOKUPS = 256
"""How many names of proxies to look up at once."""

_USER_AGENT = f"pharox/{version('pharox')}"
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_FOR_OTHERS = ("authorization", "cookie", "host")
"""Headers that must not be sent to another origin."""

# The attempt has the deadline. None would not work: python-socks then takes a minute.
_NO_TIMEOUT = {"connect": math.inf}
_NETWORK = httpcore.AnyIOBackend()


class HealthCheckStrategy(ABC):
    """How proxies of a protocol are checked."""

    @abstractmethod
    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        """Return the result of a check of this proxy; a failing proxy must not raise."""


class HTTPHealthCheckStrategy(HealthCheckStrategy):
    """Fetches ``target_url`` through the proxy, with each of the four protocols.

    The proxy resolves names. It is healthy if the response has an expected status,
    arrives complete or up to ``max_body_bytes``, and has the expected text and
    headers.

    Parameters
    ----------
    ssl_context:
        For TLS to targets and to HTTPS proxies; by default it trusts the same
        authorities as httpx.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._given = ssl_context

    @cached_property
    def _ssl_context(self) -> ssl.SSLContext:
        return self._given or httpx.create_ssl_context()

    @cached_property
    def _names(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(LOOKUPS, "pharox-names")

    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        """Fetch the target, and retry after a failure up to ``options.attempts``."""
        async with AsyncExitStack() as connections:
            kind = _SOCKSRoute if proxy.protocol in SOCKS else _HTTPRoute
            route = kind(proxy, self._ssl_context, self._names, connections)
            for attempts in range(1, options.attempts + 1):  # noqa: B007 - read below
                finding = await _attempt(route, options)
                if finding.failure is None:
                    break
        return _result(proxy, options, finding, attempts)


@dataclass(slots=True)
class _Finding:
    """The findings of an attempt so far."""

    status_code: int | None = None
    latency_ms: int = 0
    failure: Failure | None = None
    exit_ip: str | None = None


@dataclass(slots=True)
class _Answer:
    """A response: its head, and its body as a stream."""

    status_code: int
    headers: Sequence[tuple[bytes, bytes]]
    body: AsyncIterable[bytes]
    aclose: Callable[[], Awaitable[None]]

    @property
    def location(self) -> str | None:
        """The target of a redirect."""
        found = (value for name, value in self.headers if name.lower() == b"location")
        return next((value.decode("latin-1") for value in found), None)


class _Route(ABC):
    """A route through a proxy; its connections are closed with ``connections``."""

    def __init__(
        self,
        proxy: Proxy,
        ssl_context: ssl.SSLContext,
        names: ThreadPoolExecutor,
        connections: AsyncExitStack,
    ) -> None:
        self._proxy, self._ssl_context = proxy, ssl_context
        self._names, self._connections = names, connections

    async def look_up(self) -> None:
        """Resolve the proxy's host name, if it has one, before the attempt goes on.

        The event loop has only a few threads for lookups. A few slow names would block
        all others there until their checks time out.
        """
        if isinstance(self._proxy.host, str):
            loop = asyncio.get_running_loop()
            place = (self._proxy.host, self._proxy.port)
            await loop.run_in_executor(self._names, socket.getaddrinfo, *place)

    @abstractmethod
    async def get(self, url: httpx.URL, headers: httpx.Headers) -> _Answer:
        """Request a page."""

    def _login(self) -> tuple[str, str] | None:
        login = self._proxy.credentials
        return None if login is None else (login.user, login.password.get_secret_value())


class _HTTPRoute(_Route, httpcore.AsyncNetworkBackend):
    """A route through an HTTP or HTTPS proxy, over httpcore.

    It opens its own connections: httpcore leaks one that is cancelled during its TLS
    handshake.
    """

    @cached_property
    def _pool(self) -> httpcore.AsyncConnectionPool:
        proxy = self._proxy
        login = self._login()
        pool = httpcore.AsyncHTTPProxy(
            httpcore.URL(scheme=proxy.protocol, host=str(proxy.host), port=proxy.port, target="/"),
            proxy_auth=login and (login[0].encode(), login[1].encode()),
            ssl_context=self._ssl_context,
            proxy_ssl_context=(
                self._ssl_context if proxy.protocol is ProxyProtocol.HTTPS else None
            ),
            network_backend=self,
        )
        self._connections.push_async_callback(pool.aclose)
        return pool

    async def get(self, url: httpx.URL, headers: httpx.Headers) -> _Answer:
        host = [] if "host" in headers else [(b"Host", url.netloc)]
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        request = httpcore.Request("GET", target, headers=[*host, *headers.raw])
        response = await self._pool.handle_async_request(request)
        return _Answer(response.status, response.headers, response.aiter_stream(), response.aclose)

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """Connect as httpcore would, and register the connection to be closed."""
        stream = await _NETWORK.connect_tcp(*args, **options)
        self._connections.push_async_callback(stream.aclose)
        return stream


class _SOCKSRoute(_Route):
    """A route through a SOCKS proxy, which resolves the target's name."""

    @cached_property
    def _transport(self) -> AsyncProxyTransport:
        login = self._login()
        transport = AsyncProxyTransport(
            proxy_type=SOCKS[self._proxy.protocol],
            proxy_host=str(self._proxy.host),
            proxy_port=self._proxy.port,
            username=login and socks_text(login[0]),
            password=login and socks_text(login[1]),
            rdns=True,
            verify=self._ssl_context,
            trust_env=False,
        )
        self._connections.push_async_callback(transport.aclose)
        return transport

    async def get(self, url: httpx.URL, headers: httpx.Headers) -> _Answer:
        extensions = {"timeout": _NO_TIMEOUT}
        request = httpx.Request("GET", url, headers=headers, extensions=extensions)
        response = await self._transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - an async transport
        return _Answer(
            response.status_code, response.headers.raw, response.stream, response.stream.aclose
        )


async def _attempt(route: _Route, options: HealthCheckOptions) -> _Finding:
    finding = _Finding()
    started = time.perf_counter()
    try:
        async with asyncio.timeout(options.timeout):
            await route.look_up()
            await _fetch(route, options, finding)
    except Exception as error:
        finding.failure = failure_of(error)
        finding.status_code = finding.failure.status_code or finding.status_code
    finding.latency_ms = int((time.perf_counter() - started) * 1000)
    return finding


async def _fetch(route: _Route, options: HealthCheckOptions, finding: _Finding) -> None:
    url = _parsed(str(options.target_url))
    headers = _headers(url, options)
    for _ in range(MAX_REDIRECTS + 1):
        answer = await route.get(url, headers)
        try:
            finding.status_code = answer.status_code
            location = _next_of(answer, options)
            if location is None:
                await _judge(answer, options, finding)
                return
            await _read(answer, options.max_body_bytes)
        finally:
            await answer.aclose()
        destination = _destination(url, location)
        if _origin(destination) != _origin(url):
            headers = httpx.Headers(
                [(name, value) for name, value in headers.items() if name not in _NOT_FOR_OTHERS]
            )
        url = destination
    raise CheckFailedError(CheckFailure.REDIRECTS, f"more than {MAX_REDIRECTS} redirects")


@lru_cache(maxsize=64)
def _parsed(url: str) -> httpx.URL:
    return httpx.URL(url)


def _headers(url: httpx.URL, options: HealthCheckOptions) -> httpx.Headers:
    headers = httpx.Headers({"Accept": "*/*", "User-Agent": _USER_AGENT})
    if url.userinfo:
        login = b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    if options.expected_text is not None or options.exit_ip_from is not None:
        headers["Accept-Encoding"] = "identity"
    headers.update(options.headers)
    return headers


def _next_of(answer: _Answer, options: HealthCheckOptions) -> str | None:
    """Return the target of a redirect that is to be followed, else None."""
    is_final = answer.status_code in options.expected_status_codes
    leads_on = answer.status_code in _REDIRECTS and options.allow_redirects
    return answer.location if leads_on and not is_final else None


async def _judge(answer: _Answer, options: HealthCheckOptions, finding: _Finding) -> None:
    code = answer.status_code
    if code in options.expected_status_codes:
        await _judge_content(answer, options, finding)
    elif code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        raise CheckFailedError(CheckFailure.PROXY_AUTHENTICATION, "the answer is 407")
    else:
        expected = ", ".join(map(str, options.expected_status_codes))
        raise CheckFailedError(
            CheckFailure.UNEXPECTED_STATUS, f"the answer is {code}, expected {expected}"
        )


async def _judge_content(answer: _Answer, options: HealthCheckOptions, finding: _Finding) -> None:
    """Check that the response is the target's own, and complete, and look for the exit in it."""
    check_headers(answer.headers, options.expected_headers)
    text = exit_ip = None
    if options.expected_text is not None:
        text = TextSearch(options.expected_text, answer.headers, options.max_body_bytes)
    if options.exit_ip_from is not None:
        exit_ip = ExitSearch(options.exit_ip_from, answer.headers)
    await _read(
        answer, options.max_body_bytes, *(each.feed for each in (text, exit_ip) if each is not None)
    )
    if text is not None:
        text.check()
    if exit_ip is not None:
        finding.exit_ip = exit_ip.found()


async def _read(answer: _Answer, max_bytes: int, *look_at: Callable[[bytes], None]) -> None:
    """Read the body to its end, or up to the limits of bytes and pieces."""
    if max_bytes == 0:
        return
    pieces = size = 0
    async for piece in answer.body:
        for look in look_at:
            look(piece)
        pieces, size = pieces + 1, size + len(piece)
        if size >= max_bytes or pieces >= MAX_PIECES:
            break


def _destination(url: httpx.URL, location: str) -> httpx.URL:
    try:
        destination = url.join(location)
    except (httpx.InvalidURL, UnicodeError):
        destination = httpx.URL()
    if destination.scheme not in ("http", "https") or not destination.host:
        raise CheckFailedError(
            CheckFailure.REDIRECTS, "a redirect leads to a URL that is not http(s)"
        )
    return destination


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _result(
    proxy: Proxy, options: HealthCheckOptions, finding: _Finding, attempts: int
) -> HealthCheckResult:
    if finding.failure is not None:
        status = ProxyStatus.INACTIVE
    elif finding.latency_ms > options.slow_threshold_ms:
        status = ProxyStatus.SLOW
    else:
        status = ProxyStatus.ACTIVE
    return HealthCheckResult(
        proxy_id=proxy.id,
        status=status,
        latency_ms=finding.latency_ms,
        protocol=proxy.protocol,
        attempts=attempts,
        status_code=finding.status_code,
        exit_ip=finding.exit_ip,
        failure=finding.failure and finding.failure.kind,
        error_message=finding.failure and finding.failure.message,
    )
