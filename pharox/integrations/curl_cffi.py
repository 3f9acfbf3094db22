"""curl_cffi through a leased proxy: a session a lease, since curl's connections keep credentials.

Every request goes through the leased proxy, which resolves names with SOCKS. curl follows redirects
by itself, so of several hops the last is what is reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar, Unpack
from urllib.parse import urljoin, urlsplit

from ..errors import InvalidInputError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.holding import Holding
from ..manager.options import PoolOptions
from ..manager.proxy_manager import ProxyManager
from ..models import MOST_BODY_BYTES
from ._core import give_back, give_back_async, open_async, open_now, require, url_resolving_there

require("curl-cffi", "0.10")

from curl_cffi import CurlOpt, requests  # noqa: E402 - after what says which version is needed
from curl_cffi._wrapper import ffi, lib  # type: ignore[import-not-found]  # noqa: E402

T = TypeVar("T")

_OUR_OWN = ("proxies", "proxy", "proxy_auth", "response_class")


def session(
    manager: ProxyManager,
    pool: str,
    *,
    report: bool = True,
    session_options: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> LeasedSession:
    """Lease a proxy and return a session of curl_cffi that goes through it.

    Parameters
    ----------
    manager:
        Who leases.
    pool:
        The pool.
    report:
        Whether each response and each failure is reported in the background, with the host as
        target.
    session_options:
        Further arguments of ``curl_cffi.requests.Session``, such as ``impersonate``.
    options:
        As for :meth:`pharox.ProxyManager.pool`: the lease is kept alive, and waited for up to 30
        seconds.

    Returns
    -------
    LeasedSession
        A ``curl_cffi.requests.Session``. Close it, or use it in a ``with`` block, to give the
        lease back.

    Raises
    ------
    ProxyUnavailableError
        If nothing was free; ``reason`` says why.
    InvalidInputError
        If ``session_options`` choose the way.
    """
    make = partial(LeasedSession, options=_checked("session_options", session_options or {}))
    return open_now(manager, pool, make, report=report, **options)


@asynccontextmanager
async def async_session(
    manager: AsyncProxyManager,
    pool: str,
    *,
    report: bool = True,
    session_options: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> AsyncIterator[AsyncLeasedSession]:
    """Lease a proxy, and open an ``AsyncSession`` of curl_cffi that goes through it.

    Parameters and errors are those of :func:`session`.

    Yields
    ------
    AsyncLeasedSession
        The session; its lease is given back after the block.
    """
    make = partial(AsyncLeasedSession, options=_checked("session_options", session_options or {}))
    found = await open_async(manager, pool, make, report=report, **options)
    error: BaseException | None = None
    try:
        yield found
    except BaseException as raised:
        error = raised
        raise
    finally:
        try:
            await found.close()
        finally:
            await give_back_async(found._holding, error)


class LeasedSession(requests.Session[Any]):
    """A ``curl_cffi.requests.Session`` whose requests go through a leased proxy.

    Made by :func:`session`. A request after the lease has ended raises
    :class:`pharox.LeaseEndedError`.

    Attributes
    ----------
    lease:
        What is given back when the session is closed.
    """

    def __init__(self, holding: Holding, options: dict[str, Any]) -> None:
        self._holding, self.lease = holding, holding.lease
        self._abort = _aborting(holding)
        super().__init__(**_through(holding, options))

    def request(self, method: Any, url: str, *arguments: Any, **options: Any) -> Any:
        """Send a request, as ``curl_cffi.requests.Session.request`` does.

        Raises
        ------
        InvalidInputError
            If a proxy is given.
        """
        self._holding.check()
        _checked("a request", options)
        _have_abort(self.curl, self._abort)
        sent = _Request(self._holding, urljoin(self.base_url or "", url))
        with sent.reporting():
            response = super().request(method, url, *arguments, **options)
        return sent.answered(response, is_stream=bool(options.get("stream")))

    def ws_connect(self, *arguments: Any, **options: Any) -> Any:
        """Open a WebSocket, as ``Session.ws_connect`` does; it is not reported."""
        self._holding.check()
        return super().ws_connect(*arguments, **_checked("a request", options))

    def __exit__(self, *error: Any) -> None:
        self._close(error[1])

    def close(self) -> None:
        """Close the connections and give the lease back."""
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        try:
            super().close()
        finally:
            give_back(self._holding, error)


class AsyncLeasedSession(requests.AsyncSession[Any]):
    """A ``curl_cffi.requests.AsyncSession`` whose requests go through a leased proxy.

    Made by :func:`async_session`.

    Attributes
    ----------
    lease:
        What is given back after the block.
    """

    def __init__(self, holding: Holding, options: dict[str, Any]) -> None:
        self._holding, self.lease = holding, holding.lease
        self._running: set[asyncio.Future[Any]] = set()
        super().__init__(**_through(holding, options))
        holding.call_when_lost(self._on_lost)

    async def request(self, method: Any, url: str, *arguments: Any, **options: Any) -> Any:
        """Send a request, as ``curl_cffi.requests.AsyncSession.request`` does.

        Raises
        ------
        InvalidInputError
            If a proxy is given.
        """
        self._holding.check()
        _checked("a request", options)
        sent = _Request(self._holding, urljoin(self.base_url or "", url), self._running)
        with sent.reporting():
            response = await sent.until_lost(super().request(method, url, *arguments, **options))
        return sent.answered(response, is_stream=bool(options.get("stream")))

    def ws_connect(self, *arguments: Any, **options: Any) -> Any:
        """Open a WebSocket, as ``AsyncSession.ws_connect`` does; it is not reported."""
        self._holding.check()
        return super().ws_connect(*arguments, **_checked("a request", options))

    def _on_lost(self, *_: object) -> None:
        """End what is in flight: whoever waits for an answer has an error at once."""
        for task in list(self._running):
            task.cancel()


class _Request:
    """A request that was sent, and what is reported of it."""

    def __init__(
        self, holding: Holding, url: str, running: set[asyncio.Future[Any]] | None = None
    ) -> None:
        self._holding, self._target = holding, urlsplit(url).hostname
        self._running = set() if running is None else running

    def answered(self, response: Any, *, is_stream: bool) -> Any:
        """Report a response, and again if its body breaks off later.

        It is judged by its body as well, unless that is still to come.
        """
        self._target = urlsplit(str(response.url)).hostname or self._target
        is_judged = not is_stream and self._holding.needs_body(self._target)
        body = response.content[:MOST_BODY_BYTES] if is_judged else None
        self._holding.note(response, target=self._target, body=body)
        response._sent = self
        return response

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Report a failure; of one that comes of a lost lease, raise that instead."""
        try:
            yield
        except Exception as error:
            self._check_lost(error)
            self._holding.note(error, target=self._target)
            raise

    def _check_lost(self, error: BaseException | None = None) -> None:
        if self._holding.is_lost:
            raise self._holding.lost_error() from error

    def watched(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the parts of a body until its end, or the lease's."""
        with self.reporting():
            for part in parts:
                self._check_lost()
                yield part

    async def until_lost(self, waiting: Awaitable[T]) -> T:
        """Wait for something that ends when the lease is lost."""
        task = asyncio.ensure_future(waiting)
        self._running.add(task)
        try:
            return await task
        except asyncio.CancelledError as error:
            own = asyncio.current_task()
            if own is None or not own.cancelling():
                self._check_lost(error)
            raise
        finally:
            self._running.discard(task)


class _Response(requests.Response):
    """A response that reports if it breaks off in its body, where that is read as a stream."""

    _sent: _Request | None = None

    def iter_content(self, *arguments: Any, **options: Any) -> Iterator[bytes]:
        parts = super().iter_content(*arguments, **options)  # type: ignore[no-untyped-call]
        return parts if self._sent is None else self._sent.watched(parts)

    async def aiter_content(self, *arguments: Any, **options: Any) -> AsyncIterator[bytes]:
        sent = self._sent
        parts = super().aiter_content(*arguments, **options)  # type: ignore[no-untyped-call]
        if sent is None:
            async for part in parts:
                yield part
            return
        try:
            with sent.reporting():
                while (part := await sent.until_lost(anext(parts, None))) is not None:
                    sent._check_lost()
                    yield part
        finally:
            task: Any = self.astream_task
            if sent._holding.is_lost and task is not None:
                task.cancel()  # Nobody waits for the rest.


def _checked(what: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options if they leave the way alone."""
    if chosen := [name for name in _OUR_OWN if options.get(name) is not None]:
        raise InvalidInputError(
            f"requests go through the leased proxy; {what} cannot have {', '.join(chosen)}"
        )
    return dict(options)


def _through(holding: Holding, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a session that goes through a lease's proxy alone."""
    return {
        **options,
        "proxies": {"all": url_resolving_there(holding.lease.proxy)},
        "response_class": _Response,
        # Else NO_PROXY of the environment would lead past it.
        "curl_options": {**(options.get("curl_options") or {}), CurlOpt.NOPROXY: ""},
    }


def _aborting(holding: Holding) -> Any:
    """Return a function for curl that has it end a transfer when the lease is lost.

    curl calls it often, and at least once a second. curl_cffi has no public way to set it.
    """

    def progress(*_: object) -> int:
        return int(holding.is_lost)

    return ffi.callback("int(void *, int64_t, int64_t, int64_t, int64_t)", progress)


def _have_abort(curl: Any, abort: Any) -> None:
    """Set what ends a transfer on a handle of curl; copies of the handle have it too."""
    lib._curl_easy_setopt(curl._curl, CurlOpt.XFERINFOFUNCTION, abort)
    curl.setopt(CurlOpt.NOPROGRESS, 0)
