"""httpx2 with a proxy a request: the transports of httpx, for its successor.

httpx2 has the interface of httpx under another name. So a request is handed to the transport of
:mod:`pharox.integrations.httpx`, and its answer handed back: status, headers and streams as they
are, errors as httpx2's of the same name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack

import httpx

from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.options import PoolOptions
from ..manager.proxy_manager import ProxyManager
from ._core import require
from .httpx import AsyncPharoxTransport as _AsyncTransport
from .httpx import PharoxTransport as _Transport

require("httpx2", "2.0")

import httpx2  # noqa: E402 - after what says which version is needed


class PharoxTransport(httpx2.BaseTransport):
    """A transport for ``httpx2.Client`` that leases a proxy for each request.

    Parameters and errors are those of :class:`pharox.integrations.httpx.PharoxTransport`;
    ``transport_options`` are arguments of ``httpx.HTTPTransport``.
    """

    def __init__(
        self,
        manager: ProxyManager,
        pool: str,
        *,
        report: bool = True,
        transport_options: Mapping[str, Any] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        self._transport = _Transport(
            manager, pool, report=report, transport_options=transport_options, **options
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request through a proxy that is leased for it."""
        with _as_errors_of_httpx2(request):
            answer = self._transport.handle_request(_of_httpx(request, _Sent(request.stream)))
        return _of_httpx2(answer, _Body(answer.stream, request))

    def close(self) -> None:
        """Close all connections, and give back what is leased for responses that are open."""
        self._transport.close()


class AsyncPharoxTransport(httpx2.AsyncBaseTransport):
    """A transport for ``httpx2.AsyncClient`` that leases a proxy for each request.

    Parameters and errors are those of :class:`PharoxTransport`, with an
    :class:`pharox.AsyncProxyManager`.
    """

    def __init__(
        self,
        manager: AsyncProxyManager,
        pool: str,
        *,
        report: bool = True,
        transport_options: Mapping[str, Any] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        self._transport = _AsyncTransport(
            manager, pool, report=report, transport_options=transport_options, **options
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request through a proxy that is leased for it."""
        with _as_errors_of_httpx2(request):
            asked = _of_httpx(request, _AsyncSent(request.stream))
            answer = await self._transport.handle_async_request(asked)
        return _of_httpx2(answer, _AsyncBody(answer.stream, request))

    async def aclose(self) -> None:
        """Close all connections, and give back what is leased for responses that are open."""
        await self._transport.aclose()


def _of_httpx(request: httpx2.Request, body: Any) -> httpx.Request:
    return httpx.Request(
        request.method,
        str(request.url),
        headers=request.headers.raw,
        stream=body,
        extensions=request.extensions,
    )


def _of_httpx2(answer: httpx.Response, body: Any) -> httpx2.Response:
    return httpx2.Response(
        answer.status_code, headers=answer.headers.raw, stream=body, extensions=answer.extensions
    )


@contextmanager
def _as_errors_of_httpx2(request: httpx2.Request) -> Iterator[None]:
    """Raise httpx2's error of the same name for one of httpx; others, such as ours, as they are."""
    try:
        yield
    except httpx.TransportError as error:
        names = (kind.__name__ for kind in type(error).__mro__)
        kind = next(getattr(httpx2, name) for name in names if hasattr(httpx2, name))
        raise kind(str(error), request=request) from error


class _Sent(httpx.SyncByteStream):
    """The body of a request of httpx2, for httpx."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream


class _AsyncSent(httpx.AsyncByteStream):
    """The asyncio form of :class:`_Sent`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part


class _Body(httpx2.SyncByteStream):
    """The body of an answer of httpx, for httpx2."""

    def __init__(self, stream: Any, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        with _as_errors_of_httpx2(self._request):
            yield from self._stream

    def close(self) -> None:
        with _as_errors_of_httpx2(self._request):
            self._stream.close()


class _AsyncBody(httpx2.AsyncByteStream):
    """The asyncio form of :class:`_Body`."""

    def __init__(self, stream: Any, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_errors_of_httpx2(self._request):
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        with _as_errors_of_httpx2(self._request):
            await self._stream.aclose()
