"""What is drawn: a gauge and a sparkline, as numbers and paths for the SVG of a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from ..incident.wording import count
from .figures.activity import KEPT_S, SLOT_S, Slot, slot_of
from .shares import Share

SLOTS = KEPT_S // SLOT_S
"""How many slots a sparkline has."""

_HEIGHT = 40.0
_MISS_HEIGHT = 14.0


class Part(NamedTuple):
    """A part of a gauge: its share of the width from ``left``, in percent."""

    share: Share
    number: int
    left: float
    width: float


@dataclass(frozen=True, slots=True)
class Gauge:
    """A pool's proxies as parts of one bar."""

    parts: Sequence[Part]
    total: int

    @classmethod
    def of(cls, shares: Mapping[Share, int]) -> Gauge:
        """Return the gauge of a pool."""
        total = sum(shares.values())
        parts, left = [], 0.0
        for share in Share:
            width = 100 * shares[share] / total if total else 0.0
            parts.append(Part(share, shares[share], round(left, 3), round(width, 3)))
            left += width
        return cls(parts, total)

    @property
    def sentence(self) -> str:
        """The gauge in words, for who cannot see it."""
        told = [f"{part.number:,} {part.share.value}" for part in self.parts if part.number]
        return f"{count(self.total, 'proxy', 'proxies')}: {', '.join(told) or 'none'}"


class Bar(NamedTuple):
    """The misses of one slot: a bar from ``x``, as high as ``height``."""

    x: float
    height: float


@dataclass(frozen=True, slots=True)
class Spark:
    """How many proxies had room, and how many attempts missed, over a stretch of time.

    Its width is the number of slots, its height 40; ``line`` and ``area`` are paths.
    """

    line: str
    area: str
    misses: Sequence[Bar]
    lowest: int
    most_misses: int

    @classmethod
    def of(
        cls,
        available: int,
        total: int,
        slots: Mapping[int, Slot],
        end: datetime,
        slot_s: float = SLOT_S,
    ) -> Spark:
        """Return the sparkline of a pool that has so many available proxies at its end.

        The number at the end of an earlier slot is what the later ones have not changed yet.
        """
        last = slot_of(end, slot_s)
        ends, left = [], available
        for number in range(last, last - SLOTS, -1):
            ends.append(max(0, left))
            left -= slots[number].available if number in slots else 0
        ends.reverse()
        top = max(total, *ends, 1)
        steps = [f"{x},{_HEIGHT * (1 - value / top):.2f}" for x, value in enumerate(ends)]
        line = f"M{'L'.join(steps)}H{SLOTS}"
        first = last - SLOTS + 1
        missed = {
            number - first: slot.misses.total()
            for number, slot in slots.items()
            if number >= first and slot.misses
        }
        most = max(missed.values(), default=0)
        bars = [
            Bar(x, round(max(2.0, _MISS_HEIGHT * number / most), 2))
            for x, number in sorted(missed.items())
        ]
        return cls(line, f"{line}V{_HEIGHT:g}H0Z", bars, min(ends), most)
