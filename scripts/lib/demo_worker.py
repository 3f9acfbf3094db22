"""A typical worker: lease a proxy, fetch a page through it, give it back.

Run as ``python -m scripts.lib.demo_worker NAME POOL SCHEMA PAGE_URL``; does so once with each
selector and prints one JSON object per lease.
"""

import json
import sys
from urllib.parse import urlsplit

import httpx
import httpx_socks

from pharox import ProxyManager, SelectorStrategy, connect

LEASE_S = 30


def fetch(proxy_url: str, page_url: str) -> str:
    """Return a page, fetched through a proxy."""
    if proxy_url.startswith("socks"):  # httpx knows SOCKS by way of httpx-socks
        transport = httpx_socks.SyncProxyTransport.from_url(proxy_url)
        client = httpx.Client(transport=transport, trust_env=False, timeout=10)
    else:
        client = httpx.Client(proxy=proxy_url, trust_env=False, timeout=10)
    with client:
        return client.get(page_url).raise_for_status().text


def main(name: str, pool: str, schema: str, page_url: str) -> None:
    """Lease and fetch once with each selector."""
    storage = connect(schema=schema)
    manager = ProxyManager(storage)
    for selector in SelectorStrategy:
        with manager.with_lease(pool, name, LEASE_S, selector=selector) as lease:
            if lease is None:
                sys.exit(f"{name} found no free proxy with {selector.value}")
            url = storage.get_proxy(str(lease.proxy_id)).url
            page = fetch(url, page_url)
        fact = {"selector": selector.value, "port": urlsplit(url).port, "page": page}
        print(json.dumps(fact), flush=True)
    storage.close()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
