"""What the page of a pool shows: now from the read models, then from its past. No HTTP here.

A view has the same shape for both, so that the page looks the same wherever the slider stands. Who
waited is not recorded, and sources have pages of their own: both are left out of the past, and the
page says so.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from markupsafe import Markup

from ..errors import InvalidInputError
from ..history.past.keyframes import Keyframes
from ..incident.gather.window import Window as DrawnWindow
from ..models import ProxyPool, SourceStatus
from ..models.ids import NIL
from .drawing import SLOTS, Gauge, Spark
from .figures import Figures
from .figures.activity import KEPT_S, Activity, Slot
from .pool_lines import LeaseLine, PoolLines, ProxyLine, SessionLine, after_leases, after_proxies
from .shares import shares_then
from .timeline import MOST_EVENTS as MOST_DRAWN
from .timeline import draw_timeline

T = TypeVar("T")

MOST_MADE = 60
"""How many charts and timelines of windows are kept."""

MOST_EVENTS = 400_000
"""How many events a chart may count that is not of the last quarter of an hour."""

SPANS = {900: "15 min", 3600: "1 h", 21600: "6 h", 86400: "24 h"}
"""The lengths of the chart and its slider, in seconds."""


@dataclass(frozen=True, slots=True)
class Window:
    """The time that chart and slider cover; ``place`` is where the moment is in it, from 0 to 1."""

    begin: datetime
    end: datetime
    span_s: int
    place: float


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a pool: a moment (None for now), the window around it, and which page."""

    at: datetime | None = None
    span_s: int = KEPT_S
    end: datetime | None = None
    leases_after: tuple[UUID, UUID] = (NIL, NIL)
    proxies_after: UUID = NIL

    @property
    def is_first_page(self) -> bool:
        """Whether leases and proxies are shown from the first one on."""
        return self.leases_after == (NIL, NIL) and self.proxies_after == NIL

    def __post_init__(self) -> None:
        if self.span_s not in SPANS:
            raise InvalidInputError(
                f"span must be one of {', '.join(map(str, SPANS))} seconds", value=self.span_s
            )


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool at a moment. ``chart`` is None if more happened than is counted for a page.

    ``timeline`` is HTML; it is None if too much or nothing happened for one.
    ``next_leases`` and ``next_proxies`` are what the next pages begin after, None on the last one.
    Unless ``is_whole``, chart and misses are those of what was read of the window so far.
    ``looked_from`` is the first event that was looked at for rests, outcomes and sessions of the
    past, None if all were.
    """

    pool: ProxyPool
    at: datetime
    seq: int
    is_past: bool
    window: Window
    gauge: Gauge
    chart: Spark | None
    available: int
    active_leases: int
    waiting: int
    misses: Mapping[str, int]
    leases: Sequence[LeaseLine]
    proxies: Sequence[ProxyLine]
    next_leases: tuple[UUID, UUID] | None = None
    next_proxies: UUID | None = None
    sessions: Sequence[SessionLine] = ()
    timeline: Markup | None = None
    sources: Sequence[SourceStatus] = ()
    is_whole: bool = True
    looked_from: int | None = None


class PoolViews:
    """Makes the views of the pools of a storage."""

    def __init__(
        self, storage: Any, figures: Figures, activity: Activity, keyframes: Keyframes
    ) -> None:
        self._storage, self._figures = storage, figures
        self._lines = PoolLines(storage, figures)
        self._activity, self._keyframes = activity, keyframes
        self._made: OrderedDict[tuple[str, Hashable], Any] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, pool_id: UUID, question: Question) -> PoolView:
        """Return a pool at a moment.

        Raises
        ------
        PoolNotFoundError
            If there is no such pool now.
        InvalidInputError
            If the moment is in the future.
        """
        pool: ProxyPool = self._storage.get_pool(str(pool_id))
        now = self._figures.now()
        if question.at is None:
            return self._now(pool, question, now)
        if question.at > now + timedelta(seconds=1):
            raise InvalidInputError(f"{question.at.isoformat()} is in the future")
        return self._then(pool, question, min(question.at, now), now)

    def _now(self, pool: ProxyPool, question: Question, now: datetime) -> PoolView:
        self._activity.advance(now)
        seq = self._figures.log.last_seq()
        figures = next(each for each in self._figures.pools() if each.id == pool.id)
        window = _window(question, now, now)
        is_whole = self._is_whole(window, now)
        slots = self._slots(pool.id, window, now, seq)
        leases = self._lines.leases(pool, question.leases_after, seq)
        proxies = self._lines.proxies(pool, question.proxies_after, now)
        return PoolView(
            pool,
            now,
            seq,
            False,
            window,
            Gauge.of(figures.shares),
            _chart(figures.available, figures.total, slots, window),
            figures.available,
            figures.leases,
            figures.waiting,
            _misses(slots),
            leases,
            proxies,
            after_leases(leases),
            after_proxies(proxies),
            self._lines.sessions(pool),
            self._timeline(pool, window, seq),
            self._storage.list_sources(pool.name),
            is_whole=is_whole,
        )

    def _then(self, pool: ProxyPool, question: Question, at: datetime, now: datetime) -> PoolView:
        last = self._figures.log.last_seq()
        seq = self._figures.log.seq_near(at, last)
        state = self._keyframes.at(pool.id, seq, last)
        window = _window(question, at, now)
        if _is_recent(window, now):
            self._activity.advance(now)
        is_whole = self._is_whole(window, now)
        slots = self._slots(pool.id, window, now, last)
        chart = None
        if slots is not None:
            end = self._keyframes.at(pool.id, self._ends(window, last)[1], last)
            chart = _chart(end.available, len(end.proxies), slots, window)
        after = question.leases_after, question.proxies_after
        lines = self._lines.then(pool.id, state, after, at)
        return PoolView(
            pool,
            at,
            seq,
            True,
            window,
            Gauge.of(shares_then(state, lines.resting)),
            chart,
            state.available,
            len(state.leases),
            0,
            _misses(slots),
            lines.leases,
            lines.proxies,
            after_leases(lines.leases),
            after_proxies(lines.proxies),
            lines.sessions,
            self._timeline(pool, window, last),
            is_whole=is_whole,
            looked_from=lines.looked_from,
        )

    def _timeline(self, pool: ProxyPool, window: Window, last: int) -> Markup | None:
        """Return the timeline of a window. It is kept while the slider moves in the window."""
        after, upto = self._ends(window, last)
        if upto - after > MOST_DRAWN:
            return None

        def draw() -> Markup | None:
            then = self._keyframes.at(pool.id, after, last)
            drawn = DrawnWindow(window.begin, window.end, after, upto)
            return draw_timeline(self._storage, self._figures.past, pool, then, drawn)

        return self._kept("timeline", (pool.id, after, upto), draw)

    def _ends(self, window: Window, last: int) -> tuple[int, int]:
        """Return the seqs between which a window's events are."""
        near = self._figures.log.seq_near
        key = window.begin, window.end
        return self._kept("ends", key, lambda: (near(window.begin, last), near(window.end, last)))

    def _kept(self, what: str, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for this key, if it was made lately: windows stay, sliders move."""
        with self._lock:
            if (what, key) in self._made:
                self._made.move_to_end((what, key))
                known: T = self._made[what, key]
                return known
        made = make()
        with self._lock:
            self._made[what, key] = made
            while len(self._made) > MOST_MADE:
                self._made.popitem(last=False)
        return made

    def _is_whole(self, window: Window, now: datetime) -> bool:
        """Return whether all of a window was read that is not counted for the page."""
        return self._activity.is_whole or not _is_recent(window, now)

    def _slots(
        self, pool_id: UUID, window: Window, now: datetime, last: int
    ) -> Mapping[int, Slot] | None:
        """Return what happened in a window by slot; None if it is too much to count."""
        if _is_recent(window, now):
            return self._activity.of(pool_id)
        log = self._figures.log
        after, upto = self._ends(window, last)
        if upto - after > MOST_EVENTS:
            return None

        def count() -> dict[int, Slot]:
            slots: dict[int, Slot] = {}
            length = window.span_s / SLOTS
            for counted in log.count(after, upto, slot_s=length, pool_id=pool_id):
                slots.setdefault(counted.slot, Slot()).add(counted)
            return slots

        return self._kept("slots", (pool_id, after, upto, window.span_s), count)


def _window(question: Question, at: datetime, now: datetime) -> Window:
    """Return the window: up to now if the moment is in it, else with the moment in the middle."""
    span = timedelta(seconds=question.span_s)
    end = question.end
    if end is None or not end - span <= at <= end:
        end = now if now - at <= span else at + span / 2
    end = min(end, now)
    begin = end - span
    return Window(begin, end, question.span_s, min(1.0, max(0.0, (at - begin) / span)))


def _is_recent(window: Window, now: datetime) -> bool:
    """Return whether a window is the last quarter of an hour, of which activity is kept."""
    return window.span_s == KEPT_S and now - window.end < timedelta(seconds=2)


def _chart(
    available: int, total: int, slots: Mapping[int, Slot] | None, window: Window
) -> Spark | None:
    if slots is None:
        return None
    return Spark.of(available, total, slots, window.end, window.span_s / SLOTS)


def _misses(slots: Mapping[int, Slot] | None) -> dict[str, int]:
    sums: dict[str, int] = {}
    for slot in (slots or {}).values():
        for reason, number in slot.misses.items():
            sums[reason] = sums.get(reason, 0) + number
    return dict(sorted(sums.items(), key=lambda each: -each[1]))
