"""The structure of all benchmarks: parts that measure figures, and their tables and series.

Every part is measured once per round, in turn, so that disturbances affect all of them. A figure is
the median over the rounds. A ratio is the median of the rounds' ratios, because its two figures are
measured next to each other within a round.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from operator import itemgetter
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import make_url

from scripts.benchmarks.goals import GOALS, Goal

Figures = dict[str, float]


class Bench(NamedTuple):
    """Where and how much to measure; ``left_out`` lists in words what did not fit."""

    url: str
    seconds: float
    events: int
    history: int
    until_the_end: ExitStack
    left_out: list[str]

    def database(self, name: str) -> str:
        """Return the URL of another database on the same server."""
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)


class Line(NamedTuple):
    """A figure, or its ratio to another one, with its goal."""

    label: str
    figure: str
    unit: str = "/s"
    per: str | None = None
    goal: Goal | None = None


Tables = dict[str, tuple[Line, ...]]
"""Lines under their titles."""


class Series(NamedTuple):
    """The growth of figures: for each curve the names of its figures, one for each x.

    The name is None if a curve was not measured there.
    """

    title: str
    x: str
    xs: tuple[int, ...]
    curves: dict[str, tuple[str | None, ...]]
    unit: str = "/s"


class Part(NamedTuple):
    """A function that measures the figures of some tables and series once per call."""

    name: str
    tables: Tables
    measure: Callable[[], Figures]
    once: bool = False
    series: tuple[Series, ...] = ()


Rounds = dict[str, list[Figures]]
"""The figures of each round, by part."""


def measure(parts: Sequence[Part], rounds: int) -> Rounds:
    """Measure each part once per round, in turn."""
    found: Rounds = {part.name: [] for part in parts}
    for number in range(rounds):
        for part in parts:
            if number == 0 or not part.once:
                print(f"round {number + 1} of {rounds}: {part.name}", file=sys.stderr)
                found[part.name].append(part.measure())
    return found


def tabulate(parts: Sequence[Part], found: Rounds) -> dict[str, Any]:
    """Return the tables and series of all parts with their figures, ready for JSON."""
    tables = [
        {"title": title, "lines": [_line(line, found[part.name]) for line in lines]}
        for part in parts
        for title, lines in part.tables.items()
    ]
    series = [_series(one, found[part.name]) for part in parts for one in part.series]
    return {"tables": sorted(tables, key=itemgetter("title")), "series": series}


def _line(line: Line, rounds: list[Figures]) -> dict[str, Any]:
    values = [_value(line, figures) for figures in rounds]
    return {
        "label": line.label,
        "unit": "times" if line.per else line.unit,
        "value": median(values),
        "least": min(values),
        "most": max(values),
        "goal": line.goal and line.goal.name,
    }


def _value(line: Line, figures: Figures) -> float:
    value = figures[line.figure]
    if line.per is None:
        return value
    return value / figures[line.per] if figures[line.per] else float("inf")


def _series(series: Series, rounds: list[Figures]) -> dict[str, Any]:
    def middle(figure: str | None) -> float | None:
        return None if figure is None else median(figures[figure] for figures in rounds)

    curves = {label: [middle(name) for name in names] for label, names in series.curves.items()}
    return {**series._asdict(), "curves": curves}


def show(told: dict[str, Any]) -> None:
    """Print the tables and series of :func:`tabulate`, with the goals of the figures."""
    for table in told["tables"]:
        print(f"\n{table['title']:58}{'measured':>12}  {'unit':8}{'goal':>11}")
        for line in table["lines"]:
            goal = GOALS.get(line["goal"])
            bound = bound_of(goal) if goal else ""
            verdict = ("met" if goal.is_met(line["value"]) else "short") if goal else ""
            figure = f"{number(line['value']):>12}  {line['unit']:8}{bound:>11}  {verdict}"
            print(f"{line['label']:58}{figure}".rstrip())
    for series in told["series"]:
        print(f"\n{series['title']}\n{series['x']:>14}", end="")
        print("".join(f"{label:>22}" for label in series["curves"]))
        for at, x in enumerate(series["xs"]):
            values = (curve[at] for curve in series["curves"].values())
            print(f"{x:>14,}" + "".join(f"{number(value):>22}" for value in values))


def bound_of(goal: Goal) -> str:
    """Return a goal's bound, as it is written in tables."""
    if goal.at_least is not None:
        return f">= {number(goal.at_least)}"
    return f"<= {number(goal.at_most)}"


def number(value: float | None) -> str:
    """Return a figure as it is written in tables."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:,.2f}"
