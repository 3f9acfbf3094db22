"""Open a page in Chromium through a leased proxy: `python playwright_page.py https://shop.example`.

It needs a ledger (`PHAROX_DATABASE_URL`) with a pool "residential".
"""

import asyncio
import sys

from playwright.async_api import async_playwright

import pharox
from pharox.integrations.playwright import FOR_BROWSERS, leased_context


async def main(url: str, executable_path: str | None = None) -> str:
    """Return what a page is titled and shows, as a browser sees it."""
    storage = await pharox.connect_async()
    manager = pharox.AsyncProxyManager(storage)
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=executable_path)
            async with leased_context(
                manager,
                browser,
                "residential",
                filters=FOR_BROWSERS,
                context_options={"locale": "de-DE"},
            ) as context:
                page = await context.new_page()
                await page.goto(url)
                return f"{await page.title()}\n{await page.inner_text('body')}"
    finally:
        await storage.close()


if __name__ == "__main__":
    print(asyncio.run(main(*sys.argv[1:])))
