"""Health checks on loopback: rate, bound on time, cost of recording, and memory.

The floor is a bare loop around httpx, the peer is pharox 0.11.0. The proxies run in their own
process, which does as little as possible.
"""

from __future__ import annotations

from scripts.benchmarks import health_memory, health_rates, health_recording, health_sweep
from scripts.benchmarks.health_proxies import serving
from scripts.benchmarks.parts import Bench, Part


def prepare(bench: Bench) -> list[Part]:
    """Return the parts that measure checks, once the proxies serve."""
    ports = bench.until_the_end.enter_context(serving())
    return [
        health_rates.part(ports),
        health_rates.unbounded_part(ports),
        health_recording.part(ports, bench.url),
        health_sweep.part(ports),
        health_memory.part(),
    ]
