"""Fetch pages with aiohttp through one leased proxy, all at once.

    aiohttp_session.py POOL URL...

The ledger is that of PHAROX_DATABASE_URL.
"""

from __future__ import annotations

import asyncio
import sys

import pharox
from pharox.integrations.aiohttp import pharox_session


async def crawl(manager: pharox.AsyncProxyManager, pool: str, urls: list[str]) -> dict[str, int]:
    """Return the status of each page."""
    async with pharox_session(manager, pool, consumer="example") as session:

        async def status(url: str) -> int:
            async with session.get(url) as response:
                return response.status

        return dict(zip(urls, await asyncio.gather(*map(status, urls)), strict=True))


async def main(pool: str, urls: list[str]) -> None:
    """Crawl with the ledger of the environment."""
    storage = await pharox.connect_async()
    try:
        print(await crawl(pharox.AsyncProxyManager(storage), pool, urls))
    finally:
        await storage.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
