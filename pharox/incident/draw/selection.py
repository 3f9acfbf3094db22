"""Select what of a picture fits on a page: which pools, which proxies, and in what detail.

Omitted items are counted, so that the page can say so. A proxy that changed its
status comes before one that was only leased.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile

from ..gather.shapes import Lane, PoolPicture
from ..gather.thinning import resolution_for
from ..gather.window import Window
from .lanes import Style, elements

MOST_POOLS = 40
MOST_LANES = 1000
MOST_ELEMENTS = 30_000
"""How many bars and marks to draw at most; more make a browser slow."""
MOST_COLOURS = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """What is drawn, in order.

    ``consumers`` maps the drawn consumers to their numbers of leases, the largest
    first.
    """

    pools: Sequence[tuple[PoolPicture, Sequence[Lane]]]
    pools_left_out: int
    consumers: Sequence[tuple[str, int]]
    style: Style


def select(pools: Sequence[PoolPicture], window: Window) -> Selection:
    """Return the selection of these pools to draw."""
    busiest = {id(pool) for pool in sorted(pools, key=_weight, reverse=True)[:MOST_POOLS]}
    kept = [pool for pool in pools if id(pool) in busiest]
    lanes = sorted(
        (lane for pool in kept for lane in pool.lanes.values()),
        key=lambda lane: (bool(lane.marks), len(lane)),
        reverse=True,
    )[:MOST_LANES]
    style, lanes = _fitting(lanes, window)
    consumers = Counter(bar.consumer for lane in lanes for bar in lane.bars).most_common()
    colours = {name: f"c{n}" for n, (name, _) in enumerate(consumers[:MOST_COLOURS])}
    drawn = {id(lane) for lane in lanes}
    return Selection(
        [
            (pool, sorted((v for v in pool.lanes.values() if id(v) in drawn), key=_natural))
            for pool in kept
        ],
        len(pools) - len(kept),
        consumers,
        style._replace(colours=colours),
    )


def _fitting(lanes: list[Lane], window: Window) -> tuple[Style, list[Lane]]:
    """Return the finest style in which all lanes fit, or the coarsest and those that fit."""

    def sizes(resolution: int | None) -> list[int]:
        return [elements(lane, Style(window, {}, resolution)) for lane in lanes]

    resolution = resolution_for(lambda resolution: sum(sizes(resolution)), MOST_ELEMENTS)
    fit = takewhile(lambda size: size <= MOST_ELEMENTS, accumulate(sizes(resolution)))
    return Style(window, {}, resolution), lanes[: len(list(fit))]


def _weight(pool: PoolPicture) -> int:
    return pool.miss_reasons.total() + sum(map(len, pool.lanes.values()))


def _natural(lane: Lane) -> tuple[list[tuple[int, int, str]], str]:
    """Return a natural sort key for addresses: 10.0.0.9 before 10.0.0.10."""
    place = lane.address.rpartition("://")[2]
    parts = (part for part in re.split(r"([0-9]+)", place) if part)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], lane.address
