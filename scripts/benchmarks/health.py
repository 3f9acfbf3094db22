"""Health checks on loopback: their pace, their bound on time, what recording costs, their memory.

Each part is measured once a round, so that what disturbs the machine disturbs
them all; figures are medians over the rounds. The floor is a bare loop around
httpx, the peer is pharox 0.11.0. The proxies are a process of their own that
does as little as it can.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pharox import embedded
from scripts.benchmarks import health_memory, health_rates, health_recording, health_sweep
from scripts.benchmarks.health_proxies import serving
from scripts.benchmarks.parts import measure, report


def run(*, rounds: int) -> dict[str, Any]:
    """Measure, print a table for each part, and return the medians and what each round found."""
    with (
        tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder,
        serving() as ports,
    ):
        server = embedded.start(Path(folder) / "data")
        try:
            parts = (
                health_rates.part(ports),
                health_rates.unbounded_part(ports),
                health_recording.part(ports, server.url),
                health_sweep.part(ports),
                health_memory.part(),
            )
            found = measure(parts, rounds)
        finally:
            server.close()
    return report(parts, found)
