"""Break the system on purpose, and write a page with the results.

    python -m scripts.benchmarks.reliability [--times N] [--reports FOLDER] [--page FILE]

The faults are the tests in tests/faults. Each writes a report, and the page is made from these. It
includes tests that failed or were skipped; if one failed, the exit status is 1. A soak writes a
report to the folder PHAROX_REPORTS too; it counts differently, and has its own section.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"

INTRODUCTION = """\
# What breaks, and what is lost

This page is generated: `python -m scripts.benchmarks.reliability` breaks the system on purpose and
writes here what came of it. The faults are the tests in `tests/faults`, a part of the suite.

Workers lease exclusive proxies while something breaks; where it is a connection or the server, half
of them block and half of them await. Each writes down what it was told, in a file of its own and
before it goes on. When the fault is over, these files are held against the ledger:

- *acknowledged*: leases that a worker was told of.
- *in doubt*: leases of which a worker was told that the outcome is not known
  ([Unclear outcomes](unclear-outcomes.md)); it then asked again under the same id.
- *lost*: acknowledged leases that are not in the log, and acknowledged releases that are not.
- *doubled*: leases that the log has twice, or that ended twice.
- *held twice*: leases of a proxy that somebody else held at that moment.
- *findings*: what `storage.verify()` found wrong, of seals, chain and read models, and fencing
  tokens that are not those of the log.
"""
CLOCKS = """\
## The clock of the database jumps

Leases are judged by the clock of the database alone. What is promised when it jumps, and tested
in `tests/leasing/test_clock_jumps.py`:

- *Forward, by an hour.* Leases of less than an hour have run out at once, and the next
  acquisition gives their proxies to others. A keeper finds out with its next renewal, within a
  third of the lease's duration, and its holder is told that the lease is lost. Until then two may
  use one proxy; `require_lease` refuses the first of them.
- *Back, by an hour.* No lease ends early. One that is kept ends its duration after its last
  renewal by the new clock: the next renewal moves its end back. One that is not renewed lasts
  until its end comes by the new clock, up to an hour longer than it was granted for; its holder
  may release it, and an operator may [revoke](keeping.md#revoking) it. `Lease.is_lost` goes by
  the monotonic clock of the holder's machine, which does not jump: it counts on the lease for its
  duration, no longer.

The log keeps what the clock said: the order of events is their position, not their time, and a
lease that ended before it began by the clock was held for 0 ms. Let the clock slew (`chrony`,
`ntpd -x`) rather than step.
"""
HEADER = (
    "| what was done | times | acknowledged | in doubt | lost | doubled | held twice | findings |"
)
COUNTS = ("acknowledged", "in_doubt", "lost", "doubled", "held_twice", "findings")


def page(reports: Sequence[dict[str, Any]], where: str) -> str:
    """Return the page for some reports."""
    faults = [report for report in reports if "levels" not in report]
    ordered = sorted(faults, key=lambda report: (report["area"], report["fact"], report["test"]))
    parts = [INTRODUCTION, where, ""]
    for area, of_area in groupby(ordered, key=lambda report: report["area"]):
        parts += [f"## {area.rstrip('.')}", ""]
        for fact, of_fact in groupby(of_area, key=lambda report: report["fact"]):
            parts += _section(fact, list(of_fact))
    for report in reports:
        if "levels" in report:
            parts += _soak(report)
    return "\n".join([*parts, CLOCKS])


def _soak(report: dict[str, Any]) -> list[str]:
    """Return the result of a soak: the accounts of every minute, and the levels at the end."""
    tried = ", ".join(f"{times:,} times `{what}`" for what, times in report["tried"].items())
    lines = [
        f"## {report['area']}",
        "",
        f"`scripts/soak` ran for {report['seconds'] / 60:.0f} minutes: {tried}. Workers were told "
        f"of {report['acknowledged']:,} leases and releases, and of {report['in_doubt']:,} lost "
        f"connections; the log had {report['events']:,} events at the end.",
        "",
        f"Lost: {report['lost']}. Held twice: {report['held_twice']}. Events that the subscription "
        f"was given twice or never: {report['doubled']}. Findings of `verify()`: "
        f"{report['findings']}.",
        "",
        *(f"**{failure}**\n" for failure in report["failures"]),
        "| level | second third | last third | at most | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for level in report["levels"]:
        bounds = " | ".join(f"{level[of]:,}" for of in ("second third", "last third", "at most"))
        unit = f", {level['unit']}" if level["unit"] else ""
        lines.append(
            f"| {level['level']}{unit} | {bounds} | {'held' if level['held'] else '**rose**'} |"
        )
    return [*lines, ""]


def _section(fact: str, reports: Sequence[dict[str, Any]]) -> list[str]:
    ran = [report for report in reports if report["outcome"] in ("passed", "failed")]
    lines = [fact, ""]
    if ran:
        lines += [HEADER, "| --- " + "| ---: " * (len(COUNTS) + 1) + "|", _row(ran), ""]
    if free := [report["free_s"] for report in ran if report.get("free_s") is not None]:
        lines += [
            f"While somebody waited, no proxy was free for longer than {max(free):.1f} s. The "
            "place of a killed caller, and the proxy that is kept for it, count for 6 s.",
            "",
        ]
    for report in reports:
        if report["outcome"] == "failed":
            lines += [f"**`{report['test']}` failed.**", ""]
        elif report not in ran:
            lines += [f"Not done here: {report['outcome'].removeprefix('Skipped: ')}.", ""]
    return lines


def _row(reports: Sequence[dict[str, Any]]) -> str:
    tried: dict[str, int] = {}
    for report in reports:
        for fault, times in report["tried"].items():
            tried[fault] = tried.get(fault, 0) + times
    cells = [
        "<br>".join(sorted(tried)) or "nothing",
        "<br>".join(str(tried[fault]) for fault in sorted(tried)),
        *(f"{sum(report[count] for report in reports):,}" for count in COUNTS),
    ]
    return f"| {' | '.join(cells)} |"


def _where(reports: Sequence[dict[str, Any]]) -> str:
    reports = [report for report in reports if "levels" not in report]
    seconds = sum(report["seconds"] for report in reports)
    faults = sum(sum(report["tried"].values()) for report in reports)
    leases = sum(report["acknowledged"] for report in reports)
    return (
        f"This run made {faults:,} faults in {seconds:,.0f} seconds, and workers were told of "
        f"{leases:,} leases. {os.cpu_count()} cores, {platform.system()}, "
        f"Python {platform.python_version()}."
    )


def run(folder: Path, times: int) -> int:
    """Run the faults, write their reports to a folder, and return pytest's exit status."""
    environment = {**os.environ, "PHAROX_REPORTS": str(folder), "PHAROX_FAULTS": str(times)}
    command = [sys.executable, "-m", "pytest", "tests/faults", "-q"]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the reports in a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=1, help="as often as in an ordinary run")
    parser.add_argument("--reports", type=Path, help="make the page of these, and break nothing")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write it")
    asked = parser.parse_args()
    status = 0
    with tempfile.TemporaryDirectory(prefix="pharox-reports-") as fresh:
        if asked.reports is None:
            status = run(Path(fresh), asked.times)
        reports = read(asked.reports or Path(fresh))
    if not reports:
        print("there are no reports to make a page of", file=sys.stderr)
        return 1
    asked.page.write_text(page(reports, _where(reports)))
    return status


if __name__ == "__main__":
    sys.exit(main())
