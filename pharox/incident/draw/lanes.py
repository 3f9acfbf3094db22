"""Draw one proxy's leases as bars, and its status changes as marks on the same line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from ...events import ProxyState
from ...models import LeaseStatus
from ..gather.shapes import HELD, Lane, LeaseBar, Mark
from ..gather.thinning import Scale, grouped, stacked
from ..gather.window import Window
from ..wording import count, span
from .markup import Tip, add, percent, tip

ENDINGS = {
    LeaseStatus.RELEASED: "released",
    LeaseStatus.EXPIRED: "expired",
    LeaseStatus.REVOKED: "revoked",
    LeaseStatus.ACTIVE: "held",
}
MARKS = {
    "active": "M0 -5A5 5 0 1 1 -0.01 -5Z",
    "slow": "M0 -6L6 5H-6Z",
    "inactive": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "banned": "M-2 -0L-5 -3L-3 -5L0 -2L3 -5L5 -3L2 0L5 3L3 5L0 2L-3 5L-5 3Z",
    "absent": "M-5.5 -1.5H5.5V1.5H-5.5Z",
}
"""A shape for each status, around its point, so that colour is not the only difference."""
SIGNS = {
    "from-before": "M0 0L7 {half:g}L0 {tall:g}Z",
    "goes-on": "M-7 0L0 {half:g}L-7 {tall:g}H0V0Z",
    "ran-out": "M-3 -2H1V{below:g}H-3Z",
}
"""The shape of a bar's end, in pixels from its end, for a given height of the bar."""
ABSENT = "absent"
OTHERS = "others"
"""The colour class of consumers without a colour of their own."""

_LINE, _EDGE, _LEAST = 9, 4, 24
_ABOVE, _MARK = 10, 7
_THIN = 0.002


class Style(NamedTuple):
    """How all lanes of a page are drawn."""

    window: Window
    colours: Mapping[str, str]
    resolution: int | None = None

    @property
    def scale(self) -> Scale:
        """The scale from moments to places in the window."""
        return Scale(self.window)


def elements(lane: Lane, style: Style) -> int:
    """Return how many bars and marks a lane has when drawn."""
    bars = sum(len(list(_groups(line, style))) for line in stacked(lane.bars))
    return bars + len(list(_marks(lane, style)))


def draw_lane(track: Element, lane: Lane, style: Style) -> None:
    """Draw a lane into its track, the marks above the bars so that none hides a short lease."""
    lines = stacked(lane.bars)
    above = _ABOVE if lane.bars and lane.marks else 0
    height = max(_LEAST, len(lines) * (_LINE + 1) + 2 * _EDGE)
    svg = add(track, "svg", height=above + height, role="img", tabindex=0, class_="lane")
    svg.set("aria-label", describe(lane, style.window))
    _draw_statuses(svg, lane, style)
    tall = _LINE if len(lines) > 1 else height - 3 * _EDGE
    for number, line in enumerate(lines):
        top = above + (_EDGE + number * (_LINE + 1) if len(lines) > 1 else (height - tall) / 2)
        for group in _groups(line, style):
            if len(group) == 1:
                _draw_bar(svg, lane, group[0], style, top, tall)
            else:
                _draw_group(svg, lane, group, style, top, tall)
    for marks in _marks(lane, style):
        _draw_mark(svg, marks, style, _MARK if above else height / 2)


def describe(lane: Lane, window: Window) -> str:
    """Describe a lane in a sentence, for screen readers."""
    ended = [
        f"{number:,} {word}"
        for status, word in ENDINGS.items()
        if (number := sum(bar.ending is status for bar in lane.bars))
    ]
    description = f"{lane.address}: {count(len(lane.bars), 'lease')}"
    description += f" ({', '.join(ended)})" if ended else ""
    changes = [f"{_change(mark)} at {window.format_moment(mark.at)}" for mark in lane.marks[:10]]
    more = [f"{len(lane.marks) - 10} more changes"] if len(lane.marks) > 10 else []
    return "; ".join((description, *changes, *more))


def _groups(line: Sequence[LeaseBar], style: Style) -> list[list[LeaseBar]]:
    return list(grouped(line, style.scale.ends, style.resolution))


def _marks(lane: Lane, style: Style) -> list[list[Mark]]:
    def ends(mark: Mark) -> tuple[float, float]:
        place = style.scale(mark.at)
        return place, place

    return list(grouped(lane.marks, ends, style.resolution))


def _draw_statuses(svg: Element, lane: Lane, style: Style) -> None:
    """Tint the lane where the proxy was not active."""
    status, since = lane.status or ABSENT, 0.0
    for mark in (*lane.marks, None):
        until = 1.0 if mark is None else style.scale(mark.at)
        becomes = status if mark is None else _status(mark.becomes)
        if mark is not None and becomes == status:
            continue
        if status != "active" and until > since:
            add(
                svg,
                "rect",
                class_=f"span s-{status}",
                x=percent(since),
                width=percent(until - since),
                height="100%",
                data_status=status,
            )
        status, since = becomes, until


def _draw_bar(
    svg: Element, lane: Lane, bar: LeaseBar, style: Style, top: float, tall: float
) -> None:
    window = style.window
    left, right = style.scale.ends(bar)
    before = bar.began < window.start
    parts = [
        "lease",
        f"e-{ENDINGS[bar.ending]}",
        style.colours.get(bar.consumer, OTHERS),
        "thin" if right - left < _THIN else "",
    ]
    add(
        svg,
        "rect",
        class_=" ".join(filter(None, parts)),
        x=percent(left),
        width=percent(max(right - left, 1e-6)),
        y=f"{top:g}",
        height=f"{tall:g}",
        rx=2,
        data_lease=bar.lease_id,
        data_consumer=bar.consumer,
        data_ending=ENDINGS[bar.ending],
        data_before="yes" if before else None,
        data_tip=_describe(lane, bar, window),
    )
    if before:
        _draw_end(svg, "from-before", 0.0, top, tall)
    if bar.ending is HELD:
        _draw_end(svg, "goes-on", 1.0, top, tall)
    elif bar.ending is LeaseStatus.EXPIRED:
        _draw_end(svg, "ran-out", right, top, tall)


def _draw_group(
    svg: Element, lane: Lane, bars: Sequence[LeaseBar], style: Style, top: float, tall: float
) -> None:
    left = style.scale(bars[0].began)
    right = max(style.scale.ends(bar)[1] for bar in bars)
    consumers = sorted({bar.consumer for bar in bars})
    colour = style.colours.get(consumers[0], OTHERS) if len(consumers) == 1 else OTHERS
    expired = sum(bar.ending is LeaseStatus.EXPIRED for bar in bars)
    add(
        svg,
        "rect",
        class_=f"lease several {'e-expired' if expired else 'e-released'} {colour}",
        x=percent(left),
        width=percent(max(right - left, 1e-6)),
        y=f"{top:g}",
        height=f"{tall:g}",
        data_count=len(bars),
        data_consumer=consumers[0] if len(consumers) == 1 else None,
        data_tip=tip(
            f"{len(bars):,} short leases",
            (
                ("Proxy", lane.address),
                ("From", style.window.format_moment(bars[0].began)),
                ("Consumers", ", ".join(consumers[:5]) + (" …" if len(consumers) > 5 else "")),
                ("Ran out", expired or None),
                ("Each", "is in timeline.jsonl"),
            ),
        ),
    )


def _draw_end(svg: Element, name: str, place: float, top: float, tall: float) -> None:
    """Draw the end of a bar: a shape in pixels at a place on the time axis."""
    box = add(svg, "svg", x=percent(place), y=f"{top:g}", class_="end")
    path = SIGNS[name].format(half=tall / 2, tall=tall, below=tall + 2)
    add(box, "path", d=path, class_=name)


def _draw_mark(svg: Element, marks: Sequence[Mark], style: Style, middle: float) -> None:
    last = marks[-1]
    status = _status(last.becomes)
    add(
        svg,
        "use",
        href=f"#mark-{status}",
        class_=f"mark s-{status}",
        x=percent(style.scale(last.at)),
        y=f"{middle:g}",
        data_count=len(marks),
        data_at=last.at.isoformat(),
        data_status=status,
        data_tip=tip(
            _change(last) if len(marks) == 1 else f"{len(marks):,} changes",
            (
                ("At", style.window.format_moment(last.at)),
                *((("Because", last.why),) if len(marks) == 1 else (("At last", _change(last)),)),
            ),
        ),
    )


def _describe(lane: Lane, bar: LeaseBar, window: Window) -> Tip:
    until = window.end if bar.ended is None else bar.ended
    began = window.format_moment(bar.began)
    if bar.began < window.start:
        began += f", {span(window.start - bar.began)} before the window"
    ended = f"still held when the window ends, after {span(until - bar.began)}"
    if bar.ended is not None:
        verb = "ran out" if bar.ending is LeaseStatus.EXPIRED else ENDINGS[bar.ending]
        ended = f"{verb} at {window.format_moment(bar.ended)}" + (
            f": {bar.reason}" if bar.reason else ""
        )
    return tip(
        bar.consumer,
        (
            ("Proxy", lane.address),
            ("Began", began),
            ("Ended", ended),
            ("Held for", span(until - bar.began) if bar.ended is not None else None),
            (
                "Granted until",
                f"{window.format_moment(bar.expires_at)} ({span(bar.expires_at - bar.began)})",
            ),
            ("Renewed", count(bar.renewals, "time") if bar.renewals else None),
            ("Fell back", bar.fell_back),
            ("Waited", None if bar.waited_ms is None else span(bar.waited_ms / 1000)),
            ("Asked for", bar.asked),
            ("Job", bar.job),
            ("Lease", bar.lease_id),
            ("Fencing token", bar.token),
        ),
    )


def _status(state: ProxyState | None) -> str:
    return ABSENT if state is None else state.status.value


def _change(mark: Mark) -> str:
    was, becomes = mark.was, mark.becomes
    if was is None or becomes is None:
        return f"registered as {_status(becomes)}" if was is None else "removed from the pool"
    if was.status != becomes.status:
        return f"{was.status.value} → {becomes.status.value}"
    return f"at most {becomes.max_concurrency or 'any number of'} leases"
