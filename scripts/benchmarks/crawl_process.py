"""One crawl of the benchmark, as a process: an order comes as JSON, and what was measured goes."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import cycle
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess

ORDER: dict[str, Any] = {}


class Pages(scrapy.Spider):
    """Asks for so many pages, and counts how often each comes."""

    name = "pages"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.came: Counter[str] = Counter()

    async def start(self) -> AsyncIterator[Any]:
        self.began, self.processor_began = time.perf_counter(), time.process_time()
        proxies = cycle(ORDER.get("proxies", [None]))
        for number in range(ORDER["pages"]):
            proxy = next(proxies)
            yield scrapy.Request(
                f"http://shop.example/{number}", meta={} if proxy is None else {"proxy": proxy}
            )

    def parse(self, response: Any) -> None:
        self.came[response.url] += 1
        self.ended, self.processor_ended = time.perf_counter(), time.process_time()


def main() -> None:
    ORDER.update(json.load(sys.stdin))
    settings: dict[str, Any] = {"LOG_LEVEL": "WARNING", "TELNETCONSOLE_ENABLED": False}
    if "url" in ORDER:
        settings |= {
            "ADDONS": {"pharox.integrations.scrapy.PharoxAddon": 500},
            "PHAROX_POOL": "pool",
            "PHAROX_DATABASE_URL": ORDER["url"],
            "PHAROX_LEASE_PER": ORDER["lease_per"],
            "PHAROX_SELECTOR": "least_used",
        }
    process = CrawlerProcess(settings)
    crawler = process.create_crawler(Pages)
    process.crawl(crawler)
    process.start()
    spider: Any = crawler.spider
    print(
        json.dumps(
            {
                "once": sum(count == 1 for count in spider.came.values()),
                "seconds": spider.ended - spider.began,
                "processor_s": spider.processor_ended - spider.processor_began,
                "stats": {key: str(value) for key, value in crawler.stats.get_stats().items()},
            }
        )
    )


if __name__ == "__main__":
    main()
