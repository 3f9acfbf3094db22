"""What the parts of one crawl share: its options, its ledger, its leases and its statistics.

The ledger is connected when the spider is opened. It is left when the spider is closed, or
when the process is stopped before that, as by a second Ctrl-C: each lease is given back first.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID
from weakref import WeakKeyDictionary

from scrapy import signals
from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.http import Request
from scrapy.utils.httpobj import urlparse_cached
from scrapy.utils.reactor import is_asyncio_reactor_installed

from ...connecting import connect_async
from ...errors import InvalidInputError, ProxyUnavailableError
from ...manager.async_proxy_manager import AsyncProxyManager
from ...models import Outcome, OutcomeKind, ProxyProtocol
from .leases import SPIDER, Leases, Loan, Wanted, may_pass
from .options import CrawlOptions, job_of

logger = logging.getLogger("pharox")

SESSION = "pharox_session"
"""The key of ``request.meta`` that names a session: its requests go through one proxy."""

_REDIRECTS = range(300, 400)
_STOP_S = 10.0

ADDON = "pharox.integrations.scrapy.PharoxAddon"
"""The path of the add-on, as settings name it."""


@dataclass(frozen=True)
class Exchange:
    """A request's use of a lease, and what became of it."""

    loan: Loan
    outcome: Outcome | None

    @property
    def is_of_the_proxy(self) -> bool:
        """Whether another proxy may do better."""
        kinds = (OutcomeKind.BLOCKED, OutcomeKind.PROXY_FAILED, OutcomeKind.UNCLEAR)
        return self.outcome is not None and self.outcome.kind in kinds


class Crawl:
    """One crawl: made by the add-on, and found by the other parts with :meth:`of`."""

    def __init__(self, crawler: Crawler, options: CrawlOptions, inner: dict[str, Any]) -> None:
        self._crawler, self.options, self._inner = crawler, options, inner
        self.exchanges: WeakKeyDictionary[Request, Exchange] = WeakKeyDictionary()
        self._leases: Leases | None = None
        self._storage: Any = None
        self._opening: asyncio.Lock | None = None
        self._guard: asyncio.Task[None] | None = None
        self._trigger: Any = None
        self._closing: asyncio.Future[None] | None = None
        self._is_stopping = False
        crawler.signals.connect(self._on_spider_opened, signals.spider_opened)
        crawler.signals.connect(self._on_spider_closed, signals.spider_closed)

    @classmethod
    def of(cls, crawler: Crawler) -> Crawl:
        """Return the crawl of a crawler.

        Raises
        ------
        NotConfigured
            If the add-on has made none.
        """
        for addon in crawler.addons.addons:
            crawl = getattr(addon, "crawl", None)
            if isinstance(crawl, cls):
                return crawl
        raise NotConfigured(f"pharox needs its add-on: ADDONS = {{{ADDON!r}: 500}}")

    def inner_handler(self, scheme: str) -> Any:
        """Return the path of the handler that downloads pages of a scheme."""
        if scheme in self._inner:
            return self._inner[scheme]
        # Read now: without a reactor Scrapy changes it after the add-ons.
        return self._crawler.settings["DOWNLOAD_HANDLERS_BASE"][scheme]

    def check_event_loop(self) -> None:
        """Raise an error unless Scrapy runs in an event loop of asyncio."""
        if self._has_reactor and not is_asyncio_reactor_installed():
            raise InvalidInputError(
                "pharox needs Scrapy's asyncio reactor, which is the default: "
                "remove TWISTED_REACTOR from the settings"
            )

    def count(self, name: str, number: float = 1) -> None:
        """Add to a statistic of the crawl."""
        stats = self._crawler.stats
        if stats is not None:
            stats.inc_value(f"pharox/{name}", number)  # type: ignore[arg-type] # seconds, too

    async def borrow(
        self, request: Request, protocols: frozenset[ProxyProtocol], tried: tuple[UUID, ...]
    ) -> Loan:
        """Return a lease for a request to go by; wait for it if need be."""
        host = urlparse_cached(request).hostname
        key, session = self._key_of(request, host)
        wanted = Wanted(
            target=host if self.options.targets else None,
            key=key,
            session=session,
            protocols=protocols,
            tried=tried,
        )
        began = asyncio.get_running_loop().time()
        try:
            leases = await self._opened()
            return await leases.borrow(wanted)
        except ProxyUnavailableError as error:
            if not may_pass(error):
                self._stop("pharox_no_proxy", f"{error} {self._usable(protocols)}")
            raise
        finally:
            waited = asyncio.get_running_loop().time() - began
            self.count("wait_seconds", round(waited, 3))

    def end(self, loan: Loan, outcome: Outcome | None, *, retire: bool) -> None:
        """End a request's use of a lease."""
        if outcome is not None:
            self.count(f"outcome/{outcome.kind}")
        if self._leases is not None:
            self._leases.end(loan, outcome, retire=retire)

    def is_judged_later(self, exchange: Exchange) -> bool:
        """Return whether the project's own judgement of a response decides on what is reported.

        The response of a redirect never gets as far as the middleware.
        """
        outcome = exchange.outcome
        return (
            self.options.is_blocked is not None
            and outcome is not None
            and outcome.kind is OutcomeKind.OK
            and outcome.status not in _REDIRECTS
        )

    def judge(self, exchange: Exchange, *, is_blocked: bool) -> Outcome:
        """Report a response that the project has judged, and return what it came to."""
        outcome = exchange.outcome
        assert outcome is not None  # noqa: S101 - it is what was to be judged
        if is_blocked:
            outcome = outcome.model_copy(
                update={"kind": OutcomeKind.BLOCKED, "note": "PHAROX_IS_BLOCKED"}
            )
        self.count(f"outcome/{outcome.kind}")
        if self._leases is not None:
            self._leases.note(exchange.loan, outcome)
            if is_blocked:
                self._leases.retire(exchange.loan)
        return outcome

    async def close(self) -> None:
        """Give all leases back, write reports, and leave the ledger. It never raises.

        Who calls it while it is under way waits for that: the process may end afterwards.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                if self._leases is not None:
                    await self._leases.close()
                    await self._leases.manager.flush_reports()
        except Exception as error:
            logger.warning("pharox.crawl.left: leases that are left run out: %r", error)
        finally:
            await self._left()

    async def _left(self) -> None:
        storage, self._storage = self._storage, None
        if storage is not None and self.options.storage is None:
            try:
                await storage.close()
            except Exception:
                logger.exception("pharox.crawl.left: the ledger could not be left")
        if self._guard is not None and self._guard is not asyncio.current_task():
            self._guard.cancel()
        if self._trigger is not None:
            from twisted.internet import reactor  # noqa: PLC0415 - Scrapy has installed it

            trigger, self._trigger = self._trigger, None
            cast("Any", reactor).removeSystemEventTrigger(trigger)

    @property
    def _has_reactor(self) -> bool:
        return self._crawler.settings.getbool("TWISTED_REACTOR_ENABLED", True)

    def _key_of(self, request: Request, host: str | None) -> tuple[Hashable, str | None]:
        """Return by what key a request shares its lease, and its sticky session."""
        session = request.meta.get(SESSION)
        if session is not None:
            return ("session", str(session)), str(session)
        if self.options.lease_per == "domain":
            return ("domain", host), None
        return (SPIDER, None) if self.options.lease_per == "spider" else (None, None)

    async def _opened(self) -> Leases:
        """Connect to the ledger once, and return the crawl's leases."""
        if self._leases is None:
            self._opening = self._opening or asyncio.Lock()
            async with self._opening:
                if self._leases is None:
                    await self._open()
        assert self._leases is not None  # noqa: S101 - it was opened, or that has raised
        return self._leases

    async def _open(self) -> None:
        options, spider = self.options, self._crawler.spider
        name = getattr(spider, "name", "spider")
        try:
            self._storage = await self._connect()
            manager = AsyncProxyManager(self._storage)
            leases = Leases(
                manager,
                options.pool,
                {**options.lease, "consumer": options.consumer or name},
                filters=options.filters,
                correlation_id=options.correlation_id or f"{name}/{job_of(spider)}",
                session_seconds=options.session_seconds,
                idle_seconds=options.idle_seconds,
                report=options.report,
                count=self.count,
            )
            # Nothing is leased yet: whether the ledger is there, and its schema, shows here.
            await self._storage.get_pool_stats(options.pool)
        except Exception as error:
            self._stop("pharox_unavailable", str(error))
            raise
        self._leases = leases
        self._watch()

    async def _connect(self) -> Any:
        if self.options.storage is None:
            return await connect_async(self.options.database_url, schema=self.options.schema)
        storage = self.options.storage()
        return await storage if inspect.isawaitable(storage) else storage

    def _watch(self) -> None:
        """Have leases given back if the process is stopped before the spider is closed."""
        if self._has_reactor:
            from twisted.internet import reactor  # noqa: PLC0415 - Scrapy has installed it
            from twisted.internet.defer import Deferred  # noqa: PLC0415

            def stopping() -> Any:
                self._trigger = None
                return Deferred.fromFuture(asyncio.ensure_future(self.close()))

            add = cast("Any", reactor).addSystemEventTrigger
            self._trigger = add("before", "shutdown", stopping)
        else:
            self._guard = asyncio.get_running_loop().create_task(self._closing_when_cancelled())

    async def _closing_when_cancelled(self) -> None:
        """Wait for the end of the event loop, where all tasks are cancelled."""
        try:
            await asyncio.Event().wait()
        finally:
            # Not in a task of its own, which would be cancelled, too.
            await self._close()

    async def _on_spider_opened(self) -> None:
        """Connect before the first request. If that fails, the first request tries it again."""
        with suppress(Exception):
            await self._opened()

    async def _on_spider_closed(self) -> None:
        await self.close()

    def _usable(self, protocols: frozenset[ProxyProtocol]) -> str:
        names = ", ".join(sorted(protocols))
        return (
            f"The download handler goes through proxies of {names} only: see DOWNLOAD_HANDLERS "
            "and PHAROX_PROTOCOLS in pharox's page on Scrapy."
        )

    def _stop(self, reason: str, why: str) -> None:
        """Close the spider, once: no request of it can be sent."""
        engine, spider = self._crawler.engine, self._crawler.spider
        if self._is_stopping or engine is None or spider is None or not engine.running:
            return
        self._is_stopping = True
        logger.error("pharox.crawl.stopped: %s", why)
        if hasattr(engine, "close_spider_async"):
            task = asyncio.get_running_loop().create_task(engine.close_spider_async(reason=reason))
            self._stopping = task  # the loop itself keeps it only weakly
        else:  # 2.13
            engine.close_spider(spider, reason)
