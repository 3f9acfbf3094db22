"""What proxies cost: exact decimals, without a currency.

A price is a plain number with at most 15 digits, so that it is exact in JSON too, where it is a
number. What something has come to may have more digits and is a text there. Nothing is ever
rounded: sums of the same costs are equal in whatever order they were added.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

GB = 10**9
"""The bytes of a gigabyte."""

_EXACT = Context(prec=400, traps=[Inexact, InvalidOperation])
_DIGITS_OF_A_GB = 9
_MOST_DIGITS = 15
_MOST_PLACES = 9
_ZERO = Decimal(0)


def plain(amount: Decimal) -> Decimal:
    """Return an amount without an exponent, a sign of zero, or zeros at its end."""
    return Decimal(format(amount.normalize(_EXACT).copy_abs(), "f"))


def total(*amounts: Decimal) -> Decimal:
    """Return the exact sum."""
    result = _ZERO
    for amount in amounts:
        result = _EXACT.add(result, amount)
    return plain(result)


def cost_of_bytes(count: int | None, cost_per_gb: Decimal | None) -> Decimal | None:
    """Return what some bytes cost, or None if they cost nothing."""
    if not count or not cost_per_gb:
        return None
    return plain(_EXACT.multiply(Decimal(count), cost_per_gb).scaleb(-_DIGITS_OF_A_GB, _EXACT))


def _not_a_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a price is a number")
    return value


def _exact_in_json(price: Decimal) -> Decimal:
    """Return a price that a number of JSON, read as a float, has exactly."""
    if price >= 10**_MOST_DIGITS or price.adjusted() < -_MOST_PLACES:
        is_exact = not price
    else:
        digits = plain(price).as_tuple()
        places = -int(digits.exponent)
        is_exact = places <= _MOST_PLACES and len(digits.digits) <= _MOST_DIGITS
    if not is_exact:
        raise ValueError(
            f"a price has at most {_MOST_DIGITS} digits, {_MOST_PLACES} of them decimal places"
        )
    return plain(price)


Price = Annotated[
    Decimal,
    BeforeValidator(_not_a_bool),
    Field(ge=0, allow_inf_nan=False),
    AfterValidator(_exact_in_json),
    PlainSerializer(float, return_type=float, when_used="json"),
]
"""What something costs, from 0 on, with at most 15 digits, 9 of them decimal places."""

Money = Annotated[Decimal, Field(ge=0, allow_inf_nan=False), AfterValidator(plain)]
"""What something has come to."""
