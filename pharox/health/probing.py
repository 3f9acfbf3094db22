"""One check of one proxy: fetch a page through it, as a client that just leased it would.

Every check has connections of its own, shared by its attempts and redirects and
closed at its end. An attempt has one deadline around all that it does: name,
connection, handshakes, TLS, answer, redirects and body. The body is read as it
comes and never decoded, so a compressed one cannot grow.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
import time
from abc import ABC, abstractmethod
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import httpx
from httpx_socks import AsyncProxyTransport
from python_socks import ProxyType

from ..models import (
    CheckFailure,
    HealthCheckOptions,
    HealthCheckResult,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from .failures import CheckFailedError, Failure, failure_of

MAX_REDIRECTS = 20

MAX_PIECES = 500
"""Of a body in more pieces the rest is not waited for: each costs time, however small it is."""

LOOKUPS = 256
"""How many names of proxies are looked up at once."""

_SOCKS = {
    ProxyProtocol.SOCKS4: ProxyType.SOCKS4,
    ProxyProtocol.SOCKS5: ProxyType.SOCKS5,
}
_USER_AGENT = f"pharox/{version('pharox')}"
_NOT_FOR_OTHERS = ("authorization", "cookie", "host")
"""Headers that are meant for one origin."""

# The deadline is the attempt's. None would not do: python-socks then takes a minute.
_NO_TIMEOUT = {"connect": math.inf}


class HealthCheckStrategy(ABC):
    """How proxies of a protocol are checked."""

    @abstractmethod
    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        """Return what a check of this proxy found; a failing proxy is no exception."""


class HTTPHealthCheckStrategy(HealthCheckStrategy):
    """Fetches ``target_url`` through the proxy, whichever of the four protocols it speaks.

    Names are resolved by the proxy. It is healthy if the answer has an expected
    status and arrives complete, or up to ``max_body_bytes``.

    Parameters
    ----------
    ssl_context:
        For TLS to targets and to HTTPS proxies; by default one that trusts the
        authorities that httpx trusts.
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
        """Fetch the target, again after a failure if ``options.attempts`` allows it."""
        async with AsyncExitStack() as connections:
            route = _Route(proxy, self._ssl_context, self._names, connections)
            for attempts in range(1, options.attempts + 1):  # noqa: B007 - read below
                finding = await _attempt(route, options)
                if finding.failure is None:
                    break
        return _result(proxy, options, finding, attempts)


@dataclass(slots=True)
class _Finding:
    """What an attempt has found so far."""

    status_code: int | None = None
    latency_ms: int = 0
    failure: Failure | None = None


class _Route:
    """The way through a proxy; what it opens is closed with ``connections``."""

    def __init__(
        self,
        proxy: Proxy,
        ssl_context: ssl.SSLContext,
        names: ThreadPoolExecutor,
        connections: AsyncExitStack,
    ) -> None:
        self._proxy, self._ssl_context = proxy, ssl_context
        self._names, self._connections = names, connections

    @cached_property
    def _transport(self) -> httpx.AsyncBaseTransport:
        transport = _transport(self._proxy, self._ssl_context)
        self._connections.push_async_callback(transport.aclose)
        return transport

    async def look_up(self) -> None:
        """Look the proxy's name up, if it has one, so that only names that resolve go on.

        The event loop has but a few threads for this. A few slow names would keep all
        others waiting there, until their checks are out of time.
        """
        if isinstance(self._proxy.host, str):
            loop = asyncio.get_running_loop()
            place = (self._proxy.host, self._proxy.port)
            await loop.run_in_executor(self._names, socket.getaddrinfo, *place)

    async def get(self, url: httpx.URL, headers: httpx.Headers) -> httpx.Response:
        extensions = {"timeout": _NO_TIMEOUT, "trace": self._note}
        request = httpx.Request("GET", url, headers=headers, extensions=extensions)
        return await self._transport.handle_async_request(request)

    async def _note(self, event: str, info: dict[str, Any]) -> None:
        """Note every connection, as httpcore forgets one that is cancelled during its TLS."""
        if event == "connection.connect_tcp.complete":
            self._connections.push_async_callback(info["return_value"].aclose)


def _transport(proxy: Proxy, ssl_context: ssl.SSLContext) -> httpx.AsyncBaseTransport:
    host, user, password = str(proxy.host), None, None
    if proxy.credentials is not None:
        user = proxy.credentials.user
        password = proxy.credentials.password.get_secret_value()
    if proxy.protocol in _SOCKS:
        return AsyncProxyTransport(
            proxy_type=_SOCKS[proxy.protocol],
            proxy_host=host,
            proxy_port=proxy.port,
            username=user,
            password=password,
            rdns=True,
            verify=ssl_context,
            trust_env=False,
        )
    server = httpx.Proxy(
        httpx.URL(scheme=proxy.protocol.value, host=host, port=proxy.port),
        auth=None if user is None or password is None else (user, password),
        ssl_context=ssl_context if proxy.protocol is ProxyProtocol.HTTPS else None,
    )
    return httpx.AsyncHTTPTransport(proxy=server, verify=ssl_context, trust_env=False)


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
    url = httpx.URL(str(options.target_url))
    headers = _headers(url, options)
    for _ in range(MAX_REDIRECTS + 1):
        response = await route.get(url, headers)
        try:
            finding.status_code = response.status_code
            if not _leads_on(response, options):
                await _judge(response, options)
                return
            await _read(response, options.max_body_bytes)
        finally:
            await response.aclose()
        destination = _destination(url, response.headers["location"])
        if _origin(destination) != _origin(url):
            headers = httpx.Headers(
                [(name, value) for name, value in headers.items() if name not in _NOT_FOR_OTHERS]
            )
        url = destination
    raise CheckFailedError(CheckFailure.REDIRECTS, f"more than {MAX_REDIRECTS} redirects")


def _headers(url: httpx.URL, options: HealthCheckOptions) -> httpx.Headers:
    headers = httpx.Headers({"Accept": "*/*", "User-Agent": _USER_AGENT})
    if url.userinfo:
        login = b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    headers.update(options.headers)
    return headers


def _leads_on(response: httpx.Response, options: HealthCheckOptions) -> bool:
    return (
        options.allow_redirects
        and response.has_redirect_location
        and response.status_code not in options.expected_status_codes
    )


async def _judge(response: httpx.Response, options: HealthCheckOptions) -> None:
    code = response.status_code
    if code in options.expected_status_codes:
        await _read(response, options.max_body_bytes)
    elif code == httpx.codes.PROXY_AUTHENTICATION_REQUIRED:
        raise CheckFailedError(CheckFailure.PROXY_AUTHENTICATION, "the answer is 407")
    else:
        expected = ", ".join(map(str, options.expected_status_codes))
        raise CheckFailedError(
            CheckFailure.UNEXPECTED_STATUS, f"the answer is {code}, expected {expected}"
        )


async def _read(response: httpx.Response, max_bytes: int) -> None:
    """Wait for the body's end, or for so much of it, in so many pieces."""
    if max_bytes == 0:
        return
    pieces = 0
    async for _ in response.aiter_raw():
        pieces += 1
        if response.num_bytes_downloaded >= max_bytes or pieces >= MAX_PIECES:
            break


def _destination(url: httpx.URL, location: str) -> httpx.URL:
    try:
        destination = url.join(location)
    except (httpx.InvalidURL, UnicodeError):
        destination = httpx.URL()
    if destination.scheme not in ("http", "https") or not destination.host:
        raise CheckFailedError(CheckFailure.REDIRECTS, "a redirect leads to no http(s) URL")
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
        failure=finding.failure and finding.failure.kind,
        error_message=finding.failure and finding.failure.message,
    )
