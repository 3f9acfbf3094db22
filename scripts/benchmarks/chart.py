"""Draw the growth of figures as an SVG: one panel per series, readable in dark and light mode.

Lines have their names at their ends instead of a legend. The picture has no background; text and
grid follow the reader's colour scheme.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, log10
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 92, 34, 40
_COLUMNS = 2

_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #424a53 }
.title { font-weight: 600; font-size: 13px }
.grid { stroke: #8c959f; stroke-opacity: .35 }
.c0 { stroke: #0969da; fill: #0969da } .c1 { stroke: #bc4c00; fill: #bc4c00 }
.c2 { stroke: #8250df; fill: #8250df }
polyline { fill: none !important; stroke-width: 2 }
text.c0, text.c1, text.c2 { stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9 }
  .c0 { stroke: #58a6ff; fill: #58a6ff } .c1 { stroke: #f0883e; fill: #f0883e }
  .c2 { stroke: #bc8cff; fill: #bc8cff }
}
"""

_COLOURS = {"pharox": 0, "pharox 0.11.0": 2, "floor": 1}
"""Who has which colour in every panel; others have theirs in turn."""


class Axes(NamedTuple):
    """The scales of a panel: x is logarithmic, y starts at 0 or is logarithmic too."""

    xs: list[int]
    top: float
    bottom: float

    def x(self, value: int) -> float:
        """Return the horizontal position of a value; 0 is one step before the others."""
        places = [log10(max(one, 1)) for one in self.xs]
        if self.xs[0] == 0 and len(self.xs) > 1:
            places[0] = places[1] - 1
        share = (places[self.xs.index(value)] - places[0]) / ((places[-1] - places[0]) or 1)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        if self.bottom:
            share = log10(max(value, self.bottom) / self.bottom) / log10(self.top / self.bottom)
        else:
            share = value / self.top
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def marks(self) -> list[float]:
        """Return the values of the grid lines."""
        if self.bottom:
            decades = round(log10(self.top / self.bottom))
            return [self.bottom * 10**power for power in range(decades + 1)]
        return [self.top * quarter / 4 for quarter in range(5)]


def draw(told: dict[str, Any]) -> str:
    """Return a picture of all series of all benchmarks."""
    all_series = [series for found in told.values() for series in found["series"]]
    rows = ceil(len(all_series) / _COLUMNS) or 1
    width, height = _COLUMNS * WIDTH, rows * HEIGHT
    panels = "".join(
        f'<g transform="translate({at % _COLUMNS * WIDTH} {at // _COLUMNS * HEIGHT})">'
        f"{''.join(_panel(series))}</g>\n"
        for at, series in enumerate(all_series)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>How cycles and events a second grow</title>\n<style>{_STYLE}</style>\n"
        f"{panels}</svg>\n"
    )


def _panel(series: dict[str, Any]) -> Iterator[str]:
    axes = _axes(series)
    yield f'<text class="title" x="{_LEFT}" y="18">{escape(series["title"])}</text>\n'
    yield _text(_LEFT - 6, _TOP - 8, _words(series["unit"]), "end")
    for mark in axes.marks():
        y = axes.y(mark)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>'
        yield _text(_LEFT - 6, y + 4, _short(mark), "end")
    for x in series["xs"]:
        yield _text(axes.x(x), HEIGHT - _BOTTOM + 16, _short(x), "middle")
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    yield _text(middle, HEIGHT - 8, series["x"], "middle") + "\n"
    ends = _apart([axes.y(_last(curve)) for curve in series["curves"].values()])
    for at, (label, curve) in enumerate(series["curves"].items()):
        yield from _curve(axes, series["xs"], curve, _COLOURS.get(label, at), label, ends[at])


def _axes(series: dict[str, Any]) -> Axes:
    values = [value for curve in series["curves"].values() for value in curve if value]
    most, least = max(values), min(values)
    if most > 20 * least:
        return Axes(series["xs"], 10 ** ceil(log10(most)), 10 ** int(log10(least)))
    step = 10 ** int(log10(most))
    top = next(step * times for times in (1, 2, 4, 6, 8, 10) if step * times >= most)
    return Axes(series["xs"], top, 0)


def _last(curve: list[float | None]) -> float:
    return next(value for value in reversed(curve) if value is not None)


def _apart(places: list[float]) -> list[float]:
    """Return positions for names at the ends of lines, moved down if they would overlap."""
    moved = dict.fromkeys(range(len(places)), 0.0)
    lowest = float("-inf")
    for at in sorted(moved, key=places.__getitem__):
        lowest = moved[at] = max(places[at], lowest + 13)
    return list(moved.values())


def _curve(
    axes: Axes, xs: list[int], curve: list[float | None], colour: int, label: str, end: float
) -> Iterator[str]:
    points = [
        (axes.x(x), axes.y(value)) for x, value in zip(xs, curve, strict=True) if value is not None
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield f'<polyline class="c{colour}" points="{path}"/>'
    yield from (f'<circle class="c{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
    yield (
        f'<text class="c{colour}" x="{points[-1][0] + 8:.1f}" y="{end + 4:.1f}">'
        f"{escape(label)}</text>\n"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _words(unit: str) -> str:
    return "a second" if unit == "/s" else unit


def _short(value: float) -> str:
    if value >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
