"""Which proxy an acquisition is offered, and for how long, if nobody says it."""

from __future__ import annotations

from enum import StrEnum

from ..errors import InvalidInputError


class SelectorStrategy(StrEnum):
    """The order in which free proxies are offered. ``docs/leasing.md`` defines each."""

    FIRST_AVAILABLE = "first_available"
    LEAST_USED = "least_used"
    ROUND_ROBIN = "round_robin"
    LOWEST_LATENCY = "lowest_latency"
    LEAST_RECENTLY_USED = "least_recently_used"


class DefaultSeconds(int):
    """How long a lease lasts, in seconds, unless its pool has ``lease_seconds``."""


DEFAULT_DURATION_S = DefaultSeconds(300)
"""How long a lease lasts if neither the caller nor the pool says it."""


def check_selector(selector: SelectorStrategy | str) -> SelectorStrategy:
    """Return a selector, which may be given as its value, or raise InvalidInputError."""
    try:
        return SelectorStrategy(selector)
    except ValueError:
        known = ", ".join(SelectorStrategy)
        raise InvalidInputError(
            f"selector must be one of {known}, not {selector!r}", value=selector
        ) from None
