"""A long log: sealing it, rebuilding all read models, reading its past, and verifying it.

Each round has its own copy of the same database, whose events are not sealed yet. The peer's
projection runner folds fewer events: each is a transaction, and its rate does not depend on their
number. Ours does, so a rebuild from as many events is measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pharox
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import PostgresStorage
from scripts.benchmarks import goals, ledger_peer
from scripts.benchmarks.history import ONE_EVENT, make_history
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, fill, new_database, settled

BACKLOG = "backlog"
"""The database with the long log, to be copied."""

PEER_EVENTS = 3_000
TICKS = 100
PER_TICK = 10

TABLES = {
    "2. Seal": (
        Line("a backlog, events", "sealed", goal=goals.SEAL_RATE),
        Line("10 new events at a time, ticks", "ticks"),
    ),
    "3. Rebuild": (
        Line("all read models, events", "rebuilt", goal=goals.REBUILD_RATE),
        Line("eventsourcing's projection runner, events", "peer"),
        Line("  our rebuild, of that", "rebuilt", per="peer", goal=goals.REBUILD_PEER),
        Line("all read models, from as many events as it had", "rebuilt few"),
        Line("  our rebuild, of that", "rebuilt few", per="peer"),
    ),
    "7. The past": (
        Line("the state in the middle of the log, first time", "first as-of", "s"),
        Line("the state in the middle of the log, second time", "second as-of", "s"),
        Line("verify, events", "verified"),
        Line("findings of verify", "findings", "", goal=goals.NO_ERRORS),
    ),
}


def part(bench: Bench) -> Part:
    """Return the part that measures a long log, after making it."""
    make_backlog(bench, BACKLOG, bench.events)
    make_backlog(bench, "few", PEER_EVENTS)

    def measure() -> Figures:
        storage = pharox.connect(new_database(bench.url, "copied", BACKLOG))
        few = pharox.connect(new_database(bench.url, "copied_few", "few"))
        worked = work_through(storage)
        _, first_s = timed(lambda: storage.state_at(bench.events // 2))
        _, second_s = timed(lambda: storage.state_at(bench.events // 2))
        ticks = _ticks_rate(storage)
        few.seal()
        rebuilt_few = rebuild(few)
        storage.close()
        few.close()
        return {
            **worked,
            "ticks": ticks,
            "peer": ledger_peer.projection_rate(bench.url, PEER_EVENTS),
            "rebuilt few": rebuilt_few.last_seq / rebuilt_few.seconds,
            "first as-of": first_s,
            "second as-of": second_s,
        }

    return Part("log", TABLES, measure)


def work_through(storage: PostgresStorage) -> Figures:
    """Seal a backlog, rebuild all read models from it and verify it; return events a second."""
    last, sealing_s = timed(storage.seal)
    rebuilt = rebuild(storage)
    findings, verifying_s = timed(storage.verify)
    return {
        "sealed": last / sealing_s,
        "rebuilt": rebuilt.last_seq / rebuilt.seconds,
        "verified": last / verifying_s,
        "findings": len(findings),
    }


def make_backlog(bench: Bench, name: str, events: int) -> str:
    """Create a database with a pool and a history of so many events, not sealed; return its URL."""
    url = new_database(bench.url, name)
    storage = pharox.connect(url)
    storage.upgrade_schema()
    pool_id = fill(storage, "bench", 100)
    make_history(storage.engine, storage.schema, pool_id, events)
    storage.close()
    settled(url)
    return url


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and the seconds that it took."""
    began = time.monotonic()
    result = call()
    return result, time.monotonic() - began


def _ticks_rate(storage: PostgresStorage) -> float:
    """Return the number of small ticks a second, without the time of appending their events."""
    statement = ONE_EVENT.format(table="pharox.events", correlation_id="NULL")
    url = storage.engine.url.render_as_string(hide_password=False)
    seconds = 0.0
    with connected(url) as connection:
        for _ in range(TICKS):
            with connection.transaction():
                for _ in range(PER_TICK):
                    connection.execute(statement)
            seconds += timed(storage.seal)[1]
    return TICKS / seconds
