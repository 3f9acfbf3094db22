"""Fallback: several pools for one request, tried in their order."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from pydantic import ConfigDict

from ..errors import InvalidInputError
from .lease import MissReason
from .limits import LimitReached
from .model import Model
from .validation import check_name

MAX_FALLBACK = 10
"""The maximum number of pools that a request falls back to."""


class PoolMissed(Model):
    """A pool in which a request with a fallback got nothing, and why.

    A pool that does not exist has the id of none (all zeros). ``limit`` is the one that was
    reached, if that is the reason, which time frees in ``retry_after_seconds``. Events have both,
    and the outcome of a miss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool_id: UUID
    pool_name: str
    reason: MissReason
    limit: LimitReached | None = None
    retry_after_seconds: float | None = None


def check_fallback(pool_name: str, fallback: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the pools that a request falls back to.

    Raises
    ------
    InvalidInputError
        If it is not a sequence of names, has too many, or names a pool twice.
    """
    if isinstance(fallback, str) or not isinstance(fallback, Iterable):
        raise InvalidInputError(
            f'fallback must be a sequence of names, such as ["datacenter"], not {fallback!r}',
            value=fallback,
        )
    names = tuple(check_name(each, "pool") for each in fallback)
    if len(names) > MAX_FALLBACK:
        raise InvalidInputError(f"fallback must name at most {MAX_FALLBACK} pools", value=names)
    if len({pool_name, *names}) <= len(names):
        raise InvalidInputError("a request cannot fall back to the same pool twice", value=names)
    return names
