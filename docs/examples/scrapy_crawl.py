"""Crawl a site through leased proxies: ``python scrapy_crawl.py http://shop.example/``.

PHAROX_DATABASE_URL names the ledger; without it, it is the embedded one. The pool "residential" has
to be there: ``echo "http://192.0.2.11:8080" | pharox import - --pool residential``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess


class ShopSpider(scrapy.Spider):
    """Fetches ten pages; which proxy each came through, pharox says in ``meta``."""

    name = "shop"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for the pages."""
        for number in range(10):
            yield scrapy.Request(f"{sys.argv[1]}page/{number}")

    def parse(self, response: Any) -> Any:
        """Make an item of a page."""
        yield {"url": response.url, "proxy": response.meta["pharox_proxy"]}


SETTINGS = {
    "ADDONS": {"pharox.integrations.scrapy.PharoxAddon": 500},
    "PHAROX_POOL": "residential",
    "FEEDS": {"stdout:": {"format": "jsonlines"}},
    "LOG_LEVEL": "WARNING",
}

if __name__ == "__main__":
    process = CrawlerProcess(SETTINGS)
    process.crawl(ShopSpider)
    process.start()
