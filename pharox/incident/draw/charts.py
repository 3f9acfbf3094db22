"""A pool's availability and misses over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise
from xml.etree.ElementTree import Element

from ...models import MissReason
from ..gather.shapes import MissSlot, Point, PoolPicture
from ..gather.thinning import Scale, lowest
from ..gather.window import Window
from ..wording import REASONS, count, span
from .markup import Tip, add, percent, tip

AVAILABILITY_SLOTS = 600
"""Above this number of changes, only the lowest availability of each time slot is drawn."""

_BAND, _GAP = 6, 2
_NAMES_TOLD = 5


def draw_availability(track: Element, pool: PoolPicture, window: Window, height: int) -> None:
    """Draw the numbers of total, active and available proxies.

    The areas show the numbers; a band above them shows when none was available.
    """
    points = lowest(pool.points, window, AVAILABILITY_SLOTS)
    top = max(1, *(point.total for point in points))
    above = _BAND + _GAP
    svg = add(track, "svg", height=above + height, role="img", tabindex=0, class_="availability")
    svg.set("aria-label", f"Availability of proxies over time. {_trend(points, window)}")
    scale = Scale(window)
    edges = [*(scale(point.at) for point in points), 1.0]
    area = add(
        svg,
        "svg",
        y=above,
        width="100%",
        height=height,
        viewBox="0 0 1 1",
        preserveAspectRatio="none",
    )
    for name in ("total", "active", "available"):
        shares = [getattr(point, name) / top for point in points]
        add(area, "path", d=_steps(edges, shares), class_=f"area {name}")
    for point, (left, right) in zip(points, pairwise(edges), strict=True):
        place = {"x": percent(left), "width": percent(right - left)}
        if point.total and not point.available:
            add(svg, "rect", class_="dry", **place, height=_BAND)
        add(
            svg,
            "rect",
            class_="slot",
            **place,
            height="100%",
            data_at=point.at.isoformat(),
            data_total=point.total,
            data_active=point.active,
            data_available=point.available,
            data_tip=tip(
                f"{point.available:,} of {point.total:,} available",
                (
                    ("From", window.format_moment(point.at)),
                    ("Active", f"{point.active:,}"),
                    ("Leases held", f"{point.leases:,}"),
                ),
            ),
        )


def draw_misses(
    track: Element, pool: PoolPicture, window: Window, slot_s: float, height: int
) -> None:
    """Draw the misses of each time slot by reason."""
    svg = add(track, "svg", height=height, role="img", tabindex=0, class_="misses")
    total = pool.miss_reasons.total()
    svg.set("aria-label", f"{count(total, 'miss', 'misses')}, counted every {span(slot_s)}.")
    scale, top = Scale(window), most_misses(pool)
    for _, slot in sorted(pool.misses.items()):
        left, right = scale(slot.begins), scale(slot.begins + timedelta(seconds=slot_s))
        _draw_slot(svg, slot, (left, right), top, height).set(
            "data-tip", _describe(slot, f"{window.format_moment(slot.begins)}, for {span(slot_s)}")
        )


def _draw_slot(
    svg: Element, slot: MissSlot, ends: tuple[float, float], top: int, height: int
) -> Element:
    """Draw one slot's misses, stacked by reason, and return their group."""
    group = add(svg, "g", class_="miss", data_count=slot.reasons.total())
    below = float(height)
    for reason in MissReason:
        if number := slot.reasons[reason]:
            tall = max(1.0, (height - 2) * number / top)
            below -= tall
            add(
                group,
                "rect",
                class_=f"r-{reason.value}",
                x=percent(ends[0]),
                width=percent(ends[1] - ends[0]),
                y=f"{below:.2f}",
                height=f"{tall:.2f}",
                data_reason=reason.value,
                data_count=number,
            )
    return group


def most_misses(pool: PoolPicture) -> int:
    """Return the largest number of misses in a slot."""
    return max((slot.reasons.total() for slot in pool.misses.values()), default=0)


def _describe(slot: MissSlot, when: str) -> Tip:
    asked = [(text or "any proxy", number) for text, number in slot.asked.most_common()]
    return tip(
        count(slot.reasons.total(), "miss", "misses"),
        (
            ("From", when),
            *(("Because", f"{REASONS[r]} ({n:,})") for r, n in slot.reasons.most_common()),
            ("By", _counted(slot.consumers.most_common())),
            ("Asked for", _counted(asked)),
        ),
    )


def _counted(numbers: Sequence[tuple[str, int]]) -> str:
    description = [f"{name} ({number:,})" for name, number in numbers[:_NAMES_TOLD]]
    more = len(numbers) - len(description)
    return ", ".join(description) + (f" and {more:,} more" if more else "")


def _steps(edges: Sequence[float], shares: Iterable[float]) -> str:
    """Return the SVG path of the area under a step function."""
    path = [f"M{edges[0]:.6f} 1"]
    for share, (left, right) in zip(shares, pairwise(edges), strict=True):
        path.append(f"L{left:.6f} {1 - share:.5f}H{right:.6f}")
    return "".join((*path, "V1Z"))


def _trend(points: Sequence[Point], window: Window) -> str:
    worst = min(points, key=lambda point: point.available)
    first, last = points[0], points[-1]
    return (
        f"{first.available} of {first.total} available at the start, {worst.available} of "
        f"{worst.total} at {window.format_moment(worst.at)}, "
        f"{last.available} of {last.total} at the end."
    )
