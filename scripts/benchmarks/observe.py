"""What logs and metrics cost a lease: cycles with both and with neither, in turns."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import pharox
from pharox import embedded
from scripts.benchmarks.lease import HERE
from scripts.benchmarks.server import fill

GOAL = 1.15


def run(*, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure in turns, print the medians and their ratio, and return the figures."""
    found: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="pharox-bench-", ignore_cleanup_errors=True) as folder:
        server = embedded.start(Path(folder) / "data")
        try:
            storage = pharox.connect(server.url)
            storage.upgrade_schema()
            fill(storage, "hundred", 100)
            storage.close()
            for number in range(rounds):
                for how, measured in found.items():
                    print(f"round {number + 1} of {rounds}: {how}", file=sys.stderr)
                    measured.append(_cycles(server.url, seconds, how))
        finally:
            server.close()
    rates = {how: round(median(each), 1) for how, each in found.items()}
    ratio = rates["off"] / rates["on"]
    print(f"\ncycles/s without {rates['off']:,.0f}, with logs and metrics {rates['on']:,.0f}")
    print(f"cost {ratio:.2f} of without, goal {GOAL} {'' if ratio <= GOAL else 'missed'}")
    return {"cycles_per_s": rates, "cost": ratio, "rounds": found}


def _cycles(url: str, seconds: float, how: str) -> float:
    command = [sys.executable, str(HERE / "observe_cycles.py"), url, "hundred", str(seconds), how]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
