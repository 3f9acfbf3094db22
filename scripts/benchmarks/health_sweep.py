"""The duration of a sweep with proxies that fall silent, compared with the ideal.

The ideal is the time of as many workers with the same proxies in the same order, if a good one
takes its median time and a silent one the timeout.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Sequence
from statistics import median
from uuid import uuid4

from pharox import CheckFailure, HealthChecker, HealthCheckResult, Proxy
from scripts.benchmarks import goals
from scripts.benchmarks.health_proxies import SILENT_STAGES, Ports, options, proxy
from scripts.benchmarks.parts import Figures, Line, Part

PROXIES = 2_000
SILENT = 100
TIMEOUT_S = 1
AT_ONCE = (100, 500)

LINES = tuple(
    line
    for bound in AT_ONCE
    for line in (
        Line(f"{bound} at once: results", f"results {bound}", "", goal=goals.HEALTH_ALL),
        Line(
            "  silent ones found by their time-out",
            f"silent {bound}",
            "",
            goal=goals.HEALTH_SILENT,
        ),
        Line("  median of a good one", f"good {bound}", "ms"),
        Line("  time", f"time {bound}", "s"),
        Line("  its ideal", f"ideal {bound}", "s"),
        Line("  more than its ideal", f"excess {bound}", "s", goal=goals.HEALTH_ON_TIME),
    )
)


def part(ports: Ports) -> Part:
    """Return the part that measures sweeps of good and silent proxies."""
    asked = _shuffled(ports)

    def measure() -> Figures:
        figures: Figures = {}
        for at_once in AT_ONCE:
            results, took_s = asyncio.run(_sweep(asked, at_once))
            good_s, ideal_s = _ideal_s(asked, results, ports["good"], at_once)
            late = [result for result in results if result.failure is CheckFailure.TIMEOUT]
            figures |= {
                f"results {at_once}": len({result.proxy_id for result in results}),
                f"silent {at_once}": len(late),
                f"good {at_once}": good_s * 1000,
                f"time {at_once}": took_s,
                f"ideal {at_once}": ideal_s,
                f"excess {at_once}": took_s - ideal_s,
            }
        return figures

    title = f"4. {PROXIES:,} proxies, {SILENT} of them silent, {TIMEOUT_S} s for each"
    return Part("sweep", {title: LINES}, measure)


def _shuffled(ports: Ports) -> list[Proxy]:
    """Return the proxies in random order; each silent one has a random stage."""
    chance = random.Random(1)
    stages = ["good"] * (PROXIES - SILENT) + chance.choices(SILENT_STAGES, k=SILENT)
    chance.shuffle(stages)
    pool_id = uuid4()
    return [proxy(number, ports[stage], pool_id) for number, stage in enumerate(stages)]


async def _sweep(asked: Sequence[Proxy], at_once: int) -> tuple[list[HealthCheckResult], float]:
    """Return all results, and the seconds that they took."""
    began = time.perf_counter()
    found = HealthChecker().stream_health_checks(asked, options(TIMEOUT_S), concurrency=at_once)
    results = [result async for result in found]
    return results, time.perf_counter() - began


def _ideal_s(
    asked: Sequence[Proxy], results: Sequence[HealthCheckResult], good_port: int, at_once: int
) -> tuple[float, float]:
    """Return the median time of a good check, and the time that ideal workers need."""
    good_s = median(result.latency_ms for result in results if result.healthy) / 1000
    free_at = [0.0] * at_once
    for one in asked:
        takes_s = good_s if one.port == good_port else TIMEOUT_S
        heapq.heapreplace(free_at, free_at[0] + takes_s)
    return good_s, max(free_at)
