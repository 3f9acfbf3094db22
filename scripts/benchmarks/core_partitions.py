"""Compare a log of many small partitions with one partition of as many events."""

from __future__ import annotations

import sys
from statistics import median

import pharox
from pharox import ProxyManager, new_lease_id
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_log import timed
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, fill, new_database, settled

MANY = 630
ROWS = 20
"""How many events have room in one of many partitions."""

TIMES = 100
"""Ticks and acquisitions whose median is a figure."""

LINES = (
    Line("a seal of one cycle, 1 partition", "seal 1", "ms"),
    Line(f"a seal of one cycle, {MANY} partitions", f"seal {MANY}", "ms"),
    Line("  of 1 partition", f"seal {MANY}", per="seal 1", goal=goals.CORE_PARTS_SEAL),
    Line("an acquisition under an id, 1 partition", "acquire 1", "ms"),
    Line(f"an acquisition under an id, {MANY} partitions", f"acquire {MANY}", "ms"),
    Line("  of 1 partition", f"acquire {MANY}", per="acquire 1", goal=goals.CORE_PARTS_ACQUIRE),
    Line("verify, 1 partition", "verify 1", "s"),
    Line(f"verify, {MANY} partitions", f"verify {MANY}", "s"),
)

_SMALL = f"""
CREATE OR REPLACE FUNCTION pharox.partition_rows() RETURNS bigint
LANGUAGE sql STABLE AS 'SELECT {ROWS}::bigint'
"""
_AT_THE_END = """
SELECT setval('pharox.events_position_seq', (SELECT max(end_position) - 1 FROM pharox.partitions))
"""


def part(bench: Bench) -> Part:
    """Return the part that measures both logs, after making them."""
    print(f"making a log of {MANY} partitions", file=sys.stderr)
    urls = {number: _make(bench, number) for number in (1, MANY)}

    def measure() -> Figures:
        figures: Figures = {}
        for number, url in urls.items():
            figures |= _measure(url, number)
        return figures

    return Part("partitions", {"7. Partitions of the log": LINES}, measure)


def _make(bench: Bench, number: int) -> str:
    """Make a log with a number of partitions, each with one cycle, or one with all the cycles."""
    url = new_database(bench.url, f"partitions_{number}")
    storage = pharox.connect(url)
    storage.upgrade_schema()
    fill(storage, "hundred", 100)
    manager = ProxyManager(storage)
    with connected(url) as connection:
        connection.execute(_SMALL)
        for _ in range(MANY - 1):
            if number > 1:
                connection.execute(_AT_THE_END)  # so the next event begins another partition
            _cycle(manager)
        row = connection.execute("SELECT count(*) FROM pharox.partitions").fetchone()
    assert row == (number,)
    storage.seal()
    storage.close()
    settled(url)
    return url


def _cycle(manager: ProxyManager) -> float:
    """Lease under an id and release; return the seconds that the acquisition took."""
    lease, acquired_s = timed(lambda: manager.acquire_proxy("hundred", lease_id=new_lease_id()))
    manager.release_proxy(lease)
    return float(acquired_s)


def _measure(url: str, number: int) -> Figures:
    storage = pharox.connect(url)
    manager = ProxyManager(storage)
    _, verified_s = timed(storage.verify)
    acquired_s, sealed_s = [], []
    for _ in range(TIMES):
        acquired_s.append(_cycle(manager))
        sealed_s.append(timed(storage.seal)[1])
    storage.close()
    return {
        f"acquire {number}": 1000 * median(acquired_s),
        f"seal {number}": 1000 * median(sealed_s),
        f"verify {number}": verified_s,
    }
