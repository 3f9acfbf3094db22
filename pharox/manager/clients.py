"""HTTP clients that go through a leased proxy and release it when they are closed.

Every request goes through the leased proxy, with each of the four protocols and
whatever the environment says about proxies. The proxy resolves the names of targets.
The lease is kept alive. If it is lost, somebody else may hold the proxy: the client then
ends what is in flight and sends nothing more.

Each response and each failure is reported in the background, with the host as target: a request
waits for no report, and fails because of none.
"""

from __future__ import annotations

import asyncio
import logging
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
from weakref import WeakMethod

import httpx
import python_socks
from httpx_socks import AsyncProxyTransport, SyncProxyTransport
from python_socks import ProxyType

from ..effects import Calls, call, call_async, run, run_async
from ..errors import InvalidInputError, LeaseEndedError
from ..models import (
    Lease,
    LeasedProxy,
    LeaseStatus,
    Outcome,
    ProxyProtocol,
    RetryConfig,
)
from ..models.text import url_of
from ..outcomes import outcome_of_error
from ..storage.requests import Acquisition
from .keeper import is_kept, lost_error, notify
from .leasing import AcquireArguments, Leasing, releasing_after, retrying

logger = logging.getLogger("pharox")

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

    def attempt() -> Calls[Acquisition]:
        return (yield from leasing._acquiring(request))

    acquisition = yield from retrying(
        attempt, config, sleep, is_enough=lambda found: found.lease is not None
    )
    lease = acquisition.lease
    if lease is None:
        raise (yield from leasing._unavailable(request, acquisition))
    try:
        client = kind(leasing, lease, options, report=report)
        notify(leasing.storage, lease, WeakCall(client._on_lost))
        return client
    except GeneratorExit:
        raise
    except asyncio.CancelledError:
        yield from leasing._giving_up(lease)
        raise
    except BaseException as error:
        yield from releasing_after(error, leasing.release_proxy, lease)
        raise


class LeasedClient(httpx.Client):
    """An ``httpx.Client`` whose requests go through a leased proxy.

    Made by :meth:`pharox.ProxyManager.client`. A request after the lease has run
    out, or after the client was closed, is refused.

    Attributes
    ----------
    lease:
        What is given back when the client is closed.
    """

    def __init__(
        self,
        leasing: Leasing[Any],
        lease: Lease,
        options: dict[str, Any],
        *,
        report: bool = True,
    ) -> None:
        self._leasing, self.lease = leasing, lease
        self._is_held = True
        transport = _transport(lease.proxy, options, httpx.HTTPTransport, SyncProxyTransport)
        self._leased = _LeasedTransport(lease, transport, leasing if report else None)
        super().__init__(transport=self._leased, **options)

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
        run(_giving_back(self, error), call)


class AsyncLeasedClient(httpx.AsyncClient):
    """An ``httpx.AsyncClient`` whose requests go through a leased proxy.

    Made by :meth:`pharox.AsyncProxyManager.client`. A request after the lease has
    run out, or after the client was closed, is refused.

    Attributes
    ----------
    lease:
        What is given back when the client is closed.
    """

    def __init__(
        self,
        leasing: Leasing[Any],
        lease: Lease,
        options: dict[str, Any],
        *,
        report: bool = True,
    ) -> None:
        self._leasing, self.lease = leasing, lease
        self._is_held = True
        transport = _transport(lease.proxy, options, httpx.AsyncHTTPTransport, AsyncProxyTransport)
        self._leased = _AsyncLeasedTransport(lease, transport, leasing if report else None)
        super().__init__(transport=self._leased, **options)

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
        await run_async(_giving_back(self, error), call_async)


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


class WeakCall:
    """A call of a method that does not keep its object alive."""

    def __init__(self, method: Callable[..., None]) -> None:
        self._method = WeakMethod(method)

    def __call__(self, *arguments: Any) -> None:
        """Call the method, unless its object is gone."""
        method = self._method()
        if method is not None:
            method(*arguments)


@contextmanager
def _request_within(lease: Lease, request: httpx.Request) -> Iterator[None]:
    """Refuse a request after the lease's end; note the proxy on the error of one that fails."""
    _check_held(lease)
    try:
        with _as_httpx_errors(request):
            yield
    except Exception as error:
        if lease.is_lost and is_kept(lease):
            raise lost_error(lease) from error
        if isinstance(error, httpx.TransportError):
            error.add_note(f"through proxy {lease.proxy_id}, lease {lease.id}")
        raise


def _check_held(lease: Lease) -> None:
    """Raise an error if the lease was lost, has run out or was released."""
    if lease.is_lost and is_kept(lease):
        raise lost_error(lease)
    if lease.is_lost or lease.status is not LeaseStatus.ACTIVE:
        how = "has run out" if lease.is_lost else "was released"
        raise LeaseEndedError(f"Lease {lease.id} {how}; open another client.", lease_id=lease.id)


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
    """One request and its response, which are reported unless ``leasing`` is None."""

    def __init__(self, lease: Lease, leasing: Leasing[Any] | None, request: httpx.Request) -> None:
        self._lease, self._leasing, self._request = lease, leasing, request
        self._is_connected: bool | None = None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Refuse the request after the lease's end, and report if it fails."""
        with self.reading(), _request_within(self._lease, self._request):
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Report a failure, unless it is of the lease or of the caller."""
        try:
            yield
        except httpx.HTTPError as error:
            self._report(error)
            raise

    def note(self, event: str) -> None:
        """Note an event of httpcore: whether the connection to the proxy stands."""
        if event.startswith("connection."):
            self._is_connected = False
        elif event.startswith(("http11.", "http2.", "proxy.")):
            self._is_connected = True

    def answered(self, response: httpx.Response) -> httpx.Response:
        """Report a response. Its body is still to come, and reported again if it breaks off."""
        response.request = self._request
        self._report(response)
        if isinstance(response.stream, httpx.SyncByteStream):
            response.stream = _Body(response.stream, self)
        else:
            response.stream = _AsyncBody(response.stream, self)
        return response

    def _report(self, result: httpx.Response | httpx.HTTPError) -> None:
        """Have a result recorded in the background. It never raises."""
        if self._leasing is None or (self._lease.is_lost and is_kept(self._lease)):
            return  # Requests that are ended because a lease is lost say nothing.
        try:
            target = self._request.url.host or None
            if isinstance(result, httpx.Response):
                outcome: Outcome | None = Outcome.from_response(result, target=target)
            else:
                connected = self._is_connected
                outcome = outcome_of_error(result, target=target, is_connected=connected)
        except Exception:
            logger.exception("pharox.report.failed: of lease %s", self._lease.id)
        else:
            self._leasing._note(self._lease, outcome)


class _Body(httpx.SyncByteStream):
    """The body of a response, which is reported if it breaks off."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    def __iter__(self) -> Iterator[bytes]:
        with self._exchange.reading():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _AsyncBody(httpx.AsyncByteStream):
    """The asyncio form of :class:`_Body`."""

    def __init__(self, stream: Any, exchange: _Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._exchange.reading():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _LeasedTransport(httpx.BaseTransport):
    """A transport through a leased proxy that refuses requests after the lease, and reports."""

    def __init__(
        self, lease: Lease, transport: httpx.BaseTransport, leasing: Leasing[Any] | None
    ) -> None:
        self._lease, self._transport, self._leasing = lease, transport, leasing

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked: Callable[..., Any] | None = request.extensions.get("trace")
        exchange = _Exchange(self._lease, self._leasing, request)

        def trace(name: str, info: Mapping[str, Any]) -> None:
            _check_held(self._lease)
            exchange.note(name)
            if asked is not None:
                asked(name, info)

        with exchange.sending():
            request.extensions = {**request.extensions, "trace": trace}
            return exchange.answered(self._transport.handle_request(request))

    def end_requests(self) -> None:
        """Shut the connections down: threads that wait for an answer have an error at once.

        Closing would not wake them. What is not sent yet is stopped by the trace.
        """
        for stream in _streams_of(self._transport):
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._transport.close()


class _AsyncLeasedTransport(httpx.AsyncBaseTransport):
    """The asyncio form of :class:`_LeasedTransport`."""

    def __init__(
        self, lease: Lease, transport: httpx.AsyncBaseTransport, leasing: Leasing[Any] | None
    ) -> None:
        self._lease, self._transport, self._leasing = lease, transport, leasing

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        asked: Callable[..., Any] | None = request.extensions.get("trace")
        exchange = _Exchange(self._lease, self._leasing, request)

        async def trace(name: str, info: Mapping[str, Any]) -> None:
            _check_held(self._lease)
            exchange.note(name)
            if asked is not None:
                await asked(name, info)

        with exchange.sending():
            request.extensions = {**request.extensions, "trace": trace}
            return exchange.answered(await self._transport.handle_async_request(request))

    async def aclose(self) -> None:
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


def _giving_back(
    client: LeasedClient | AsyncLeasedClient, error: BaseException | None
) -> Calls[None]:
    """Release a client's lease once; the exception of a failing block takes precedence."""
    if not client._is_held:
        return
    release = client._leasing.release_proxy
    try:
        if error is None:
            yield partial(release, client.lease)
        else:
            yield from releasing_after(error, release, client.lease)
    finally:  # A failed release can be repeated; a cancelled one was completed.
        client._is_held = client.lease.status is LeaseStatus.ACTIVE


def _transport(proxy: LeasedProxy, options: dict[str, Any], http: Any, socks: Any) -> Any:
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
