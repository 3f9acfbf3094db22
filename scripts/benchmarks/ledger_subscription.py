"""A subscription in the database: events counted in the transaction that moves the checkpoint."""

from __future__ import annotations

import threading
import time
from typing import Any

import pharox
from pharox.ledger.subscriptions import Delivery, Subscription
from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_log import BACKLOG
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, new_database

LINES = (Line("events, counted by type, a statement a batch", "counted", goal=goals.DELIVERY_RATE),)

_COUNTS = "CREATE TABLE IF NOT EXISTS counts (type text PRIMARY KEY, events bigint NOT NULL)"
_COUNT = """
INSERT INTO counts AS c (type, events)
SELECT type, count(*) FROM unnest(%s::text[]) AS type GROUP BY type
ON CONFLICT (type) DO UPDATE SET events = c.events + excluded.events
"""
_COUNTED = "SELECT coalesce(sum(events), 0)::bigint FROM counts"


def part(bench: Bench) -> Part:
    """Return the part that reads a sealed log with a subscription, to its end or a deadline."""
    url = new_database(bench.url, "subscribed", BACKLOG)
    storage = pharox.connect(url)
    last = storage.seal()
    storage.close()

    def measure() -> Figures:
        return {"counted": counting_rate(url, last, bench.seconds)}

    return Part("subscription", {"4. Subscription in the database": LINES}, measure)


def counting_rate(url: str, last: int, seconds: float) -> float:
    """Return the number of sealed events counted a second, to the last or a deadline."""
    storage = pharox.connect(url)
    with connected(url) as connection:
        connection.execute(_COUNTS)
        connection.execute("TRUNCATE counts")
        began = time.monotonic()
        _count_until(storage, last, seconds)
        took_s = time.monotonic() - began
        row = connection.execute(_COUNTED).fetchone()
    storage.close()
    assert row is not None
    return float(row[0] / took_s)


def _count_until(storage: PostgresStorage, last: int, seconds: float) -> None:
    complete = threading.Event()

    def count(deliveries: list[Delivery]) -> None:
        connection: Any = deliveries[0].connection
        connection.execute(_COUNT, [[delivery.event.type for delivery in deliveries]])
        if deliveries[-1].seq == last:
            complete.set()

    subscription = Subscription(
        "counting", count, in_transaction=True, whole_batches=True, temporary=True
    )
    with subscription.running(storage):
        complete.wait(seconds)
