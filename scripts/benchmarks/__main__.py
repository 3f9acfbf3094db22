"""Run a benchmark by name, print its tables and write its figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from scripts.benchmarks import asynchronous, health, lease, ledger, observe


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("what", choices=["async", "health", "lease", "ledger", "observe"])
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements, interleaved")
    parser.add_argument("--events", type=int, default=500_000, help="in the log, for ledger")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: the machine is busy (load {load:.1f}); ratios hold better than rates")
    if asked.what == "lease":
        figures = lease.measure(seconds=asked.seconds, rounds=asked.rounds)
        lease.show(figures)
    elif asked.what == "async":
        figures = asynchronous.run(seconds=asked.seconds, rounds=asked.rounds)
    elif asked.what == "observe":
        figures = observe.run(seconds=asked.seconds, rounds=asked.rounds)
    elif asked.what == "health":
        figures = health.run(rounds=asked.rounds)
    else:
        figures = ledger.run(seconds=asked.seconds, rounds=asked.rounds, events=asked.events)
    if asked.json:
        machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "load": load}
        asked.json.write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n")


if __name__ == "__main__":  # processes that a benchmark starts import this again
    main()
