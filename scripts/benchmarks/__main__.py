"""Run a benchmark by name, print its table and write its figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from scripts.benchmarks import lease


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("what", choices=["lease"])
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements, interleaved")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: the machine is busy (load {load:.1f}); ratios hold better than rates")
    figures = lease.measure(seconds=asked.seconds, rounds=asked.rounds)
    lease.show(figures)
    if asked.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": load}
        asked.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


main()
