"""What is asked of the directory of a fleet, and what it answers to a wrong guess."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from ..errors import ConflictError, InvalidInputError
from ..models import check_name


class PlaceRequest(NamedTuple):
    """That a pool is in a ledger from now on.

    It is refused if the directory says another ledger than that, or than ``instead_of``.
    """

    pool_name: str
    ledger: str
    instead_of: str | None = None


def place_request(pool_name: str, ledger: str, instead_of: str | None) -> PlaceRequest:
    """Return the request; raises :class:`InvalidInputError` if a name is not valid."""
    if instead_of is not None:
        check_name(instead_of, "ledger")
    return PlaceRequest(check_name(pool_name, "pool"), check_name(ledger, "ledger"), instead_of)


def check_places(pool_names: Collection[str] | None) -> Collection[str] | None:
    """Return the names to look up, None for all; raises :class:`InvalidInputError`."""
    if isinstance(pool_names, str):
        raise InvalidInputError("pool_names must be a collection of names", value=pool_names)
    return None if pool_names is None else [check_name(each, "pool") for each in pool_names]


def already_placed(pool_name: str, ledger: str) -> ConflictError:
    """Return the error for a pool that the directory has in another ledger."""
    return ConflictError(
        f"Pool {pool_name!r} is in the ledger {ledger!r}.", pool_name=pool_name, ledger=ledger
    )
