"""Appending: one event per commit by four clients, a plain table, and eventsourcing.

The events go into the log with all its indexes, as bare statements; the plain
table has the same columns and a key. A whole command of ours, with its decision and its read
models, is compared with an append of the peer, which has neither.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pharox
from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import goals, ledger_peer
from scripts.benchmarks.history import ONE_EVENT
from scripts.benchmarks.ledger_leasing import Leasing
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, fill, new_database, pgbench

CLIENTS = 4
POLL_S = 0.005
"""After what pause a subscription seals again."""

LINES = (
    Line("one INSERT into a plain table (pgbench)", "plain"),
    Line("one event into the log (pgbench)", "ours"),
    Line("  of the plain table", "ours", per="plain", goal=goals.APPEND_PLAIN),
    Line("one event into the log, a sealer beside it", "sealed"),
    Line("  of the log without a sealer", "sealed", per="ours", goal=goals.APPEND_SEALED),
    Line("whole commands of ours, 4 processes", "commands"),
    Line("eventsourcing: one event a save(), 4 processes", "peer"),
    Line("  our commands, of that", "commands", per="peer"),
)

_PLAIN = """
CREATE TABLE plain (
    LIKE pharox.events INCLUDING DEFAULTS,
    PRIMARY KEY (position)
)
"""


def part(bench: Bench) -> Part:
    """Return the part that measures appends, in its own database."""
    url = new_database(bench.url, "appending")
    storage = pharox.connect(url)
    storage.upgrade_schema()
    fill(storage, "hundred", 100)
    with connected(url) as connection:
        connection.execute(_PLAIN)

    def append(table: str) -> float:
        statement = ONE_EVENT.format(table=table, correlation_id="NULL")
        return pgbench(url, statement, clients=CLIENTS, seconds=bench.seconds)

    def measure() -> Figures:
        plain, ours = append("plain"), append("pharox.events")
        storage.seal()
        with _sealing(storage):
            sealed = append("pharox.events")
        with Leasing(url, "hundred", CLIENTS) as leasing:
            time.sleep(bench.seconds)
        commands = 2 * leasing.tally.cycles / leasing.tally.seconds
        peer = ledger_peer.append_rate(bench.url, CLIENTS, bench.seconds)
        return {
            "plain": plain,
            "ours": ours,
            "sealed": sealed,
            "commands": commands,
            "peer": peer,
        }

    return Part("append", {"1. Append, 4 clients, one commit each": LINES}, measure)


@contextmanager
def _sealing(storage: PostgresStorage) -> Iterator[None]:
    """Seal for a block, as often as a subscription does."""
    stop = threading.Event()

    def seal() -> None:
        while not stop.wait(POLL_S):
            storage.seal()

    thread = threading.Thread(target=seal)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
