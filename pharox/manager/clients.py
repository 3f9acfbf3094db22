"""HTTP clients that go through a leased proxy and release it when they are closed.

Every request goes through the leased proxy, with each of the four protocols and
whatever the environment says about proxies. The proxy resolves the names of targets.
After the lease has run out somebody else may hold the proxy, so the client then
sends nothing more.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, TypeVar

import httpx
import python_socks
from httpx_socks import AsyncProxyTransport, SyncProxyTransport
from python_socks import ProxyType

from ..effects import Calls, call, call_async, run, run_async
from ..errors import InvalidInputError, LeaseEndedError, ProxyUnavailableError
from ..models import Lease, LeaseStatus, MissReason, Proxy, ProxyProtocol, RetryConfig
from ..models.text import url_of
from ..storage.requests import Acquisition
from .leasing import AcquireArguments, Leasing, releasing_after, retrying

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
) -> Calls[C]:
    """Lease a proxy and return a client that goes through it."""
    options = dict(client_options or {})
    if chosen := [name for name in _OUR_OWN if name in options]:
        raise InvalidInputError(
            f"requests go through the leased proxy; client_options cannot have {', '.join(chosen)}"
        )
    config = retry_config or RetryConfig(max_attempts=1)

    def attempt() -> Calls[tuple[Acquisition, float]]:
        begun = time.monotonic()
        return (yield from leasing._acquiring(request)), begun

    acquisition, begun = yield from retrying(
        attempt, config, sleep, is_enough=lambda found: found[0].lease is not None
    )
    lease = acquisition.lease
    if lease is None:
        why = acquisition.miss_reason
        message = f"Pool {request.pool_name!r} has no free proxy{f': {why.value}' if why else ''}."
        if why is MissReason.UNKNOWN_POOL:
            message = f"There is no pool {request.pool_name!r}."
        raise ProxyUnavailableError(
            message,
            pool_name=request.pool_name,
            miss_reason=why,
        )
    try:
        proxy = yield partial(leasing._storage.get_proxy, str(lease.proxy_id))
        return kind(leasing, lease, begun, proxy, options)
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
        begun: float,
        proxy: Proxy,
        options: dict[str, Any],
    ) -> None:
        self._leasing, self.lease = leasing, lease
        self._is_held = True
        transport = _transport(proxy, options, httpx.HTTPTransport, SyncProxyTransport)
        leased = _LeasedTransport(_Deadline(lease, begun), transport)
        super().__init__(transport=leased, **options)

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
        begun: float,
        proxy: Proxy,
        options: dict[str, Any],
    ) -> None:
        self._leasing, self.lease = leasing, lease
        self._is_held = True
        transport = _transport(proxy, options, httpx.AsyncHTTPTransport, AsyncProxyTransport)
        super().__init__(
            transport=_AsyncLeasedTransport(_Deadline(lease, begun), transport), **options
        )

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


class _Deadline:
    """When a lease ends, by this process's monotonic clock from the start of the request for it.

    It ends earlier when it is released through this same ``Lease`` object.
    """

    def __init__(self, lease: Lease, begun: float) -> None:
        self._lease = lease
        self._ends_at = begun + (lease.expires_at - lease.acquired_at).total_seconds()

    @contextmanager
    def request(self, request: httpx.Request) -> Iterator[None]:
        """Refuse a request after the end; note the proxy on the error of one that fails."""
        released = self._lease.status is not LeaseStatus.ACTIVE
        if released or time.monotonic() >= self._ends_at:
            how = "was released" if released else "has run out"
            raise LeaseEndedError(
                f"Lease {self._lease.id} {how}; open another client.", lease_id=self._lease.id
            )
        try:
            with _as_httpx_errors(request):
                yield
        except httpx.TransportError as error:
            error.add_note(f"through proxy {self._lease.proxy_id}, lease {self._lease.id}")
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


class _LeasedTransport(httpx.BaseTransport):
    """A transport through a leased proxy that refuses requests after the lease."""

    def __init__(self, deadline: _Deadline, transport: httpx.BaseTransport) -> None:
        self._deadline, self._transport = deadline, transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._deadline.request(request):
            return self._transport.handle_request(request)

    def close(self) -> None:
        self._transport.close()


class _AsyncLeasedTransport(httpx.AsyncBaseTransport):
    """The asyncio form of :class:`_LeasedTransport`."""

    def __init__(self, deadline: _Deadline, transport: httpx.AsyncBaseTransport) -> None:
        self._deadline, self._transport = deadline, transport

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with self._deadline.request(request):
            return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


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


def _transport(proxy: Proxy, options: dict[str, Any], http: Any, socks: Any) -> Any:
    """Return a transport through a proxy, and remove its options from ``options``."""
    named = {name: options.pop(name) for name in _OF_TRANSPORTS if name in options}
    context = _ssl_context(options, http2=named.get("http2", False))
    host, login = str(proxy.host), proxy.credentials
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
