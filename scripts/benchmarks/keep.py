"""What it costs to keep leases alive: 10,000 leases of 60 s, all renewed by one process."""

from __future__ import annotations

import time
from contextlib import closing
from typing import LiteralString

import pharox
from pharox import Lease, ProxyManager
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, new_ledger, processor_s, settled

LEASES = 10_000
DURATION_S = 60
SETTLING_S = 24
"""Until each lease has been renewed once."""

LINES = (
    Line("renewals", "renewals"),
    Line("of a core in the worker", "worker", "%", goal=goals.KEEP_WORKER),
    Line("of a core in the server", "server", "%", goal=goals.KEEP_SERVER),
    Line("bytes of log a renewal, with indexes and seals", "bytes", "bytes"),
    Line("leases that were lost", "lost", "", goal=goals.NO_ERRORS),
)
_LOG_BYTES: LiteralString = (
    "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class "
    "WHERE relname ~ '^(events|seals)_0' AND relkind = 'r'"
)
_RENEWALS = "SELECT count(*) FROM pharox.events WHERE type = 'LeaseRenewed'"


def prepare(bench: Bench) -> list[Part]:
    """Return the part that keeps leases for a third of their duration, and longer if asked."""
    seconds = max(bench.seconds, DURATION_S / 3)

    def measure() -> Figures:
        url = new_ledger(bench.url, "kept", {"pool": LEASES})
        settled(url)
        with closing(pharox.connect(url)) as storage:
            manager, leases = ProxyManager(storage), list[Lease]()
            while len(leases) < LEASES:
                leases += manager.acquire_proxies("pool", 500, "w", DURATION_S, keep_alive=True)
            time.sleep(SETTLING_S)
            storage.seal()
            size, renewals = _count(url, _LOG_BYTES), _count(url, _RENEWALS)
            server_s, worker_s, begun = processor_s(url), time.process_time(), time.monotonic()
            time.sleep(seconds)
            passed = time.monotonic() - begun
            server_s, worker_s = processor_s(url) - server_s, time.process_time() - worker_s
            renewed = _count(url, _RENEWALS) - renewals
            storage.seal()
            grown = _count(url, _LOG_BYTES) - size
            lost = sum(lease.is_lost for lease in leases)
            manager.release_proxies(leases)
        return {
            "renewals": renewed / passed,
            "worker": 100 * worker_s / passed,
            "server": 100 * server_s / passed,
            "bytes": grown / renewed,
            "lost": lost,
        }

    return [Part("keep", {"1. 10,000 leases of 60 s, kept by one process": LINES}, measure)]


def _count(url: str, query: LiteralString) -> int:
    with connected(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])
