"""Acquire in turn: what a caller does who waits for a proxy.

It takes a ticket (:mod:`.waiting`) and waits until it is told. Meanwhile it looks when a lease
or a rest in its pool is over, as nobody else may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

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
from . import batch
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
            seconds = min(left, LOOK_S, _seconds_to_change(state, ticket))
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


def _seconds_to_change(state: State, ticket: Ticket) -> float:
    """Return how long it is until a lease or a rest of a ticket's pool is over."""
    with state.lock:
        pool, now = state.pools.get(ticket.pool_id), state.clock()
        moments = [] if pool is None else [pool.next_expiry(), pool.next_rest_over(now)]
        target = ticket.request.target
        if target is not None:
            moments.append(state.targets.next_end(ticket.pool_id, target, now))
    seconds = [(each - now).total_seconds() for each in moments if each is not None]
    return max(0.001, min(seconds, default=LOOK_S))


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
