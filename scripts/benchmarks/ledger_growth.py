"""A ledger with a history: the rates of sealing, rebuilding, delivering and leasing.

Each length of the log is a separate database, made with COPY, with read models folded from it: the
tables and indexes are as large as after years of leases.
"""

from __future__ import annotations

import shutil
import sys
from collections import deque
from pathlib import Path

import pharox
from pharox.ledger.rebuild import rebuild
from scripts.benchmarks import goals
from scripts.benchmarks.ledger_log import make_backlog, timed
from scripts.benchmarks.ledger_subscription import counting_rate
from scripts.benchmarks.parts import Bench, Figures, Line, Part, Series
from scripts.benchmarks.peers import OURS, told_by
from scripts.benchmarks.server import connected, settled

LENGTHS = (0, 10_000, 100_000, 1_000_000, 10_000_000)
BYTES_OF_EVENT = 3_000
"""More than what an event takes with its seal, its share of all indexes and read models, and the
write-ahead log and sorting beside them."""


def parts(bench: Bench) -> list[Part]:
    """Return the part that makes logs of several lengths, and the part that leases with each."""
    lengths = [length for length in LENGTHS if _fits(bench, length)]
    grown = tuple(length for length in lengths if length)

    def grow() -> Figures:
        figures: Figures = {}
        for length in lengths:
            figures |= _grow(bench, length)
        return figures

    order = deque(lengths)

    def lease() -> Figures:
        # Another one is the first in each round: the server still writes what others changed.
        order.rotate()
        return {f"leased {length}": _cycles(bench, length) for length in order}

    growth = Series(
        "Events a second by the length of the log",
        "events",
        grown,
        {
            "sealed": tuple(f"sealed {length}" for length in grown),
            "rebuilt": tuple(f"rebuilt {length}" for length in grown),
            "delivered": tuple(f"delivered {length}" for length in grown),
        },
    )
    leasing = Series(
        "Lease cycles by the length of the log, 1 client",
        "events",
        tuple(lengths),
        {"pharox": tuple(f"leased {length}" for length in lengths)},
    )
    flat = Line(
        f"{lengths[-1]:,} events behind it: of none",
        f"leased {lengths[-1]}",
        per="leased 0",
        goal=goals.LEASE_FLAT_HISTORY,
    )
    return [
        Part("growth", {}, grow, once=True, series=(growth,)),
        Part(
            "history",
            {"8. Lease cycles with a history, 1 process, 100 proxies": (flat,)},
            lease,
            series=(leasing,),
        ),
    ]


def _fits(bench: Bench, length: int) -> bool:
    """Whether there is space and time for a log of this length; if not, it is noted as left out."""
    if length > bench.history:
        bench.left_out.append(f"a history of {length:,} events: longer than was asked for")
        return False
    if length * BYTES_OF_EVENT > _free_bytes(bench):
        bench.left_out.append(f"a history of {length:,} events: more than fits on the disk")
        return False
    return True


def _free_bytes(bench: Bench) -> int:
    with connected(bench.url) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return shutil.disk_usage(Path(row[0]).parent).free


def _name(length: int) -> str:
    return f"history_{length}"


def _grow(bench: Bench, length: int) -> Figures:
    """Make a log of this length; return the events a second of each step."""
    print(f"a history of {length:,} events", file=sys.stderr)
    url = make_backlog(bench, _name(length), length)
    storage = pharox.connect(url)
    last, sealing_s = timed(storage.seal)
    rebuilt = rebuild(storage)
    storage.close()
    delivered = counting_rate(url, last, bench.seconds) if length else 0.0
    settled(url)
    return {
        f"sealed {length}": last / sealing_s,
        f"rebuilt {length}": rebuilt.last_seq / rebuilt.seconds,
        f"delivered {length}": delivered,
    }


def _cycles(bench: Bench, length: int) -> float:
    url = bench.database(_name(length))
    return float(
        told_by(OURS, "cycles.py", url, "bench", 1, bench.seconds)["cycles"] / bench.seconds
    )
