"""Format moments, spans, counts and reasons for a report: short, and in UTC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ..models import MissReason, PoolMissed

REASONS = {
    MissReason.AT_CAPACITY: "every proxy that fits was at capacity",
    MissReason.RESTING: "a proxy that fits was resting after its last lease",
    MissReason.ROTATING: "a proxy that fits was resting until it has another exit",
    MissReason.COOLING_DOWN: "the free proxies that fit were resting for the target",
    MissReason.TARGET_TROUBLED: "the target was in trouble, and a lease was trying it already",
    MissReason.SESSION_BUSY: "the proxy that the session requires was not free",
    MissReason.ALL_BOUND: "the free proxies that fit were bound to other sessions",
    MissReason.LIMIT_REACHED: "a limit of the pool left no room",
    MissReason.NONE_HEALTHY: "no proxy that fits was healthy",
    MissReason.NO_MATCH: "no proxy fits the filters",
    MissReason.EMPTY_POOL: "the pool had no proxy",
    MissReason.UNKNOWN_POOL: "no pool had this name",
    MissReason.POOL_MOVING: "the pool was moving to another ledger",
    MissReason.POOL_MOVED: "the pool had moved to another ledger",
    MissReason.TOO_FEW: "fewer were free than a set needed",
}
"""The reasons of misses, worded to follow "because"."""


def full_moment(moment: datetime) -> str:
    """Return date and time, with milliseconds unless it is a whole second."""
    return f"{moment.astimezone(UTC):%Y-%m-%d} {time_of_day(moment)} UTC"


def time_of_day(moment: datetime) -> str:
    """Return the time without the date, with milliseconds unless it is a whole second."""
    moment = moment.astimezone(UTC)
    if moment.microsecond < 1000:
        return f"{moment:%H:%M:%S}"
    return f"{moment:%H:%M:%S.%f}"[:-3]


def span(length: timedelta | float) -> str:
    """Return a length of time in its two largest units."""
    seconds = length.total_seconds() if isinstance(length, timedelta) else length
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for unit, size, part, part_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= size:
            rest = whole % size // part_size
            return f"{whole // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun: "1 miss", "2,000 misses"."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def waited(milliseconds: int | None) -> str | None:
    """Return how long an acquisition waited, or None if it did not."""
    return None if milliseconds is None else f"waited {span(milliseconds / 1000)}"


def fell_back(missed: Sequence[PoolMissed]) -> str | None:
    """Return which other pools had none, and why; None if no others were tried."""
    had = (f"{each.pool_name} had none: {REASONS[each.reason]}" for each in missed)
    return "; ".join(had) or None


def asked_for(
    selector: str | None,
    filters: Mapping[str, Any] | None,
    *,
    predicate: bool,
    target: str | None = None,
) -> str | None:
    """Return selector and filters of an acquisition in one line, or None for the defaults."""
    parts = [f"{name}={_plain(value)}" for name, value in (filters or {}).items()]
    if predicate:
        parts.append("a predicate")
    if target:
        parts.append(f"target {target}")
    if selector:
        parts.append(str(selector))
    return ", ".join(parts) or None


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
