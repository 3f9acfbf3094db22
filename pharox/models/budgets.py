"""The budgets of a day: their short names, and how they are shown."""

from __future__ import annotations

from decimal import Decimal

from .limits import PoolLimits

BUDGETS = {
    "bytes": "bytes_per_day",
    "money": "money_per_day",
    "consumer-bytes": "consumer_bytes_per_day",
    "consumer-money": "consumer_money_per_day",
}
"""The budgets of a day, and the field of each."""


def shown_budgets(limits: PoolLimits) -> str | None:
    """Return the budgets of a pool, as ``--budget`` takes them; None if there are none."""
    parts = (
        f"{name}={value:f}" if isinstance(value, Decimal) else f"{name}={_shown_size(value)}"
        for name, field in BUDGETS.items()
        if (value := getattr(limits, field)) is not None
    )
    return ",".join(parts) or None


def _shown_size(count: int) -> str:
    """Return a number of bytes in a unit, if that is shorter."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        whole, rest = divmod(count, 1000**power)
        thousandths, rest = divmod(rest, 1000 ** (power - 1))
        if whole and not rest and (whole < 1000 or unit == "TB"):
            return f"{whole}.{thousandths:03}".rstrip("0").rstrip(".") + unit
    return str(count)
