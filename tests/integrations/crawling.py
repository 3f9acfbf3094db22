"""A crawl as a process of its own: ``python -m tests.integrations.crawling < ORDER > REPORT``.

The order is JSON: the settings, what the spider asks for, and the proxies of a ledger in memory.
The report is a line of JSON: each page with what its proxy said, what failed, and the statistics.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote, urlsplit

import scrapy
from pydantic import SecretStr
from scrapy.crawler import Crawler, CrawlerProcess

from pharox import (
    AsyncInMemoryStorage,
    InMemoryStorage,
    Proxy,
    ProxyCredentials,
    ProxyPool,
    ProxyProtocol,
    ProxyStatus,
)

ORDER: dict[str, Any] = {}
_storage = AsyncInMemoryStorage()


def memory() -> AsyncInMemoryStorage:
    """The ledger in memory, with a pool of the proxies that the order names."""
    fill(_storage.memory, ORDER["proxies"], ORDER.get("pool", {}))
    return _storage


def fill(storage: Any, urls: list[str], options: dict[str, Any]) -> None:
    """Make a pool "scraping" of the proxies with these URLs, all of them active."""
    pool = ProxyPool(name="scraping")
    storage.save_pool(pool)
    for url in urls:
        parts = urlsplit(url)
        login = None
        if parts.username:
            password = SecretStr(unquote(parts.password or ""))
            login = ProxyCredentials(user=unquote(parts.username), password=password)
        storage.save_proxy(
            Proxy(
                host=parts.hostname or "",
                port=parts.port or 0,
                protocol=ProxyProtocol(parts.scheme),
                pool_id=pool.id,
                status=ProxyStatus.ACTIVE,
                credentials=login,
                max_concurrency=options.get("max_concurrency", 1),
            )
        )


def is_captcha(response: Any) -> bool:
    """Return whether a page asks for a captcha."""
    return b"captcha" in response.body


def broken(response: Any) -> bool:
    """Judge by a bug."""
    raise RuntimeError("a bug of the project")


class Crawl(scrapy.Spider):
    """Asks for what the order names, and notes what comes."""

    name = "crawl"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.began = False
        self.pages: list[dict[str, Any]] = []
        self.failed: list[list[str]] = []

    async def start(self) -> AsyncIterator[Any]:
        self.began = True
        for asked in ORDER["requests"]:
            yield scrapy.Request(
                asked["url"],
                callback=self.parse,
                errback=self.fail,
                meta=asked.get("meta", {}),
                dont_filter=True,
            )

    def parse(self, response: Any) -> Any:
        def said(name: str) -> str:
            return str(response.headers.get(name, b"").decode())

        self.pages.append(
            {
                "url": response.request.meta.get("redirect_urls", [response.url])[0],
                "status": response.status,
                "proxy": said("X-Proxy"),
                "connection": said("X-Connection"),
                "login": said("X-Login"),
                "name": said("X-Name"),
                "meta": {
                    key: value
                    for key, value in response.meta.items()
                    if key.startswith("pharox") or key in ("proxy", "retry_times")
                },
                "header": response.request.headers.get("Proxy-Authorization", b"").decode(),
            }
        )
        print("page", response.url, flush=True)
        if ORDER.get("raises"):
            raise RuntimeError("a bug of the spider")

    def fail(self, failure: Any) -> None:
        self.failed.append([type(failure.value).__name__, str(failure.value)])


def main() -> None:
    ORDER.update(json.load(sys.stdin))
    # By this name, too: settings name functions of this module.
    sys.modules["tests.integrations.crawling"] = sys.modules["__main__"]
    settings = {
        "ADDONS": {"pharox.integrations.scrapy.PharoxAddon": 500},
        "PHAROX_POOL": "scraping",
        "LOG_LEVEL": "INFO",
        "TELNETCONSOLE_ENABLED": False,
        "HTTPERROR_ALLOW_ALL": True,
        **ORDER["settings"],
    }
    if settings.get("TWISTED_REACTOR_ENABLED", True):
        process: Any = CrawlerProcess(settings)
    else:
        from scrapy.crawler import AsyncCrawlerProcess

        process = AsyncCrawlerProcess(settings)
    crawler: Crawler = process.create_crawler(Crawl)
    process.crawl(crawler)
    process.start()
    spider: Any = crawler.spider
    stats = crawler.stats.get_stats() if spider is not None and spider.began else {}
    report = {
        "pages": getattr(spider, "pages", []),
        "failed": getattr(spider, "failed", []),
        "stats": {key: str(value) for key, value in stats.items()},
        "events": _events(_storage.memory),
    }
    print("report", json.dumps(report), flush=True)


def _events(storage: InMemoryStorage) -> list[dict[str, Any]]:
    return [{"type": event.type, **event.model_dump(mode="json")} for event in storage.events()]


if __name__ == "__main__":
    main()
