"""What bounds the leases of a pool: how many at once, how many starts in a window, and budgets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from .model import Model
from .money import Price
from .refusing import Refusing

MAX_PACE_S = 31 * 86_400
"""The longest window of a pace, in seconds."""

MAX_PACES = 8
"""How many paces a pool may have."""


def _not_a_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


_Number = BeforeValidator(_not_a_bool)
_Most = Annotated[int, _Number, Field(ge=1, le=1_000_000)]
_Bytes = Annotated[int, _Number, Field(ge=1, lt=2**53)]
_Money = Annotated[Price, Field(gt=0)]

PacePer = Literal["proxy", "pair", "consumer"]
"""Whose starts a pace counts: those of a proxy, of a proxy for one target, of a consumer."""


class Pace(Refusing):
    """At most ``starts`` leases begin in any ``seconds``, for each proxy, pair or consumer.

    The window slides: any span of that length counts, whenever it begins. ``per`` is "proxy",
    "pair" (a proxy for one target; leases without a target have none) or "consumer". A renewal is
    no start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    starts: Annotated[int, _Number, Field(ge=1, le=10_000)]
    seconds: Annotated[float, _Number, Field(gt=0, le=MAX_PACE_S, allow_inf_nan=False)]
    per: PacePer = "proxy"


class PoolLimits(Refusing):
    """The bounds of a pool's leases, for all processes together. None is no bound.

    ``leases_per_consumer`` is how many leases a consumer may hold at once, ``leases_per_target``
    how many may be held at once for one target. ``paces`` bound how many begin in a window of time.
    What was leased while the pool had no limits does not count.

    ``bytes_per_day`` and ``money_per_day`` are budgets of the whole pool,
    ``consumer_bytes_per_day`` and ``consumer_money_per_day`` of each consumer. A day is one of
    UTC. A lease is granted while less than that is used: bytes count when outcomes report them,
    money when a lease begins or its bytes are reported. So what is under way when a budget is used
    up goes beyond it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    leases_per_consumer: _Most | None = None
    leases_per_target: _Most | None = None
    paces: Annotated[tuple[Pace, ...], Field(max_length=MAX_PACES)] = ()
    bytes_per_day: _Bytes | None = None
    money_per_day: _Money | None = None
    consumer_bytes_per_day: _Bytes | None = None
    consumer_money_per_day: _Money | None = None


class LimitReached(Model):
    """The limit for which a request got nothing, as ``AcquireMissed.limit``.

    ``name`` is the field of :class:`PoolLimits`, ``per`` whose limit it is: that of a consumer, a
    target, a proxy, a pair, or, of a budget, the whole pool. ``used`` of at most ``most`` were
    used; of a pace, in ``seconds``. Of a budget these are bytes, or money.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    per: str
    most: int | float
    used: int | float
    seconds: float | None = None

    @property
    def unit(self) -> Literal["bytes", "money"] | None:
        """What a budget of a day counts; None if the limit is of leases."""
        if not self.name.endswith("_per_day"):
            return None
        return "bytes" if self.name.endswith("bytes_per_day") else "money"

    def __str__(self) -> str:
        """Return what was used of what may be, as the end of a sentence."""
        if self.unit is not None:
            used, most = f"{self.used:,}", f"{self.most:,}"
            if self.unit == "money":
                return f"the {self.per} has spent {used} today, and may spend {most} a day"
            return f"the {self.per} has used {used} bytes today, and may use {most} a day"
        used, most = f"{self.used:g}", f"{self.most:g}"
        if self.seconds is not None:
            return f"the {self.per} began {used} of at most {most} leases in {self.seconds:g} s"
        return f"the {self.per} has {used} of at most {most} leases"
