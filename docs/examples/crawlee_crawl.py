"""Crawl pages with Crawlee through leased proxies: `python crawlee_crawl.py https://shop.example`.

It needs a ledger (`PHAROX_DATABASE_URL`) with a pool "residential".
"""

import asyncio
import sys

from crawlee.crawlers import HttpCrawler, HttpCrawlingContext
from crawlee.errors import SessionError
from crawlee.proxy_configuration import ProxyConfiguration

import pharox
from pharox.integrations.crawlee import pharox_urls


async def main(*pages: str) -> dict[str, int]:
    """Return how many bytes each page has."""
    storage = await pharox.connect_async()
    urls = pharox_urls(pharox.AsyncProxyManager(storage), "residential")
    crawler = HttpCrawler(
        proxy_configuration=ProxyConfiguration(new_url_function=urls),
        session_pool=urls.session_pool(),
        configure_logging=False,
    )
    sizes: dict[str, int] = {}

    @crawler.router.default_handler
    async def handle(context: HttpCrawlingContext) -> None:
        body = await context.http_response.read()
        if b"captcha" in body:  # Crawlee tries again with another session; the proxy rests.
            raise SessionError("a captcha")
        sizes[context.request.url] = len(body)

    try:
        await crawler.run([*pages])
    finally:
        await storage.close()
    return sizes


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
