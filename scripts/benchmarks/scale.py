"""Ledgers side by side: 1, 2 and 4 of them, each on a PostgreSQL server of its own.

A server and the process that leases from it (16 tasks) are pinned to one core, which they have to
themselves as long as there are as many cores as ledgers. Nothing is shared between ledgers but the
machine: its disk, its memory and its kernel. Linear growth would be as many times the rate of one
ledger, measured in the same round, as there are ledgers.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pharox.connecting import embedded
from scripts.benchmarks import goals
from scripts.benchmarks.core_callers import Run, side_by_side, tasks
from scripts.benchmarks.parts import Bench, Figures, Line, Part, Series
from scripts.benchmarks.server import new_ledger, postmaster, settled

LEDGERS = (1, 2, 4)
TASKS = 16
PROXIES = 100


def prepare(bench: Bench) -> list[Part]:
    """Return the part that leases from one ledger, from two and from four at once."""
    cores = sorted(os.sched_getaffinity(0))
    for ledgers in LEDGERS:
        if ledgers > len(cores):
            bench.left_out.append(
                f"how near {ledgers} ledgers come to linear growth: with a core each they need "
                f"{ledgers}, and there are {len(cores)}"
            )
    urls = [_server(bench, cores[n % len(cores)]) for n in range(max(LEDGERS))]

    def measure() -> Figures:
        figures: Figures = {"amiss": 0}
        for ledgers in LEDGERS:
            runs = _leasing(urls[:ledgers], cores, bench.seconds)
            figures[f"{ledgers}"] = sum(run.rate for run in runs)
            figures[f"{ledgers} linear"] = ledgers * figures["1"]
            figures[f"{ledgers} slowest"] = min(run.rate for run in runs)
            figures["amiss"] += sum(run.amiss for run in runs)
        return figures

    growth = Series(
        "Lease cycles a second by ledgers", "ledgers", LEDGERS, {"all": tuple(map(str, LEDGERS))}
    )
    title = f"1. Lease cycles of {TASKS} tasks for each ledger, {PROXIES} proxies"
    return [Part("ledgers", {title: tuple(_lines(len(cores)))}, measure, series=(growth,))]


def _lines(cores: int) -> Sequence[Line]:
    lines = [Line("1 ledger", "1")]
    for ledgers in LEDGERS[1:]:
        lines.append(Line(f"{ledgers} ledgers", f"{ledgers}"))
        lines.append(Line("  the slowest of them", f"{ledgers} slowest"))
        goal = goals.SCALE_LINEAR if ledgers <= cores else None
        label = f"  of {ledgers} times one" + (
            "" if goal else ", of which each has a part of a core"
        )
        lines.append(Line(label, f"{ledgers}", per=f"{ledgers} linear", goal=goal))
    return [*lines, Line("misses and errors", "amiss", "", goal=goals.NO_ERRORS)]


def _server(bench: Bench, core: int) -> str:
    """Start a server on one core; return the URL of its ledger."""
    folder = bench.until_the_end.enter_context(
        tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True)
    )
    server = embedded.start(Path(folder) / "data")
    bench.until_the_end.callback(server.close)
    process = postmaster(server.url)
    for each in (process, *process.children()):  # those that come later inherit it
        each.cpu_affinity([core])
    url = new_ledger(server.url, "ledger", {"pool": PROXIES})
    settled(url)
    return url


def _leasing(urls: Sequence[str], cores: Sequence[int], seconds: float) -> list[Run]:
    return side_by_side(
        [partial(_on_core, cores[n % len(cores)], url, seconds) for n, url in enumerate(urls)]
    )


def _on_core(core: int, url: str, seconds: float) -> Run:
    os.sched_setaffinity(0, {core})
    return tasks(url, "pool", TASKS, seconds)
