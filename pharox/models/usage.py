"""What was used of proxies: leases, requests, bytes and money, summed up from the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal, localcontext
from typing import Literal, get_args

from pydantic import ConfigDict

from ..errors import InvalidInputError
from .model import Model
from .money import Money

UsageKey = Literal["consumer", "source", "target", "pool", "day"]
"""What usage can be summed up by."""

USAGE_KEYS: tuple[str, ...] = get_args(UsageKey)

_DIGITS = 12


class Usage(Model):
    """What one group of leases and requests has used.

    ``consumer``, ``source``, ``target``, ``pool`` and ``day`` say which group it is, each None if
    usage was not asked for by it, or if it is unknown. ``source`` is the label that the proxy had
    then, ``target`` the host that was asked, or, of a lease, the one that it was acquired for;
    ``pool`` is the pool's name at that time, and ``day`` one of UTC.

    ``leases`` is how many began, ``requests`` how many outcomes were reported, ``ok`` how many of
    these were OK. ``bytes`` are those that were reported. ``money`` is what the bytes and leases
    cost, by the prices at that time; it is exact.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    consumer: str | None = None
    source: str | None = None
    target: str | None = None
    pool: str | None = None
    day: date | None = None
    leases: int = 0
    requests: int = 0
    ok: int = 0
    bytes: int = 0
    money: Money = Decimal(0)

    @property
    def ok_share(self) -> float | None:
        """The part of requests that were OK, from 0 to 1; None without requests."""
        return self.ok / self.requests if self.requests else None

    @property
    def money_per_ok(self) -> Decimal | None:
        """What a request that was OK cost, all others included, to 12 digits; None without one."""
        return _share(self.money, self.ok)

    @property
    def money_per_request(self) -> Decimal | None:
        """What a request cost, to 12 digits; None without one."""
        return _share(self.money, self.requests)

    @property
    def money_per_lease(self) -> Decimal | None:
        """What a lease cost, its requests included, to 12 digits; None without one."""
        return _share(self.money, self.leases)

    def group(self) -> tuple[str, ...]:
        """Return which group it is, as texts, to sort by."""
        return tuple(str(getattr(self, key) or "") for key in USAGE_KEYS)


def checked_keys(by: Sequence[str]) -> tuple[str, ...]:
    """Return what usage is summed up by, in the order of the fields.

    Raises
    ------
    InvalidInputError
        If it is no list of some of these, each once.
    """
    if isinstance(by, str) or not isinstance(by, Sequence):
        raise InvalidInputError("by must be a list, such as ['consumer', 'day']", value=by)
    for key in by:
        if key not in USAGE_KEYS:
            raise InvalidInputError(
                f"usage is summed up by {', '.join(USAGE_KEYS)}, not by {key!r}", value=key
            )
    if len(set(by)) != len(by):
        raise InvalidInputError("by names something twice", value=by)
    return tuple(key for key in USAGE_KEYS if key in by)


def _share(money: Decimal, count: int) -> Decimal | None:
    if not count:
        return None
    with localcontext(prec=_DIGITS):
        return money / count
