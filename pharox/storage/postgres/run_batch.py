"""Carry out requests of all kinds, in as few commits as their predicates allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import psycopg

from ..requests import Command as Request
from ..requests import (
    CommandOutcomes,
    EndedLease,
    ReleaseRequest,
    assign_expired_by_pool,
    batch_order,
)
from ..validation import check_commands
from . import alone
from .batch import Release, command_of, runs_alone
from .commands import Commands
from .driver import Program

T = TypeVar("T")


def run_batch(commands: Commands, requests: Sequence[Request]) -> Program[CommandOutcomes]:
    """Carry out requests of any kind: releases first, then acquisitions in request order.

    One with a predicate, for a session, or with a fallback has its own commit, between those before
    and after it.
    """
    check_commands(requests)
    return _run_batch(commands, requests)


def _run_batch(commands: Commands, requests: Sequence[Request]) -> Program[CommandOutcomes]:
    outcomes: list[Any] = [None] * len(requests)
    together: list[int] = []
    expired: list[EndedLease] = []
    if any(map(runs_alone, requests)):
        expired = yield from _prepare(commands, requests)
    for place in batch_order(requests):
        if runs_alone(requests[place]):
            yield from _run_together(commands, requests, together, outcomes)
            search = alone.acquire(commands, cast("Any", requests[place]))
            outcomes[place] = yield from _outcome_or_error(search)
            together = []
        else:
            together.append(place)
    yield from _run_together(commands, requests, together, outcomes)
    assign_expired_by_pool(outcomes, requests, expired)
    return outcomes


def _prepare(commands: Commands, requests: Sequence[Request]) -> Program[list[EndedLease]]:
    """Register consumers and expire due leases first, for a batch of several commits."""
    asking = [each for each in requests if not isinstance(each, ReleaseRequest)]
    for name in dict.fromkeys(each.consumer_name for each in asking):
        yield from commands.ensure_consumer(name)
    pools = yield from commands.pools()
    wanted = {name for each in asking for name in each.pools}
    with_stats = any(each.with_stats for each in requests)
    expired: list[EndedLease] = []
    # Pools are locked in the order of their ids, as everywhere.
    for pool in sorted(pools, key=lambda pool: pool.id):
        if pool.name in wanted:
            expired += yield from commands.take_back(pool.id, with_stats=with_stats)
    return expired


def _run_together(
    commands: Commands, requests: Sequence[Request], places: Sequence[int], outcomes: list[Any]
) -> Program[None]:
    """Carry out some requests in one commit, then each unsettled one alone."""
    if not places:
        return
    several = [command_of(requests[place]) for place in places]
    first = yield from commands.carry_out(several)
    for place, command, outcome in zip(places, several, first, strict=True):
        finish = (
            commands.finish_release if isinstance(command, Release) else commands.finish_acquisition
        )
        program = finish(command, outcome)  # type: ignore[arg-type]
        outcomes[place] = yield from _outcome_or_error(program)


def _outcome_or_error(program: Program[T]) -> Program[T | Exception]:
    """Run a program. Return an error of its command instead of raising it.

    Errors of the database are raised: they concern the whole batch.
    """
    try:
        return (yield from program)
    except psycopg.Error:
        raise
    except Exception as error:
        return error
