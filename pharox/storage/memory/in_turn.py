"""Acquire in turn: what a caller does who waits for a proxy.

It takes a ticket (:mod:`.waiting`) and waits until it is told. Meanwhile it looks when a lease,
a rest or a ban in its pool is over, as nobody else may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

from ...effects import Calls
from ...effects.cancelling import CANCELLED
from ..requests import (
    AcquireRequest,
    AcquireSetRequest,
    Acquisition,
    ReleaseRequest,
    SetAcquisition,
    new_leases,
)
from . import batch, limits, sessions
from .acquire import end_wait
from .state import State
from .waiting import Ticket, Told

LOOK_S = 1.0
"""How often a waiting caller looks at least: the storage's clock may be moved."""

Found = Acquisition | SetAcquisition


@contextmanager
def freeing(state: State) -> Iterator[None]:
    """Hold the lock for a block that may make proxies free, and then serve who waits."""
    with state.lock:
        yield
        batch.serve_all(state)


def acquire(
    state: State,
    request: AcquireRequest | AcquireSetRequest,
    wait: Callable[[Future[Told], float], Any],
) -> Calls[Found]:
    """Lease a proxy or a set, waiting for it in turn.

    Parameters
    ----------
    wait:
        Returns what a future was told; None if it is told nothing within so many seconds.
    """
    until = time.monotonic() + float(request.wait_seconds or 0)
    with state.lock:
        (ticket,) = batch.carry_out(state, [request])
    if not isinstance(ticket, Ticket):
        return _found(ticket)
    told: Told | None = None
    try:
        while told is None and (left := until - time.monotonic()) > 0:
            seconds = min(left, LOOK_S, _pause(state, ticket))
            told = yield partial(wait, ticket.told, seconds)
            if told is None and state.queues.is_first(ticket):  # One looks for all.
                with state.lock:
                    ticket.expired += batch.serve_all(state)
        if told is None:
            with freeing(state):
                told = end_wait(state, ticket, state.clock())
    except GeneratorExit:
        raise
    except BaseException:
        _give_up_place(state, ticket)
        raise
    found = _counted(_found(told.outcome), told.at)
    return replace(found, expired=(*ticket.expired, *found.expired))


def _found(outcome: Any) -> Found:
    """Return an outcome, or raise it if it is an error."""
    if isinstance(outcome, Exception):
        raise outcome
    found: Found = outcome
    return found


def _pause(state: State, ticket: Ticket) -> float:
    """Return for how long a waiting ticket's caller need not look by itself."""
    with state.lock:
        changes = [
            seconds_to_change(state, pool_id, ticket.request.target) for pool_id in ticket.rounds
        ]
        now = state.clock()
        starts = [
            limits.next_start(state, pool_id, now)
            for pool_id in ticket.rounds
            if pool_id in state.pools
        ]
    changes += [(start - now).total_seconds() for start in starts if start is not None]
    return max(0.001, min((each for each in changes if each is not None), default=LOOK_S))


def seconds_to_change(
    state: State, pool_id: UUID, target: str | None, session: str | None = None
) -> float | None:
    """Return the seconds until something of a pool may be free, or the proxy of a session."""
    pool, now = state.pools.get(pool_id), state.clock()
    if pool is None:
        return None
    moments = [pool.next_expiry(), pool.next_rest_over(now), pool.next_ban_over()]
    if target is not None:
        moments.append(state.targets.next_end(pool_id, target, now))
    if session is not None:
        moments = sessions.changes(state, pool_id, target, session, now) or [
            *moments,
            sessions.next_end(state, pool_id, now),
        ]
    seconds = [(each - now).total_seconds() for each in moments if each is not None]
    return max(0.0, min(seconds)) if seconds else None


def _give_up_place(state: State, ticket: Ticket) -> None:
    """Give up the place of a caller who has gone, and what it was granted."""
    with freeing(state):
        if not state.queues.leave(ticket):
            leases = new_leases(ticket.told.result().outcome)
            batch.carry_out(state, [ReleaseRequest(lease, CANCELLED) for lease in leases])


def _counted(outcome: Found, begun: float) -> Found:
    """Return an outcome whose leases count from a moment."""
    if isinstance(outcome, Acquisition):
        return replace(outcome, counts_from=begun)
    parts = tuple(replace(each, counts_from=begun) for each in outcome.acquisitions)
    return replace(outcome, acquisitions=parts)
