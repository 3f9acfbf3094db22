"""Which proxy an acquisition is offered, and for how long, if nobody says it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import md5
from uuid import UUID

from ..errors import InvalidInputError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class SelectorStrategy(StrEnum):
    """The order in which free proxies are offered. ``docs/leasing.md`` defines each."""

    FIRST_AVAILABLE = "first_available"
    LEAST_USED = "least_used"
    ROUND_ROBIN = "round_robin"
    LOWEST_LATENCY = "lowest_latency"
    LEAST_RECENTLY_USED = "least_recently_used"
    MOST_SUCCESSFUL = "most_successful"
    WEIGHTED = "weighted"


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


EXPLORED_SHARE = 0.05
"""How often MOST_SUCCESSFUL offers any proxy, rather than the best."""


def seed_of(target: str, at: datetime) -> str:
    """Return what everything begins with that is drawn for a target at a moment (``seed_v1``)."""
    return f"{target}:{(at - _EPOCH) // timedelta(microseconds=1)}"


def explores(seed: str) -> bool:
    """Return whether MOST_SUCCESSFUL explores at a moment (``explores_v1``)."""
    return int(drawn(seed)[:8], 16) < EXPLORED_SHARE * 2**32


def drawn(seed: str) -> str:
    """Return what is drawn, in hexadecimal digits."""
    return md5(seed.encode(), usedforsecurity=False).hexdigest()


FULL_STEP = 306_306_000
"""How far turns of a proxy of weight 1 are apart. 1 to 18, 20, 25, 50, 100 and 1000 divide it."""


def step_of(weight: int | None) -> int:
    """Return how far the turns of a proxy of this weight are apart (``turns_v1``)."""
    return FULL_STEP // (weight or 1)


def turns_after(
    proxy_id: UUID, next_turn: int | None, step: int, reached: int | None
) -> tuple[int, int]:
    """Return the turn of a proxy's lease by WEIGHTED, and of the one after it (``turns_v1``).

    Parameters
    ----------
    next_turn:
        What the lease before said; None if there was none.
    reached:
        The latest turn of a proxy with the same status, from which who was away goes on.
    """
    turn = max(next_turn or 0, reached or 0)
    if next_turn is not None:
        return turn, turn + step
    return turn, turn + 1 + (step * int(drawn(str(proxy_id))[:8], 16) >> 32)


def success_score(successes: float, failures: float) -> float:
    """Return the score of a record at a target: a half without any, by Laplace's rule."""
    return (successes + 1) / (successes + failures + 2)
