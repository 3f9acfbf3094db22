"""Keep each account on one exit, and know a captcha: ``python scrapy_accounts.py http://shop.example/``.

The ledger and its pool are as for ``scrapy_crawl.py``, with a proxy for each account at least.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import scrapy
from scrapy.crawler import CrawlerProcess


def is_captcha(response: Any) -> bool:
    """Return whether the site refuses the proxy with a page that looks like any other."""
    return b"solve the captcha" in response.body


class AccountsSpider(scrapy.Spider):
    """Fetches pages of two accounts, each with cookies and a proxy of its own."""

    name = "accounts"

    async def start(self) -> AsyncIterator[Any]:
        """Ask for three pages of each account."""
        for account in ("account-42", "account-43"):
            for number in range(3):
                yield scrapy.Request(
                    f"{sys.argv[1]}{account}/{number}",
                    meta={"pharox_session": account, "cookiejar": account},
                )

    def parse(self, response: Any) -> Any:
        """Make an item of a page."""
        yield {
            "account": response.meta["pharox_session"],
            "proxy": response.meta["pharox_proxy"],
        }


SETTINGS = {
    "ADDONS": {"pharox.integrations.scrapy.PharoxAddon": 500},
    "PHAROX_POOL": "residential",
    "PHAROX_IS_BLOCKED": is_captcha,
    "FEEDS": {"stdout:": {"format": "jsonlines"}},
    "LOG_LEVEL": "WARNING",
}

if __name__ == "__main__":
    process = CrawlerProcess(SETTINGS)
    process.crawl(AccountsSpider)
    process.start()
