"""httpx with a proxy a request: transports for clients of one's own.

``manager.client`` leases one proxy for all requests of a client. Here each request leases one, for
its host, until its response is closed. Connections wait for the next lease of the same proxy and
are never used for another.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from functools import partial
from typing import Any, Unpack

import httpx
from httpx_socks import AsyncProxyTransport, SyncProxyTransport

from ..effects import Calls, call, call_async, run, run_async
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.clients import AsyncLeasedTransport, LeasedTransport, transport_through
from ..manager.holding import Holding, making
from ..manager.options import PoolOptions
from ..manager.pool_handle import Handle
from ..manager.proxy_manager import ProxyManager

MOST_IDLE = 32
"""How many transports wait for the next lease of their proxy; the ones longest idle are closed."""


class PharoxTransport(httpx.BaseTransport):
    """A transport for ``httpx.Client`` that leases a proxy for each request.

    Parameters
    ----------
    manager:
        Who leases.
    pool:
        The pool.
    report:
        Whether each response and each failure is reported in the background, with the host as
        target.
    transport_options:
        Arguments of ``httpx.HTTPTransport``: ``verify``, ``cert``, ``trust_env``, ``http1``,
        ``http2``, ``limits``.
    options:
        As for :meth:`pharox.ProxyManager.pool`: a lease is kept alive, and waited for up to 30
        seconds. ``target`` is the host of each request unless it is given; None for none.

    Raises
    ------
    ProxyUnavailableError
        By a request, if nothing was free; ``reason`` says why.
    LeaseLostError
        By a request, or while its response is read, if the lease was lost.
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
        through = partial(_through, transport_options, httpx.HTTPTransport, SyncProxyTransport)
        by_host = "target" not in options
        self._trips = _Trips(
            manager.pool(pool, **options), through, _Trip, report=report, by_host=by_host
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a proxy that is leased for it."""
        trip, response = run(self._trips.sending(request), call)
        response.stream = _Body(response.stream, self._trips, trip)
        return response

    def close(self) -> None:
        """Close all connections, and give back what is leased for responses that are open."""
        run(self._trips.closing(), call)


class AsyncPharoxTransport(httpx.AsyncBaseTransport):
    """A transport for ``httpx.AsyncClient`` that leases a proxy for each request.

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
        through = partial(
            _through, transport_options, httpx.AsyncHTTPTransport, AsyncProxyTransport
        )
        by_host = "target" not in options
        self._trips = _Trips(
            manager.pool(pool, **options), through, _AsyncTrip, report=report, by_host=by_host
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a proxy that is leased for it."""
        trip, response = await run_async(self._trips.sending(request), call_async)
        response.stream = _AsyncBody(response.stream, self._trips, trip)
        return response

    async def aclose(self) -> None:
        """Close all connections, and give back what is leased for responses that are open."""
        await run_async(self._trips.closing(), call_async)


class _Trip:
    """A request under way: its lease, and the transport that it has for itself meanwhile."""

    def __init__(self, transport: Any, holding: Holding) -> None:
        self.holding, self.transport = holding, transport
        self._leased = LeasedTransport(holding, transport)
        self.send = self._leased.handle_request
        holding.call_when_lost(self._on_lost)

    def _on_lost(self, *_: object) -> None:
        """End the request, as somebody else may use the proxy now."""
        self._leased.end_requests()


class _AsyncTrip:
    """The asyncio form of :class:`_Trip`."""

    def __init__(self, transport: Any, holding: Holding) -> None:
        self.holding, self.transport = holding, transport
        self._leased = AsyncLeasedTransport(holding, transport)
        self.send = self._leased.handle_async_request
        holding.call_when_lost(self._on_lost)

    def _on_lost(self, *_: object) -> None:
        """End the request, as somebody else may use the proxy now."""
        self._closing = asyncio.get_running_loop().create_task(self._leased.aclose())


class _Trips:
    """Leases a proxy for each request, and keeps transports for the next lease of their proxy.

    Threads share it.
    """

    def __init__(
        self, handle: Handle[Any], through: Any, kind: Any, *, report: bool, by_host: bool
    ) -> None:
        self._handle, self._through, self._kind = handle, through, kind
        self._report, self._by_host = report, by_host
        self._lock = threading.Lock()
        self._idle: OrderedDict[Any, str] = OrderedDict()  # transports with their proxy's URL
        self._open: set[Any] = set()
        self._is_closed = False

    def sending(self, request: httpx.Request) -> Calls[tuple[Any, httpx.Response]]:
        """Lease a proxy and send a request through it; it is leased until the trip ends."""
        if self._report:
            yield from self._handle._manager._reading_rules()
        by_host: PoolOptions = {"target": request.url.host or None} if self._by_host else {}
        lease = yield from self._handle._leasing(None, by_host)
        holding = Holding(self._handle._manager, lease, report=self._report)
        trip = yield from making(holding, self._begin)
        try:
            response = yield partial(trip.send, request)
        except GeneratorExit:
            raise
        except BaseException as error:
            yield from self.ending(trip, error)
            raise
        return trip, response

    def _begin(self, holding: Holding) -> Any:
        url = holding.lease.proxy.url
        with self._lock:
            found = next((each for each, of in reversed(self._idle.items()) if of == url), None)
            if found is not None:
                del self._idle[found]
        trip = self._kind(found or self._through(holding.lease.proxy), holding)
        with self._lock:
            self._open.add(trip)
        return trip

    def ending(self, trip: Any, error: BaseException | None = None) -> Calls[None]:
        """Give the lease of a trip back, once, and keep its connections if they are good."""
        with self._lock:
            if trip not in self._open:
                return
            self._open.discard(trip)
            surplus = self._keep(trip, error)
        try:
            for transport in surplus:
                yield _closing_of(transport)
        except GeneratorExit:
            raise
        except BaseException as raised:
            yield from trip.holding.giving_back(error or raised)
            raise
        yield from trip.holding.giving_back(error)

    def _keep(self, trip: Any, error: BaseException | None) -> list[Any]:
        """Put a transport aside, and return those that are to be closed."""
        if error is not None or trip.holding.is_lost or self._is_closed:
            return [trip.transport]
        self._idle[trip.transport] = trip.holding.lease.proxy.url
        return [self._idle.popitem(last=False)[0]] if len(self._idle) > MOST_IDLE else []

    def closing(self) -> Calls[None]:
        """End all trips and close all transports."""
        with self._lock:
            self._is_closed = True
            trips, idle = [*self._open], [*self._idle]
            self._idle.clear()
        for trip in trips:
            yield from self.ending(trip)
        for transport in idle:
            yield _closing_of(transport)


def _closing_of(transport: Any) -> Any:
    return getattr(transport, "aclose", None) or transport.close


def _through(options: Mapping[str, Any] | None, http: Any, socks: Any, proxy: Any) -> Any:
    """Return a transport of httpx through a proxy."""
    left = dict(options or {})
    transport = transport_through(proxy, left, http, socks)
    if unknown := left.keys() - {"trust_env"}:
        raise TypeError(f"transport_options cannot have {', '.join(sorted(unknown))}")
    return transport


class _Body(httpx.SyncByteStream):
    """The body of a response, with which its trip ends."""

    def __init__(self, stream: Any, trips: _Trips, trip: Any) -> None:
        self._stream, self._trips, self._trip = stream, trips, trip

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        run(_closing_body(self._stream.close, self._trips, self._trip), call)


class _AsyncBody(httpx.AsyncByteStream):
    """The asyncio form of :class:`_Body`."""

    def __init__(self, stream: Any, trips: _Trips, trip: Any) -> None:
        self._stream, self._trips, self._trip = stream, trips, trip

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        await run_async(_closing_body(self._stream.aclose, self._trips, self._trip), call_async)


def _closing_body(close: Any, trips: _Trips, trip: Any) -> Calls[None]:
    """Close a body and end its trip."""
    try:
        yield close
    except GeneratorExit:
        raise
    except BaseException as error:
        yield from trips.ending(trip, error)
        raise
    yield from trips.ending(trip)
