"""HTTP clients that go through a leased proxy and release it when they are closed.

Every request goes through the leased proxy, with each of the four protocols and
whatever the environment says about proxies. The proxy resolves the names of targets.
The lease is kept alive. If it is lost, somebody else may hold the proxy: the client then
ends what is in flight and sends nothing more.

Each response and each failure is reported in the background, with the host as target: a request
waits for no report, and fails because of none. Where a rule or the caller's function looks at the
body, its first 64 KiB are kept as they are read, and the response is reported after them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, TypeVar

import httpx
import python_socks
from httpx_socks import AsyncProxyTransport, SyncProxyTransport
from python_socks import ProxyType

from ..effects import Calls, call, call_async, run, run_async
from ..errors import InvalidInputError
from ..models import LeasedProxy, ProxyProtocol, RetryConfig, target_or_none
from ..models.text import url_of
from ..storage.requests import Acquisition
from .beginnings import Beginning
from .holding import Holding, making
from .leasing import AcquireArguments, Leasing, retrying

C = TypeVar("C", "LeasedClient", "AsyncLeasedClient")

SOCKS = {ProxyProtocol.SOCKS4: ProxyType.SOCKS4, ProxyProtocol.SOCKS5: ProxyType.SOCKS5}
"""The names that httpx-socks has for the SOCKS protocols."""

_OUR_OWN = ("proxy", "transport", "mounts")
_OF_TRANSPORTS = ("http1", "http2", "limits")


def opening_client(
    leasing: Leasing[Any],
    kind: type[C],
    request: AcquireArguments,
    retry_config: RetryConfig | None,
    client_options: Mapping[str, Any] | None,
    sleep: Callable[[float], Any],
    *,
    report: bool,
) -> Calls[C]:
    """Lease a proxy and return a client that goes through it, and reports if it is to."""
    options = dict(client_options or {})
    if chosen := [name for name in _OUR_OWN if name in options]:
        raise InvalidInputError(
            f"requests go through the leased proxy; client_options cannot have {', '.join(chosen)}"
        )
    config = retry_config or RetryConfig(max_attempts=1)
    if report:
        yield from leasing._reading_rules()

    def attempt() -> Calls[Acquisition]:
        return (yield from leasing._acquiring(request))

    acquisition = yield from retrying(
        attempt, config, sleep, is_enough=lambda found: found.lease is not None
    )
    lease = acquisition.lease
    if lease is None:
        raise (yield from leasing._unavailable(request, acquisition))
    holding = Holding(leasing, lease, report=report)
    return (yield from making(holding, partial(kind, options=options)))


class LeasedClient(httpx.Client):
    """An ``httpx.Client`` whose requests go through a leased proxy.

    Made by :meth:`pharox.ProxyManager.client`. A request after the lease has run
    out, or after the client was closed, is refused.

    Attributes
    ----------
    lease:
        What is given back when the client is closed.
    """

    def __init__(self, holding: Holding, options: dict[str, Any]) -> None:
        self._holding, self.lease = holding, holding.lease
        transport = transport_through(
            self.lease.proxy, options, httpx.HTTPTransport, SyncProxyTransport
        )
        self._leased = LeasedTransport(holding, transport)
        super().__init__(transport=self._leased, **options)
        holding.call_when_lost(self._on_lost)

    def _on_lost(self, *_: object) -> None:
        """End the requests that are in flight, as somebody else may use the proxy now."""
        self._leased.end_requests()

    def close(self) -> None:
        """Close the connections and give the lease back."""
        try:
            super().close()
        finally:
            self._give_back(None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            super().__exit__(exc_type, exc_value, traceback)
        finally:
            self._give_back(exc_value)

    def _give_back(self, error: BaseException | None) -> None:
        run(self._holding.giving_back(error), call)


class AsyncLeasedClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` whose requests go through a leased proxy.

    Made by :meth:`pharox.AsyncProxyManager.client`. A request after the lease has
    run out, or after the client was closed, is refused.

    Attributes
    ----------
    lease:
        What is given back when the client is closed.
    """

    def __init__(self, holding: Holding, options: dict[str, Any]) -> None:
        self._holding, self.lease = holding, holding.lease
        transport = transport_through(
            self.lease.proxy, options, httpx.AsyncHTTPTransport, AsyncProxyTransport
        )
        self._leased = AsyncLeasedTransport(holding, transport)
        super().__init__(transport=self._leased, **options)
        holding.call_when_lost(self._on_lost)

    def _on_lost(self, *_: object) -> None:
        """End the requests that are in flight, as somebody else may use the proxy now."""
        self._closing = asyncio.get_running_loop().create_task(self._leased.aclose())

    async def aclose(self) -> None:
        """Close the connections and give the lease back."""
        try:
            await super().aclose()
        finally:
            await self._give_back(None)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_value, traceback)
        finally:
            await self._give_back(exc_value)

    async def _give_back(self, error: BaseException | None) -> None:
        await run_async(self._holding.giving_back(error), call_async)


class OpeningClient:
    """A client without its lease yet: ``await`` it, or enter it with ``async with``."""

    def __init__(self, program: Calls[AsyncLeasedClient]) -> None:
        self._program: Calls[AsyncLeasedClient] | None = program
        self._client: AsyncLeasedClient | None = None

    def __await__(self) -> Generator[Any, Any, AsyncLeasedClient]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncLeasedClient:
        self._client = await self._open()
        return await self._client.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        assert self._client is not None  # noqa: S101 - it was entered
        await self._client.__aexit__(*error)

    def _open(self) -> Awaitable[AsyncLeasedClient]:
        program, self._program = self._program, None
        if program is None:
            raise InvalidInputError("a client can be opened only once; ask the manager for another")
        return run_async(program, call_async)


@contextmanager
def _request_within(holding: Holding, request: httpx.Request) -> Iterator[None]:
    """Refuse a request after the lease's end; note the proxy on the error of one that fails."""
    holding.check()
    try:
        with _as_httpx_errors(request):
            yield
    except Exception as error:
        if holding.is_lost:
            raise holding.lost_error() from error
        if isinstance(error, httpx.TransportError):
            lease = holding.lease
            error.add_note(f"through proxy {lease.proxy_id}, lease {lease.id}")
        raise


@contextmanager
def _as_httpx_errors(request: httpx.Request) -> Iterator[None]:
    """Translate errors of the SOCKS library into those of httpx."""
    _check_target(request)
    try:
        yield
    except python_socks.ProxyTimeoutError as error:
        raise httpx.ConnectTimeout(str(error), request=request) from error
    except python_socks.ProxyConnectionError as error:
        raise httpx.ConnectError(str(error), request=request) from error
    except python_socks.ProxyError as error:
        raise httpx.ProxyError(str(error), request=request) from error


def _check_target(request: httpx.Request) -> None:
    """Refuse an invalid host name, such as one with a part of more than 63 letters.

    It is checked here because the same error in the handshake may come from the caller's own
    content.
    """
    try:
        request.url.raw_host.decode("ascii").encode("idna")
    except UnicodeError as error:
        raise httpx.ConnectError(f"the host name is not valid: {error}", request=request) from error


class _Exchange:
    """One request and its response, which are reported."""

    def __init__(self, holding: Holding, request: httpx.Request) -> None:
        self._holding, self._request = holding, request
        self._is_connected: bool | None = None
        self._beginning: Beginning | None = None
        self._target = target_or_none(request.url.raw_host.decode("ascii"))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Refuse the request after the lease's end, and report if it fails."""
        with self.reading(), _request_within(self._holding, self._request):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Report a failure, unless it is of the lease or of the caller."""
        try:
            yield
        except httpx.HTTPError as error:
            if self._holding.is_lost:
                raise self._holding.lost_error() from error
            self.read_enough()
            self._report(error)
            raise

    def note(self, event: str) -> None:
        """Note an event of httpcore: whether the connection to the proxy stands.

        Nothing goes on after the lease's end, but for closing what there is.
        """
        if "response_closed" not in event:
            self._holding.check()
        if event.startswith("connection."):
            self._is_connected = False
        elif event.startswith(("http11.", "http2.", "proxy.")):
            self._is_connected = True

    def answered(self, response: httpx.Response) -> httpx.Response:
        """Report a response. Its body is still to come, and reported again if it breaks off."""
        response.request = self._request
        if self._holding.needs_body(self._target):
            self._beginning = Beginning(response)
        else:
            self._report(response)
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Body(response.stream, self)
        else:
            response.stream = _AsyncBody(response.stream, self)
        return response

    def read(self, part: bytes) -> None:
        """Keep a part of the body, and report the response once that is enough to judge it."""
        if self._beginning is not None and self._beginning.add(part):
            self.read_enough()

    def read_enough(self) -> None:
        """Report a response by what was read of its body, unless that was done."""
        beginning, self._beginning = self._beginning, None
        if beginning is not None:
            self._report(beginning)

    def _report(self, result: httpx.Response | httpx.HTTPError | Beginning) -> None:
        """Have a result recorded in the background. It never raises."""
        if self._target is None:
            return  # No name that could be asked for is a mistake of the caller.
        note = partial(self._holding.note, target=self._target)
        if isinstance(result, Beginning):
            response = result.response()
            note(response, body=response.content)
        else:
            note(result, is_connected=self._is_connected)


class _Body(httpx.SyncByteStream):
    """The body of a response, which is reported if it breaks off."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    def __iter__(self) -> Iterator[bytes]:
        with self._exchange.reading():
            for part in self._stream:
                self._exchange.read(part)
                yield part
            self._exchange.read_enough()

    def close(self) -> None:
        self._exchange.read_enough()
        self._stream.close()


class _AsyncBody(httpx.AsyncByteStream):
    """The asyncio form of :class:`_Body`."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._exchange.reading():
            async for part in self._stream:
                self._exchange.read(part)
                yield part
            self._exchange.read_enough()

    async def aclose(self) -> None:
        self._exchange.read_enough()
        await self._stream.aclose()


@contextmanager
def _traced(request: httpx.Request, trace: Callable[..., Any]) -> Iterator[None]:
    """Have a request traced while it is sent; one that a redirect makes of it is not."""
    before = request.extensions
    request.extensions = {**before, "trace": trace}
    try:
        yield
    finally:
        request.extensions = before


class LeasedTransport(httpx.BaseTransport):
    """A transport through a leased proxy that refuses requests after the lease, and reports."""

    def __init__(self, holding: Holding, transport: httpx.BaseTransport) -> None:
        self._holding, self._transport = holding, transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through the leased proxy."""
        asked: Callable[..., Any] | None = request.extensions.get("trace")
        exchange = _Exchange(self._holding, request)

        def trace(name: str, info: Mapping[str, Any]) -> None:
            exchange.note(name)
            if asked is not None:
                asked(name, info)

        with exchange.sending(), _traced(request, trace):
            return exchange.answered(self._transport.handle_request(request))

    def end_requests(self) -> None:
        """Shut the connections down: threads that wait for an answer have an error at once.

        Closing would not wake them. What is not sent yet is stopped by the trace.
        """
        for stream in _streams_of(self._transport):
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()


class AsyncLeasedTransport(httpx.AsyncBaseTransport):
    """The asyncio form of :class:`LeasedTransport`."""

    def __init__(self, holding: Holding, transport: httpx.AsyncBaseTransport) -> None:
        self._holding, self._transport = holding, transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through the leased proxy."""
        asked: Callable[..., Any] | None = request.extensions.get("trace")
        exchange = _Exchange(self._holding, request)

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            exchange.note(name)
            if asked is not None:
                await asked(name, info)

        with exchange.sending(), _traced(request, trace):
            return exchange.answered(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


def _streams_of(transport: Any) -> Iterator[Any]:
    """Yield the network streams of a transport's connections.

    Neither httpx nor httpcore has a public way from a transport to them.
    """
    for connection in list(transport._pool.connections):
        inner = connection
        while inner is not None:
            stream = getattr(inner, "_network_stream", None)
            if stream is not None:
                yield stream
                break
            inner = getattr(inner, "_connection", None)


def transport_through(proxy: LeasedProxy, options: dict[str, Any], http: Any, socks: Any) -> Any:
    """Return a transport through a proxy, and remove its options from ``options``."""
    named = {name: options.pop(name) for name in _OF_TRANSPORTS if name in options}
    context = _ssl_context(options, http2=named.get("http2", False))
    host, login = proxy.host, proxy.credentials
    user, password = (login.user, login.password.get_secret_value()) if login else (None, None)
    if (kind := SOCKS.get(proxy.protocol)) is not None:
        return socks(
            proxy_type=kind,
            proxy_host=host,
            proxy_port=proxy.port,
            username=socks_text(user),
            password=socks_text(password),
            rdns=True,
            verify=context,
            **named,
        )
    way = httpx.Proxy(
        url_of(proxy.protocol, host, proxy.port),
        auth=(user, password or "") if user is not None else None,
        ssl_context=context if proxy.protocol is ProxyProtocol.HTTPS else None,
    )
    return http(verify=context, proxy=way, **named)


class _SocksText(str):
    """A user or password for a SOCKS handshake: sent as UTF-8, and also if it is empty.

    python-socks encodes in ASCII, gives the length in characters, and offers no login at all if
    the password is empty. RFC 1929 leaves the encoding open and requires at least one byte of
    password. Other clients send UTF-8, and no byte where a key is the user alone; so do we.
    """

    __slots__ = ()

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.encode())

    def encode(self, *_: object, **__: object) -> bytes:
        """Return the bytes in UTF-8, whatever encoding is requested."""
        return super().encode()


def socks_text(text: str | None) -> str | None:
    """Wrap a user or password for python-socks."""
    return None if text is None else _SocksText(text)


def _ssl_context(options: dict[str, Any], *, http2: bool) -> ssl.SSLContext:
    """Return a context made of httpx's options, and remove them from ``options``."""
    trust_env = options.get("trust_env", True)
    if "verify" not in options and "cert" not in options:
        return _usual_ssl_context(trust_env=trust_env, http2=http2)
    chosen = {"verify": options.pop("verify", True), "cert": options.pop("cert", None)}
    return httpx.create_ssl_context(trust_env=trust_env, **chosen)


@lru_cache
def _usual_ssl_context(*, trust_env: bool, http2: bool) -> ssl.SSLContext:
    """Return the context that clients share; making one takes longer than a lease.

    Connections write the HTTP versions that they offer into it, so there are two.
    """
    return httpx.create_ssl_context(trust_env=trust_env)
