"""Draw the chart: a time axis, and below it each pool with its statistics and proxies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from ...models import MissReason
from ..gather.shapes import Lane, PoolPicture
from ..gather.thinning import Scale, pins
from ..gather.window import Window
from ..wording import REASONS, count, span
from .axis import ZOOMS, ticks
from .charts import draw_availability, draw_misses, most_misses
from .lanes import MARKS, draw_lane
from .legend import add_item
from .markup import add, percent
from .selection import Selection
from .summary import sentences

_AVAILABILITY_HEIGHT, _MISSES_HEIGHT = 84, 52


def draw_chart(body: Element, selection: Selection, miss_slot_s: float) -> None:
    """Draw everything along the time axis."""
    window = selection.style.window
    shape = json.dumps([[round(number, 6) for number in pin] for pin in pins(window)])
    main = add(add(body, "div", class_="view"), "main", class_="chart", data_pins=shape)
    defs = add(add(main, "svg", class_="defs", width=0, height=0, aria_hidden="true"), "defs")
    for status, path in MARKS.items():
        add(defs, "path", id=f"mark-{status}", d=path)
    _draw_ticks(_row(main, "axis", "UTC")[1], window, labels=True)
    _draw_ticks(add(add(main, "div", class_="grid", aria_hidden="true"), "div"), window)
    for pool, lanes in selection.pools:
        section = add(main, "section", class_="pool", data_pool=pool.name)
        _draw_heading(section, pool, window, miss_slot_s)
        if pool.exists:
            _draw_availability(section, pool, window)
        if pool.misses:
            _draw_misses(section, pool, window, miss_slot_s)
        for lane in lanes:
            protocol, _, place = lane.address.rpartition("://")
            label, track = _row(section, "proxy", place, title=lane.address)
            add(label, "small", protocol)
            draw_lane(track, lane, selection.style)
        _draw_left_out(section, pool, lanes)


def _draw_ticks(track: Element, window: Window, *, labels: bool = False) -> None:
    svg = add(track, "svg", height=28 if labels else "100%", aria_hidden="true")
    scale = Scale(window)
    for fold in window.folds:
        left, right = scale(fold.start), scale(fold.end)
        band = add(
            svg,
            "rect",
            class_="fold",
            x=percent(left),
            width=percent(right - left),
            height="100%",
            data_start=fold.start.isoformat(),
            data_end=fold.end.isoformat(),
        )
        add(band, "title", f"{span(fold.end - fold.start)} in which nothing happened")
    for zoom in ZOOMS:
        level = add(svg, "g", class_="level on" if zoom == 1 else "level", data_zoom=zoom)
        for tick in ticks(window, zoom):
            place = percent(scale(tick.at))
            add(level, "line", x1=place, x2=place, y1=20 if labels else 0, y2="100%")
            if labels:
                add(level, "text", tick.label, x=place, y=15)


def _draw_heading(section: Element, pool: PoolPicture, window: Window, slot_s: float) -> None:
    heading = add(section, "div", class_="heading")
    title = add(heading, "h2")
    add(title, "span", "Pool " if pool.exists else "No pool is named ")
    add(title, "bdi", pool.name)
    details = add(heading, "ul")
    for sentence in sentences(pool, window, slot_s):
        add(details, "li", sentence, dir="auto")


def _draw_availability(section: Element, pool: PoolPicture, window: Window) -> None:
    most = max(point.total for point in pool.points)
    label, track = _row(section, "big", "Proxies", most=most)
    key = add(label, "div", class_="key")
    for name in ("available", "active", "total"):
        add(key, "span", name, class_=name)
    add(key, "span", "none available", class_="dry")
    draw_availability(track, pool, window, _AVAILABILITY_HEIGHT)


def _draw_misses(section: Element, pool: PoolPicture, window: Window, slot_s: float) -> None:
    label, track = _row(section, "big", "Misses", most=most_misses(pool))
    add(label, "small", f"in every {span(slot_s)}")
    draw_misses(track, pool, window, slot_s, _MISSES_HEIGHT)
    legend = add(add(section, "div", class_="reasons"), "div", class_="legend")
    for reason in MissReason:
        if number := pool.miss_reasons[reason]:
            item = add_item(legend, f"r-{reason.value}")
            add(item, "span", f"{REASONS[reason]} ({number:,})")


def _draw_left_out(section: Element, pool: PoolPicture, lanes: Sequence[Lane]) -> None:
    idle = pool.known_proxies - len(pool.lanes)
    cut = len(pool.lanes) - len(lanes)
    description = [
        f"{count(number, 'proxy', 'proxies')} {which}"
        for number, which in (
            (idle, "without a lease or a change"),
            (cut, "with the least activity"),
        )
        if number
    ]
    if description:
        sentence = f"Not drawn: {' and '.join(description)}."
        add(section, "p", sentence, class_="left-out", data_idle=idle, data_cut=cut)


def _row(
    parent: Element, kind: str, name: str, *, title: str | None = None, most: int | None = None
) -> tuple[Element, Element]:
    """Append a row; return its label, with the numbers of its scale, and its track."""
    row = add(parent, "div", class_=f"row {kind}")
    label = add(row, "div", class_="label", title=title)
    add(label, "bdi", name)
    if most is not None:
        add(label, "small", f"{most:,}", class_="most")
        add(label, "small", "0", class_="none")
    return label, add(row, "div", class_="track")
