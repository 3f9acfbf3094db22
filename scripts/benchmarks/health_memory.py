"""A stream of a million checks that do nothing: its memory, and its own rate."""

from __future__ import annotations

import asyncio
import time
from itertools import repeat
from pathlib import Path
from uuid import uuid4

from pharox import (
    HealthChecker,
    HealthCheckOptions,
    HealthCheckResult,
    HealthCheckStrategy,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
)
from scripts.benchmarks import goals
from scripts.benchmarks.health_process import in_new_process
from scripts.benchmarks.health_proxies import proxy
from scripts.benchmarks.parts import Figures, Line, Part

FEW = 1_000
MANY = 1_000_000

LINES = (
    Line(f"{FEW:,} checks, peak memory of the process", "few", "MiB"),
    Line(f"{MANY:,} checks, peak memory of the process", "many", "MiB"),
    Line("  of the few", "many", per="few", goal=goals.HEALTH_MEMORY),
    Line(f"{MANY:,} checks", "rate"),
)


def part() -> Part:
    """Return the part that measures streams of few and of many checks, each in a new process."""

    def measure() -> Figures:
        few_mib, _ = in_new_process(_stream, FEW)
        many_mib, seconds = in_new_process(_stream, MANY)
        return {"few": few_mib, "many": many_mib, "rate": MANY / seconds}

    return Part("memory", {"5. Checks that do nothing": LINES}, measure, once=True)


class _Nothing(HealthCheckStrategy):
    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        return HealthCheckResult(
            proxy_id=proxy.id, status=ProxyStatus.ACTIVE, latency_ms=0, protocol=proxy.protocol
        )


def _stream(checks: int) -> tuple[float, float]:
    """Return this process's peak memory in MiB, and the seconds that the checks took."""
    checker = HealthChecker(strategies={ProxyProtocol.HTTP: _Nothing()})
    began = time.perf_counter()
    seen = asyncio.run(_count(checker, checks))
    assert seen == checks
    return _peak_mib(), time.perf_counter() - began


async def _count(checker: HealthChecker, checks: int) -> int:
    seen = 0
    async for _ in checker.stream_health_checks(repeat(proxy(0, 8000, uuid4()), checks)):
        seen += 1
    return seen


def _peak_mib() -> float:
    # Not ru_maxrss, which a process takes over from the one that started it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("the kernel does not tell the peak of this process's memory")
