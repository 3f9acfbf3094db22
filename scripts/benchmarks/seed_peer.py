"""Fill a database for pharox 0.11.0, in its environment: seed_peer.py URL POOL COUNT CONSUMER..."""

from __future__ import annotations

import json
import sys
from typing import Any

from sqlalchemy import create_engine

from pharox import Proxy, ProxyPool


def main() -> None:
    import pharox.storage.postgres as peer

    url, name, count, *consumers = sys.argv[1:]
    engine = create_engine(url)
    tables: Any = peer
    tables.metadata.create_all(engine)
    storage = peer.PostgresStorage(engine)
    pool = ProxyPool(name=name)
    storage.save_pool(pool)
    facts: dict[str, Any] = {"port": 8000, "protocol": "http", "status": "active"}
    storage.add_proxies_bulk(
        [
            Proxy(host=f"10.0.0.{n}", pool_id=pool.id, max_concurrency=1, **facts)
            for n in range(int(count))
        ]
    )
    for consumer in consumers:
        storage.ensure_consumer(consumer)
    print(json.dumps({"proxies": int(count)}))


main()
