"""Make the page of the benchmarks from the files that they wrote.

    python -m scripts.benchmarks.page [FOLDER]

With a folder of ``scripts/bench all --out FOLDER``, its figures first replace those of earlier runs
in docs/benchmarks.json. That file and the goals in ``goals.py`` become docs/benchmarks.md and
docs/benchmarks.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.benchmarks.chart import draw
from scripts.benchmarks.goals import GOALS, NO_ERRORS, SEVERAL, Goal
from scripts.benchmarks.parts import bound_of, number
from scripts.benchmarks.running import ALL

DOCS = Path(__file__).parents[2] / "docs"
Told = dict[str, Any]
"""The figures of benchmarks, by name."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make docs/benchmarks.md and its picture.")
    parser.add_argument("folder", type=Path, nargs="?", help="with the files of a new run")
    folder = parser.parse_args().folder
    source = DOCS / "benchmarks.json"
    if folder is not None:
        both = {**json.loads(source.read_text()), **collected(folder)}
        told = {name: both[name] for name in ALL if name in both}
        source.write_text(json.dumps(told, indent=1) + "\n")
    told = json.loads(source.read_text())
    (DOCS / "benchmarks.md").write_text(page(told))
    (DOCS / "benchmarks.svg").write_text(draw(told))


def collected(folder: Path) -> Told:
    """Return the figures in a folder; benchmarks that were not run are left out."""
    files = {name: folder / f"{name}.json" for name in ALL}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def page(told: Told) -> str:
    """Return the page in Markdown."""
    return "\n".join(_lines(told)) + "\n"


def _lines(told: Told) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield "<!-- Made by `python -m scripts.benchmarks.page` from docs/benchmarks.json. -->"
    yield ""
    yield from _WHAT_THIS_IS
    yield from _machine(told)
    yield "![How cycles and events a second grow](benchmarks.svg)"
    yield ""
    yield from _goals(told)
    for name, found in told.items():
        yield from _benchmark(name, found)
    yield from _left_out(told)


_WHAT_THIS_IS = (
    "`scripts/bench all --out FOLDER` measures everything on this page: peers and floors in",
    "environments of their own, all on one new server, in turns, for several rounds. A figure is",
    "the median of the rounds; a ratio is the median of what it was in each round. Rates are those",
    "of one machine; ratios are what to look for on another. Every commit is on the disk before it",
    "is acknowledged.",
    "",
)


def _machine(told: Told) -> Iterator[str]:
    yield "## The machine"
    yield ""
    machines = {json.dumps(found["machine"], sort_keys=True) for found in told.values()}
    for one in sorted(machines):
        machine = json.loads(one)
        yield (
            f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB of memory; "
            f"{machine['os']}, Linux {machine['kernel']}; Python {machine['python']}, "
            f"PostgreSQL {machine['postgres']}."
        )
        yield ""
    yield "| | rounds | seconds each | load before | load during | most | taken by the hypervisor |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for name, found in told.items():
        load, asked = found["load"], found["asked"]
        yield (
            f"| {name} | {asked['rounds']} | {number(asked['seconds'])} | {load['before']} | "
            f"{load['during']} | {load['most']} | {load['stolen']:.1%} |"
        )
    yield ""
    for name, found in told.items():
        for sentence in found["noise"]:
            yield f"Not quite quiet during `{name}`: {sentence}."
            yield ""


def _goals(told: Told) -> Iterator[str]:
    yield "## Goals"
    yield ""
    yield "| goal | measured | | |"
    yield "| --- | ---: | ---: | --- |"
    aimed = [line for table in _tables(told) for line in _aimed(table)]
    for what, line in aimed:
        goal = GOALS[line["goal"]]
        verdict = "met" if goal.is_met(line["value"]) else "**not met**"
        yield f"| {what} | {_figure(line)} | {_bound(line)} | {verdict} |"
    yield ""
    missed = [(what, line) for what, line in aimed if not GOALS[line["goal"]].is_met(line["value"])]
    if missed:
        yield "Where a goal is not met, and why:"
        yield ""
    for what, line in missed:
        yield f"- **{what}** ({_figure(line)}, goal {_bound(line)}). {GOALS[line['goal']].limit}"
    if missed:
        yield ""


def _tables(told: Told) -> Iterator[dict[str, Any]]:
    for found in told.values():
        yield from found["tables"]


def _aimed(table: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a table that have a goal, each with a complete description."""
    subject = ""
    for line in table["lines"]:
        label = line["label"]
        if not label.startswith("  "):
            subject = label
        if line["goal"] is not None:
            goal = GOALS[line["goal"]]
            yield label.strip() if goal is NO_ERRORS else _told(goal, subject), line


def _told(goal: Goal, subject: str) -> str:
    """Return the description of a goal, with its measurement if there are several."""
    return f"{goal.what} ({subject})" if goal in SEVERAL else goal.what


def _figure(line: dict[str, Any]) -> str:
    return f"{number(line['value'])} {_unit(line)}".rstrip()


def _bound(line: dict[str, Any]) -> str:
    return bound_of(GOALS[line["goal"]]).replace(">=", "≥").replace("<=", "≤")


def _unit(line: dict[str, Any]) -> str:
    return "" if line["unit"] == "times" else line["unit"]


def _benchmark(name: str, found: dict[str, Any]) -> Iterator[str]:
    yield f"## {ALL[name].title}"
    yield ""
    yield ALL[name].about.strip()
    yield ""
    for table in found["tables"]:
        if table["lines"]:
            yield from _table(table)
    for series in found["series"]:
        yield from _growth(series)


def _table(table: dict[str, Any]) -> Iterator[str]:
    yield f"| {table['title'].split('. ', 1)[1]} | measured | of the rounds, least to most |"
    yield "| --- | ---: | ---: |"
    for line in table["lines"]:
        label = line["label"].replace("  ", "&emsp;")
        span = f"{number(line['least'])} to {number(line['most'])}"
        yield f"| {label} | {_figure(line)} | {span if line['least'] != line['most'] else ''} |"
    yield ""


def _growth(series: dict[str, Any]) -> Iterator[str]:
    yield f"{series['title']}:"
    yield ""
    yield f"| {series['x']} | " + " | ".join(series["curves"]) + " |"
    yield "| ---: |" + " ---: |" * len(series["curves"])
    for at, x in enumerate(series["xs"]):
        values = " | ".join(number(curve[at]) for curve in series["curves"].values())
        yield f"| {x:,} | {values} |"
    yield ""


def _left_out(told: Told) -> Iterator[str]:
    sentences = [what for found in told.values() for what in found["left_out"]]
    missing = [name for name in ALL if name not in told]
    if sentences or missing:
        yield "## Left out of this run"
        yield ""
        yield from (f"- {what}" for what in sentences)
        yield from (f"- the benchmark `{name}`" for name in missing)
        yield ""


if __name__ == "__main__":
    main()
