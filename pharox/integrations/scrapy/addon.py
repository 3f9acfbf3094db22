"""The add-on: it reads the settings, and puts the handlers and the middleware in place."""

from __future__ import annotations

from scrapy.crawler import Crawler
from scrapy.exceptions import NotConfigured
from scrapy.settings import SETTINGS_PRIORITIES, BaseSettings

from .crawl import Crawl
from .handlers import LeasedHttpHandler, LeasedHttpsHandler
from .middleware import PRIORITY, PharoxMiddleware
from .options import CrawlOptions

_HANDLERS = (LeasedHttpHandler, LeasedHttpsHandler)
_FIRST = max(SETTINGS_PRIORITIES.values())


class PharoxAddon:
    """Have a crawl go through leased proxies: ``ADDONS = {"...PharoxAddon": 500}``.

    ``PHAROX_POOL`` names the pool. All other settings have defaults; the how-to lists them.
    """

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self.crawl: Crawl | None = None

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> PharoxAddon:
        """Make the add-on of a crawl."""
        return cls(crawler)

    def update_settings(self, settings: BaseSettings) -> None:
        """Put handlers and middleware into the settings.

        Raises
        ------
        NotConfigured
            If ``PHAROX_ENABLED`` is off.
        InvalidInputError
            If a setting is missing or invalid: a crawl without proxies would show whose it is.
        """
        if not settings.getbool("PHAROX_ENABLED", True):
            raise NotConfigured
        options = CrawlOptions.of(settings)
        handlers = settings["DOWNLOAD_HANDLERS"]
        schemes = {each.scheme: each for each in _HANDLERS}
        known = {scheme: handlers[scheme] for scheme in schemes if scheme in handlers}
        for scheme, handler in schemes.items():
            if known.get(scheme, "") is not None:  # None: the scheme is switched off.
                handlers.set(scheme, handler, priority=_FIRST)
        settings.setdefault_in_component_priority_dict(
            "DOWNLOADER_MIDDLEWARES", PharoxMiddleware, PRIORITY
        )
        self.crawl = Crawl(self._crawler, options, known)
