"""Fetch pages with requests through one leased proxy.

    requests_session.py POOL URL...

The ledger is that of PHAROX_DATABASE_URL.
"""

from __future__ import annotations

import sys
from contextlib import closing

import pharox
from pharox.integrations.requests import session


def crawl(manager: pharox.ProxyManager, pool: str, urls: list[str]) -> dict[str, int]:
    """Return the status of each page."""
    with session(manager, pool, consumer="example") as s:
        return {url: s.get(url, timeout=20).status_code for url in urls}


if __name__ == "__main__":
    with closing(pharox.connect()) as storage:
        print(crawl(pharox.ProxyManager(storage), sys.argv[1], sys.argv[2:]))
