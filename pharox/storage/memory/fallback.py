"""Fallback: the pools of a request, in the order in which they are tried.

A request for a sticky session is for the pool first in which its key is bound. That pool alone
binds it: elsewhere the key is lent a proxy, and with the policy "require" it gets none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from ...models import MissReason, PoolMissed
from ...models.ids import NIL
from ..requests import AcquireRequest, AcquireSetRequest
from .exits import living_binding
from .moves import moved_reason
from .state import State

Request = AcquireRequest | AcquireSetRequest


@dataclass(frozen=True)
class Attempt:
    """A request as it is for one of its pools. With ``lends`` its key is not bound there."""

    request: Request
    lends: bool = False


@dataclass(frozen=True)
class Missed:
    """An attempt that found nothing, and why; ``free`` is how many were too few.

    ``limit`` has the limit that it reached, and when time frees it, by the names of their fields.
    """

    attempt: Attempt
    reason: MissReason
    free: int
    limit: dict[str, Any]


def attempts(state: State, request: Request, now: datetime) -> list[Attempt]:
    """Return a request as it is for each of its pools, in the order of trying.

    Of one that names a pool that does not exist it is that pool alone, where it misses. One that
    has moved is passed over like one that has nothing free.
    """
    if not request.fallback:
        return [Attempt(request)]
    pools = request.pools
    absent = [name for name in pools if name not in state.pool_ids]
    unknown = [name for name in absent if moved_reason(state, name) is None]
    if unknown:
        return [Attempt(_for_pool(request, unknown[0]))]
    sticky, home = getattr(request, "sticky", None), None
    if sticky is not None:
        key, ids = sticky.key, state.pool_ids
        here = (name for name in pools if name in ids)
        bound = (name for name in here if living_binding(state, ids[name], key, now) is not None)
        home = next(bound, None)
    if sticky is not None and home is not None:
        others = () if sticky.policy == "require" else (each for each in pools if each != home)
        pools = (home, *others)
    return [Attempt(_for_pool(request, name), home not in (None, name)) for name in pools]


def passed(state: State, missed: list[Missed]) -> tuple[PoolMissed, ...]:
    """Return pools that had nothing, with the reasons, as events have them."""
    return tuple(
        PoolMissed(
            pool_id=state.pool_ids.get(miss.attempt.request.pool_name, NIL),
            pool_name=miss.attempt.request.pool_name,
            reason=miss.reason,
            **miss.limit,
        )
        for miss in missed
    )


def _for_pool(request: Request, pool_name: str) -> Request:
    return replace(request, pool_name=pool_name, fallback=())
