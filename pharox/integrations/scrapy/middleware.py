"""The downloader middleware: what was refused, or failed because of a proxy, is tried with another.

Retries are Scrapy's own: its counts, its settings and its ``meta`` keys. What its RetryMiddleware
retries anyway is left to that. A response comes to this middleware before that one, and after it
was decompressed, so that a project's own judgement reads the page.
"""

from __future__ import annotations

import logging
from typing import Any

from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.http import Request, Response
from scrapy.utils.misc import load_object

from ...errors import DatabaseError, LeaseEndedError, ProxyUnavailableError
from ...models import Outcome, OutcomeKind
from .crawl import Crawl, Exchange
from .handlers import TRIED
from .leases import may_pass

logger = logging.getLogger("pharox")

PRIORITY = 560
"""Between RetryMiddleware, at 550, and HttpCompressionMiddleware, at 590."""

_RETRIED = (OutcomeKind.BLOCKED, OutcomeKind.PROXY_FAILED)


class PharoxMiddleware:
    """Retries with another proxy. The add-on puts it in place."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._crawl = Crawl.of(crawler)
        self._crawl.check_event_loop()
        settings = crawler.settings
        self._statuses = {int(each) for each in settings.getlist("RETRY_HTTP_CODES")}
        self._exceptions = tuple(
            load_object(each) if isinstance(each, str) else each
            for each in settings.getlist("RETRY_EXCEPTIONS")
        )

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> PharoxMiddleware:
        """Make the middleware of a crawl."""
        return cls(crawler)

    async def process_response(
        self, request: Request, response: Response, spider: Any = None
    ) -> Request | Response:
        """Retry a response that says that the proxy was refused, or does not work."""
        exchange = self._crawl.exchanges.pop(request, None)
        if exchange is None:
            return response
        outcome = exchange.outcome
        if self._crawl.is_judged_later(exchange):
            outcome = self._judged(request, response, exchange)
        if outcome is None or outcome.kind not in _RETRIED:
            return response
        if outcome.kind is OutcomeKind.BLOCKED and response.status in self._statuses:
            return response  # RetryMiddleware retries it.
        return self._retry(request, f"pharox_{outcome.kind}") or response

    async def process_exception(
        self, request: Request, exception: Exception, spider: Any = None
    ) -> Request | None:
        """Retry a request whose proxy failed, whose lease was lost, or that got none."""
        exchange = self._crawl.exchanges.pop(request, None)
        if isinstance(exception, self._exceptions):
            return None  # RetryMiddleware retries it.
        if isinstance(exception, ProxyUnavailableError):
            return self._retry(request, exception) if may_pass(exception) else None
        if isinstance(exception, DatabaseError | LeaseEndedError):
            return self._retry(request, exception)
        if exchange is not None and exchange.is_of_the_proxy:
            return self._retry(request, exception)
        return None

    def _judged(self, request: Request, response: Response, exchange: Exchange) -> Outcome:
        """Report what the project says of a response."""
        judge = self._crawl.options.is_blocked
        assert judge is not None  # noqa: S101 - there is something to judge with
        try:
            is_blocked = bool(judge(response))
        except Exception:
            logger.exception("pharox.judgement.failed: PHAROX_IS_BLOCKED raised for %s", response)
            is_blocked = False
        if is_blocked:
            tried = request.meta.get(TRIED, ())
            request.meta[TRIED] = [*tried, str(exchange.loan.lease.proxy_id)]
        return self._crawl.judge(exchange, is_blocked=is_blocked)

    def _retry(self, request: Request, reason: str | Exception) -> Request | None:
        """Return the request for another try, if it may have one."""
        if not self._crawl.options.retry or request.meta.get("dont_retry", False):
            return None
        spider = self._crawler.spider
        assert spider is not None  # noqa: S101 - whose request it is
        retry = get_retry_request(
            request,
            spider=spider,
            reason=reason,
            priority_adjust=request.meta.get("priority_adjust"),
        )
        if retry is not None:
            self._crawl.count("retried")
        return retry
