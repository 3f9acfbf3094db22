"""Fetch pages with a client of httpx, each through a proxy that is leased for it.

    httpx_transport.py POOL URL...

The ledger is that of PHAROX_DATABASE_URL.
"""

from __future__ import annotations

import sys
from contextlib import closing

import httpx

import pharox
from pharox.integrations.httpx import PharoxTransport


def crawl(manager: pharox.ProxyManager, pool: str, urls: list[str]) -> dict[str, int]:
    """Return the status of each page."""
    transport = PharoxTransport(manager, pool, consumer="example")
    with httpx.Client(transport=transport, timeout=20) as client:
        return {url: client.get(url).status_code for url in urls}


if __name__ == "__main__":
    with closing(pharox.connect()) as storage:
        print(crawl(pharox.ProxyManager(storage), sys.argv[1], sys.argv[2:]))
