"""Carry out several commands as one.

The effect is that of single commands in this order: consumers are registered, due
leases expire, leases are released, those who wait in these pools are served, and proxies are
leased in the order of the requests.
All events have the same time. A command that fails does not affect the others; its
error is its outcome.

Bans that are over end in the pools from which a proxy is requested, before all that. Due
leases expire in these pools, and in the pools of
leases that are released too late, or for which somebody waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from ..requests import (
    Command,
    CommandOutcome,
    CommandOutcomes,
    EndedLease,
    ReleaseRequest,
    assign_expired,
    batch_order,
)
from ..validation import check_commands
from .acquire import acquire, ids_of, is_granted, serve_queue
from .fallback import attempts
from .registry import consumer_id, end_bans, remove_drained
from .release import active_row, expire, release
from .renewal import redate_leases
from .state import State
from .waiting import Ticket


def run_batch(state: State, commands: Sequence[Command]) -> CommandOutcomes:
    """Carry out commands. Return the outcome of each, in the same order."""
    check_commands(commands)
    return carry_out(state, commands)


def carry_out(state: State, commands: Sequence[Command]) -> list[Any]:
    """Carry out commands, as ``run_batch`` does. Those that wait may get a ticket instead."""
    now = state.clock()
    asking = [each for each in commands if not isinstance(each, ReleaseRequest)]
    pool_ids = sorted({pool_id for each in asking for pool_id in _pools_of(state, each)})
    expired: dict[UUID, Sequence[EndedLease]] = {}
    if len(commands) > 1 and any(map(_has_predicate, commands)):
        # PostgreSQL prepares such a batch by a commit for each pool.
        for command in asking:
            consumer_id(state, command.consumer_name, now=now)
        with_stats = any(command.with_stats for command in commands)
        for pool_id in pool_ids:
            end_bans(state, [pool_id], now)
            expired |= expire(state, [pool_id], now, with_stats=with_stats)
            remove_drained(state)
    end_bans(state, pool_ids, now)
    expired |= _take_back(state, commands, now)
    outcomes: list[Any] = [None] * len(commands)
    order = batch_order(commands)
    if any(map(_has_predicate, commands)):
        remove_drained(state)
    queues = _queues_of(state, commands) if state.queues else []
    releases = sum(isinstance(command, ReleaseRequest) for command in commands)
    for number, place in enumerate(order):
        if number == releases:
            serve_queues(state, queues, now)
        if _has_predicate(commands[place]):
            remove_drained(state)
        outcomes[place] = _carry_out(state, commands[place], now)
    if releases == len(commands):
        serve_queues(state, queues, now)
    remove_drained(state)
    for pool_id, ended in expired.items():
        places = [place for place in order if pool_id in _pools_of(state, commands[place])]
        ticket = next((each for each in outcomes if isinstance(each, Ticket)), None)
        if ticket is not None:  # It is the only command.
            ticket.expired += ended
        else:
            # A session that it bound may be of another of its pools now.
            assign_expired(outcomes, places or order, ended)
    return outcomes


def serve_all(state: State) -> list[EndedLease]:
    """Take back what is due in all pools in which somebody waits, and serve them.

    Return the leases that this expired.
    """
    if not state.queues:
        return []
    now = state.clock()
    pool_ids = [each for each in state.queues.pools() if each in state.pools]
    end_bans(state, pool_ids, now)
    redate_leases(state, now)
    expired = expire(state, pool_ids, now, with_stats=False)
    remove_drained(state)
    serve_queues(state, pool_ids, now)
    return [ended for each in expired.values() for ended in each]


def serve_queues(state: State, pool_ids: Sequence[UUID], now: datetime) -> None:
    """Grant the tickets of some pools whose turn it is."""
    for pool_id in pool_ids:
        serve_queue(state, pool_id, now)


def _queues_of(state: State, commands: Sequence[Command]) -> list[UUID]:
    """Return the pools of commands in which somebody waits."""
    pool_ids = {pool_id for command in commands for pool_id in _pools_of(state, command)}
    return [each for each in state.queues.pools() if each in pool_ids]


def _take_back(
    state: State, commands: Sequence[Command], now: datetime
) -> Mapping[UUID, Sequence[EndedLease]]:
    """Register the consumers, and expire due leases in the pools of the commands."""
    pool_ids = set()
    for command in commands:
        if isinstance(command, ReleaseRequest):
            row = active_row(state, command.lease.id)
            if row is None:
                continue
            is_waited_for = state.queues.of(row.pool_id) is not None
            if row.expires_at <= now or (is_waited_for and state.pools[row.pool_id].has_due(now)):
                pool_ids.add(row.pool_id)
            continue
        ids = ids_of(command)
        if ids and any(is_granted(state, lease_id) for lease_id in ids):
            continue
        consumer_id(state, command.consumer_name, now=now)
        of_command = _pools_of(state, command)
        pool_ids |= {each for each in of_command if state.pools[each].has_due(now)}
    if not pool_ids:
        return {}
    with_stats = any(command.with_stats for command in commands)
    return expire(state, sorted(pool_ids), now, with_stats=with_stats)


def _carry_out(
    state: State, command: Command, now: datetime
) -> CommandOutcome | Ticket | Exception:
    try:
        if isinstance(command, ReleaseRequest):
            return release(state, command, now)
        return acquire(state, command, now)
    except Exception as error:
        return error


def _has_predicate(command: Command) -> bool:
    """Return whether PostgreSQL expires leases in a commit before that of this command."""
    if isinstance(command, ReleaseRequest) or command.filters is None:
        return False
    return command.filters.requires_python()


def _pools_of(state: State, command: Command) -> set[UUID]:
    """Return the pools of a command: of one with a fallback, those that it tries."""
    if isinstance(command, ReleaseRequest):
        pool_id = state.pool_of_lease.get(command.lease.id)
        return set() if pool_id is None else {pool_id}
    names = dict.fromkeys(
        each.request.pool_name for each in attempts(state, command, state.clock())
    )
    return {state.pool_ids[name] for name in names if name in state.pool_ids}
