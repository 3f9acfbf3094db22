"""What a benchmark of several parts is made of, and how its figures are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

Figures = dict[str, float]


class Bench(NamedTuple):
    """Where to measure, and how much."""

    url: str
    seconds: float
    events: int


class Line(NamedTuple):
    """A figure, or its ratio to another one, beside what it is meant to be."""

    label: str
    figure: str
    unit: str = "/s"
    per: str | None = None
    at_least: float | None = None
    at_most: float | None = None


Tables = dict[str, tuple[Line, ...]]
"""Lines under their titles."""


class Part(NamedTuple):
    """What measures the figures of some tables, once for each call."""

    name: str
    tables: Tables
    measure: Callable[[], Figures]
    once: bool = False


def measure(parts: Sequence[Part], rounds: int) -> dict[str, list[Figures]]:
    """Measure each part once a round, in turn; return what each round found, by part."""
    found: dict[str, list[Figures]] = {part.name: [] for part in parts}
    for number in range(rounds):
        for part in parts:
            if number == 0 or not part.once:
                print(f"round {number + 1} of {rounds}: {part.name}", file=sys.stderr)
                found[part.name].append(part.measure())
    return found


def report(parts: Sequence[Part], found: dict[str, list[Figures]]) -> dict[str, Any]:
    """Print each part's tables, by title; return the medians and what each round found."""
    medians = {
        name: {figure: median(one[figure] for one in rounds) for figure in rounds[0]}
        for name, rounds in found.items()
    }
    tables = [(title, part) for part in parts for title in part.tables]
    for title, part in sorted(tables, key=itemgetter(0)):
        show(title, part.tables[title], medians[part.name])
    return {"medians": medians, "rounds": found}


def show(title: str, lines: tuple[Line, ...], figures: Figures) -> None:
    """Print the figures of lines, what they are meant to be, and whether they are."""
    print(f"\n{title:56}{'measured':>12}  {'unit':8}{'goal':>11}")
    for line in lines:
        value = _value(line, figures)
        unit = "times" if line.per else line.unit
        print(
            f"{line.label:56}{_number(value):>12}  {unit:8}{_goal(line):>11}  {_met(line, value)}"
        )


def _value(line: Line, figures: Figures) -> float:
    value = figures[line.figure]
    if line.per is None:
        return value
    return value / figures[line.per] if figures[line.per] else float("inf")


def _goal(line: Line) -> str:
    if line.at_least is not None:
        return f">= {_number(line.at_least)}"
    return "" if line.at_most is None else f"<= {_number(line.at_most)}"


def _met(line: Line, value: float) -> str:
    if line.at_least is None and line.at_most is None:
        return ""
    enough = line.at_least is None or value >= line.at_least
    little = line.at_most is None or value <= line.at_most
    return "met" if enough and little else "short"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.2f}"
