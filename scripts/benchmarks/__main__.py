"""Run a benchmark by name, or all of them; print tables, write figures.

Every figure comes from one run on one new server, peers, floors and ours in
turns. Ratios hold on another machine, rates do not.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scripts.benchmarks.parts import show
from scripts.benchmarks.running import ALL, Asked, run


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("what", choices=[*ALL, "all"])
    parser.add_argument("--seconds", type=float, default=3, help="of one measurement (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements, in turns (3)")
    parser.add_argument(
        "--events", type=int, default=1_000_000, help="in the long log, for core and ledger"
    )
    parser.add_argument(
        "--history",
        type=int,
        default=10_000_000,
        help="most events behind a lease or a page, for ledger and console",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--out", type=Path, help="write them into this folder, a file for each benchmark"
    )
    options = parser.parse_args()
    asked = Asked(options.seconds, options.rounds, options.events, options.history)
    figures = {}
    for name in ALL if options.what == "all" else [options.what]:
        figures[name] = run(name, asked)
        tell(figures[name])
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            write(options.out / f"{name}.json", figures[name])
    if options.json:
        write(options.json, figures if options.what == "all" else figures[options.what])


def tell(figures: dict[str, Any]) -> None:
    """Print a benchmark's tables, and warnings about their precision."""
    show(figures)
    for sentence in figures["noise"]:
        print(f"\nwarning: {sentence}; ratios hold better than rates")
    for what in figures["left_out"]:
        print(f"\nleft out: {what}")


def write(file: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON, rounded to their precision."""
    file.write_text(json.dumps(_rounded(figures), indent=2) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


if __name__ == "__main__":  # processes that a benchmark starts import this again
    main()
