"""Leased proxies for a crawler of Crawlee: one for each request, kept until the request has ended.

    urls = pharox_urls(manager, "residential")
    crawler = HttpCrawler(
        proxy_configuration=ProxyConfiguration(new_url_function=urls),
        session_pool=urls.session_pool(),
    )

Crawlee asks for a URL in the task of a request, and tells nobody when it no longer needs it. So the
lease is held until that task ends, however it ends. The id of the request's session is the key of a
sticky session, as Crawlee wants one proxy for a session.

What became of a request is what Crawlee makes of it for the session: ``mark_good``, ``mark_bad``
and ``retire``, with the exception that they were called for. Sessions of ``urls.session_pool()``
say so. Without them only the request can be looked at, which tells less.

A crawl ends if no URL is returned. So a miss that may pass is waited for as long as it takes, with
a warning each half a minute, unless ``wait_seconds`` says otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack
from weakref import WeakKeyDictionary, ref

from ..effects import Calls
from ..errors import InvalidInputError, LeaseLostError, ProxyUnavailableError
from ..manager.async_proxy_manager import AsyncProxyManager
from ..manager.holding import Holding
from ..manager.options import WAIT_S, PoolOptions
from ..models import Lease, MissReason, Outcome, Sticky, StickyPolicy
from ..storage.closing import before_close
from ._core import give_back_async, open_async, require, url_resolving_there

require("crawlee", "1.4")

from crawlee._request import RequestState  # noqa: E402 - after it is known to be there
from crawlee.errors import SessionError  # noqa: E402
from crawlee.sessions import Session, SessionPool  # noqa: E402

from ._crawlee_errors import outcome_in_crawl  # noqa: E402

if TYPE_CHECKING:
    from crawlee import Request

logger = logging.getLogger("pharox")


class _Held:
    """The lease of one request, and whether anybody has said what became of it."""

    def __init__(self, session_id: str | None, request: Request | None, holding: Holding) -> None:
        self.holding, self.session_id = holding, session_id
        self._request = request
        self._rotations = _rotations_of(request)
        self._is_marked = self._is_told = False
        holding.call_when_lost(self._on_lost)

    @property
    def url(self) -> str | None:
        """The URL of the request."""
        return None if self._request is None else self._request.url

    def tell(self, outcome: Outcome | None) -> None:
        """Note what became of the request, once: the first who says so knows most."""
        self._is_marked = True
        if not self._is_told and outcome is not None and self.url is not None:
            self._is_told = True
            self.holding.note(outcome, target=self.url)

    def tell_by_request(self, *, marks: bool) -> None:
        """Note what the request itself shows, when its task has ended.

        ``marks`` says whether sessions tell of everything but of the last refusal, after which
        Crawlee rotates no more.
        """
        if self._request is None or self._is_marked:
            return
        state = self._request.state
        if _rotations_of(self._request) > self._rotations:
            self.tell(Outcome.blocked(note="Crawlee rotated the session"))
        elif marks and self.session_id is not None and state in _FAILED:
            self.tell(Outcome.blocked(note="Crawlee rotated the session no more"))
        elif state is RequestState.DONE:
            self.tell(Outcome.ok())

    def _on_lost(self, _: Lease, error: LeaseLostError) -> None:
        # The task is Crawlee's: to cancel it would end the crawl.
        logger.warning("pharox.lease.lost: while %s was crawled: %s", self.url, error)


_FAILED = (RequestState.ERROR, RequestState.ERROR_HANDLER)
"""How a request ends that was refused once too often; before 1.11 as the second."""

_held: ContextVar[_Held | None] = ContextVar("pharox_crawlee_held", default=None)
"""The lease of the request that this task, or what it has started, works on."""


class PharoxSession(Session):
    """A session whose ``mark_good``, ``mark_bad`` and ``retire`` are outcomes.

    Called by hand, in a request's handler, ``retire`` says that the site refused the proxy, and
    ``mark_bad`` that something failed. Called by Crawlee, they are for the exception at hand.
    """

    def mark_good(self) -> None:
        """Mark the session as good, and the request as answered."""
        if (held := _held.get()) is not None:
            held.tell(Outcome.ok())
        super().mark_good()

    def mark_bad(self) -> None:
        """Mark the session as bad; the request's exception says what failed."""
        if (held := _held.get()) is not None:
            # Crawlee wraps what it calls this for. An exception of its own has no such attribute.
            error = getattr(sys.exception(), "wrapped_exception", None)
            by_hand = Outcome.unclear(note="mark_bad")
            held.tell(by_hand if error is None else outcome_in_crawl(error, held.url))
        super().mark_bad()

    def retire(self) -> None:
        """Retire the session: the site has refused the proxy, or the proxy has failed."""
        if (held := _held.get()) is not None:
            error = sys.exception()
            is_crawlees = isinstance(error, SessionError)
            by_hand = Outcome.blocked(note="retire")
            held.tell(outcome_in_crawl(error, held.url) if is_crawlees else by_hand)
        super().retire()


class PharoxUrls:
    """The URLs of leased proxies, as ``ProxyConfiguration(new_url_function=...)`` asks for them.

    Made by :func:`pharox_urls`.
    """

    def __init__(
        self,
        manager: AsyncProxyManager,
        pool: str,
        sessions: StickyPolicy | None,
        options: PoolOptions,
        *,
        report: bool,
        for_browsers: bool,
    ) -> None:
        self._manager, self._pool_name, self._sessions = manager, pool, sessions
        self._options, self._report, self._for_browsers = options, report, for_browsers
        self._of_tasks: WeakKeyDictionary[asyncio.Task[Any], _Held] = WeakKeyDictionary()
        self._returning: set[asyncio.Task[None]] = set()
        self._makes_sessions = False
        before_close(manager.storage, partial(_returning_all, ref(self)))

    async def __call__(self, session_id: str | None = None, request: Request | None = None) -> str:
        """Lease a proxy until this task ends, and return its URL.

        Raises
        ------
        ProxyUnavailableError
            If nothing will be free, or nothing was free in ``wait_seconds``.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is a coroutine's
        held = self._of_tasks.get(task)
        if held is None or held.session_id != session_id:
            held = await self._lease(session_id, request)
            self._of_tasks[task] = held
            task.add_done_callback(partial(self._end, held))
        _held.set(held)
        proxy = held.holding.lease.proxy
        return proxy.url if self._for_browsers else url_resolving_there(proxy)

    def session_pool(self, **options: Any) -> SessionPool:
        """Return a pool of sessions that say what became of requests.

        Parameters
        ----------
        options:
            Those of ``crawlee.sessions.SessionPool``; ``create_session_settings`` are of its
            sessions.
        """
        settings = options.pop("create_session_settings", None) or {}
        if "create_session_function" in options:
            raise InvalidInputError(
                "make your own sessions of PharoxSession, in a pool of your own"
            )
        self._makes_sessions = True
        return SessionPool(create_session_function=partial(PharoxSession, **settings), **options)

    async def _lease(self, session_id: str | None, request: Request | None) -> _Held:
        options: PoolOptions = {"wait_seconds": WAIT_S, **self._options}
        if request is not None:
            options.setdefault("target", request.url)
        if session_id is not None and self._sessions is not None:
            options["sticky"] = Sticky(session_id, policy=self._sessions, shared=True)
            # The session's proxy may be on its way back, from any session: then it is not busy.
            if self._returning:
                await asyncio.wait(set(self._returning))
        hold = partial(_Held, session_id, request)
        while True:
            try:
                return await open_async(
                    self._manager, self._pool_name, hold, report=self._report, **options
                )
            except ProxyUnavailableError as error:
                if not _may_pass(error) or "wait_seconds" in self._options:
                    raise
                logger.warning("pharox.crawl.waits: %s", error)

    def _end(self, held: _Held, task: asyncio.Task[Any]) -> None:
        """Give a lease back whose request has ended."""
        if not task.cancelled() and task.exception() is None:
            held.tell_by_request(marks=self._makes_sessions)
        returning = task.get_loop().create_task(_give_back(held.holding))
        self._returning.add(returning)
        returning.add_done_callback(self._returning.discard)


def pharox_urls(
    manager: AsyncProxyManager,
    pool: str,
    *,
    sessions: StickyPolicy | None = "prefer",
    report: bool = True,
    for_browsers: bool = False,
    **options: Unpack[PoolOptions],
) -> PharoxUrls:
    """Return what gives a crawler the URL of a leased proxy for each request.

    Parameters
    ----------
    manager:
        Who leases.
    pool:
        The pool.
    sessions:
        What happens while the proxy of a session is not free: "prefer" lends another, "require"
        waits for it. None binds no proxy to a session. Sessions share proxies.
    report:
        Whether to report what became of requests.
    for_browsers:
        Whether the URLs are for browsers, which know no ``socks5h`` and resolve no names with
        SOCKS anyway.
    options:
        As for :meth:`pharox.AsyncProxyManager.pool`; the target is the request's URL unless given.

    Raises
    ------
    InvalidInputError
        If an option is not valid, or the manager is none for coroutines.
    """
    if not isinstance(manager, AsyncProxyManager):
        raise InvalidInputError("a crawler of Crawlee needs an AsyncProxyManager", value=manager)
    if "sticky" in options:
        raise InvalidInputError("Crawlee's sessions are the sticky sessions; say sessions=")
    manager.pool(pool, **options)  # It raises what is wrong with them.
    if sessions is not None:
        Sticky("any", policy=sessions)
    return PharoxUrls(manager, pool, sessions, options, report=report, for_browsers=for_browsers)


def _rotations_of(request: Request | None) -> int:
    return 0 if request is None else request.session_rotation_count or 0


def _may_pass(error: ProxyUnavailableError) -> bool:
    return error.reason is None or MissReason(error.reason).may_pass


async def _give_back(holding: Holding) -> None:
    try:
        await give_back_async(holding)
    except Exception:
        logger.exception("pharox.release.failed: lease %s", holding.lease.id)


def _returning_all(urls: ref[PharoxUrls]) -> Calls[None]:
    """Wait for what is being given back, before the storage is closed."""
    yield partial(asyncio.sleep, 0)  # A task that has just ended tells of it in the next turn.
    known = urls()
    if known is not None and known._returning:
        yield partial(asyncio.wait, set(known._returning))
