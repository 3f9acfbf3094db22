"""Move a pool from one ledger to another, or cancel that.

The mover only gives orders (:mod:`pharox.storage.moving`) and waits: how far a move is stands in
the two ledgers. If a mover is killed, anybody makes the same call again; two at once do each step
once.

    1. source   no more of its proxies are leased; who waits is told; its last leases end
    2. source   the pool is removed, and its log keeps what it was       -- here it can be cancelled
    3. target   the pool is registered as it was                        -- from here on it cannot
    4. source   its secrets are deleted, and callers are told where it is
    5. home     the fleet's directory says where it is

The directory comes last, so one that cannot be written keeps no move from its end. Every call that
finds a move ended writes the place again, if the pool has not moved on since.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from ..effects import Calls, call, call_async, run, run_async
from ..errors import (
    ConflictError,
    DatabaseError,
    MoveTimeoutError,
    PoolMovedError,
    PoolNotFoundError,
)
from ..models import MoveStage, PoolMove, check_name, check_pause
from ..storage.async_interface import IAsyncStorage
from ..storage.interface import IStorage
from ..storage.moving import (
    BeginMove,
    CancelMove,
    CheckArrival,
    DepartPool,
    DrainMove,
    FinishMove,
    InspectPool,
    ReadCargo,
    ReceivePool,
    RefusePool,
)
from .ledgers import in_ledger

if TYPE_CHECKING:
    from .fleets import AnyFleet

TIMEOUT_S = 900.0
"""How long a move waits for the last leases, unless it is told otherwise."""

POLL_S = 0.25
"""How often it looks for leases that have ended."""


class Places(Protocol):
    """Where pools are, as a fleet's directory keeps it."""

    def place(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> Any:
        """Remember that a pool is in a ledger, and not in that one any more."""


class End(Protocol):
    """A ledger that a pool leaves or comes to: its name in the fleet, and its storage."""

    @property
    def name(self) -> str:
        """The name that the other ledger records."""

    @property
    def storage(self) -> IStorage | IAsyncStorage:
        """A storage that is connected to it."""


@dataclass(frozen=True)
class LedgerEnd:
    """An end of a move that is not part of a fleet."""

    name: str
    storage: IStorage | IAsyncStorage


@dataclass(frozen=True)
class MoveOptions:
    """How a mover waits, and whom it tells.

    Parameters
    ----------
    timeout_seconds:
        How long to wait for the last leases. The pool then goes on draining: move it again, or
        cancel the move.
    revoke_after_seconds:
        After how long leases that are still held are revoked; never if None.
    places:
        Told where the pool is, once it has arrived or is back.
    on_step:
        Called after each step with its name: "began", "drained", "departed", "arrived", "moved",
        "refused" and "cancelled".
    """

    timeout_seconds: float = TIMEOUT_S
    revoke_after_seconds: float | None = None
    places: Places | None = None
    on_step: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        check_pause(self.timeout_seconds, "timeout_seconds")
        if self.revoke_after_seconds is not None:
            check_pause(self.revoke_after_seconds, "revoke_after_seconds")

    def done(self, step: str) -> None:
        """Tell that a step was done."""
        if self.on_step is not None:
            self.on_step(step)


_DEFAULT = MoveOptions()


def move_pool(pool: str, source: End, target: End, options: MoveOptions = _DEFAULT) -> PoolMove:
    """Move a pool from one ledger to another, or go on with a move that was begun.

    Its proxies keep their ids, and fencing tokens of later leases are higher than all earlier
    ones. Called again after it is done, it does nothing.

    Parameters
    ----------
    pool:
        The name of the pool.
    source, target:
        The ledgers. Their names are recorded: use the ones that the fleet knows them by.

    Returns
    -------
    PoolMove
        The move as the source has it, ``MOVED``.

    Raises
    ------
    PoolNotFoundError
        If the source has no such pool and never had.
    PoolMovedError
        If it has moved elsewhere.
    ConflictError
        If it is moving elsewhere, the target has its name, id or proxies already, or somebody
        cancelled the move meanwhile.
    MoveTimeoutError
        If leases are still held when the time is over.
    SecretKeyError
        If the source cannot decrypt the pool's secrets, or the target has no key.
    """
    return run(_move(pool, source, target, options, time.sleep), call)


async def move_pool_async(
    pool: str, source: End, target: End, options: MoveOptions = _DEFAULT
) -> PoolMove:
    """Move a pool as :func:`move_pool` does, between storages of either form."""
    return await run_async(_move(pool, source, target, options, asyncio.sleep), call_async)


def cancel_move(pool: str, source: End, target: End, options: MoveOptions = _DEFAULT) -> PoolMove:
    """Cancel a pool's move to a ledger, so that it stays where it was.

    If it has left already, the target is asked to refuse it for good, so it must be reachable.
    Called again after it is done, it does nothing.

    Raises
    ------
    ConflictError
        If it is too late, as the target has the pool. Move it back then.
    PoolNotFoundError
        If the source knows of no such move.
    """
    return run(_cancel(pool, source, target, options), call)


async def cancel_move_async(
    pool: str, source: End, target: End, options: MoveOptions = _DEFAULT
) -> PoolMove:
    """Cancel a move as :func:`cancel_move` does, between storages of either form."""
    return await run_async(_cancel(pool, source, target, options), call_async)


def _ask(ledger: End, order: Any) -> Calls[Any]:
    """Give an order. An error of the database says which ledger it is about."""
    try:
        return (yield partial(ledger.storage.carry_out_move, order))
    except DatabaseError as error:
        in_ledger(error, ledger.name)
        raise


def _move(
    pool: str,
    source: End,
    target: End,
    options: MoveOptions,
    sleep: Callable[[float], Any],
) -> Calls[PoolMove]:
    check_name(pool, "pool")
    if source.name == target.name:
        raise ConflictError(f"pool {pool!r} is in ledger {target.name!r}", pool_name=pool)
    if (here := (yield from _ask(source, InspectPool(pool)))) is not None:
        yield from _ask(target, CheckArrival(pool, here))
    try:
        move: PoolMove = yield from _ask(source, BeginMove(pool, target.name, uuid4()))
    except PoolMovedError as error:
        if error.ledger != target.name:
            raise
        move = yield from _last_move(pool, source)  # It is there already.
    options.done("began")
    if move.stage is MoveStage.BEGAN:
        move = yield from _drained(move, source, options, sleep)
    if move.stage is MoveStage.DEPARTED:
        move = yield from _delivered(move, source, target, options)
    if move.stage is not MoveStage.MOVED:
        raise _cancelled(move)
    yield from _placed(move, target, source, options)
    return move


def _drained(
    move: PoolMove, source: End, options: MoveOptions, sleep: Callable[[float], Any]
) -> Calls[PoolMove]:
    """Wait until no lease is left, and have the pool depart."""
    since = time.monotonic()
    revoke_after = options.revoke_after_seconds
    while True:
        waited = time.monotonic() - since
        is_over = revoke_after is not None and waited >= revoke_after
        reason = f"pool moves to {move.ledger}" if is_over else None
        left = yield from _ask(source, DrainMove(move, reason))
        if not left:
            options.done("drained")
            move = yield from _ask(source, DepartPool(move))
            if move.stage is not MoveStage.BEGAN:
                options.done("departed")
                return move
        elif waited >= options.timeout_seconds:
            raise MoveTimeoutError(
                f"{left} leases of pool {move.pool_name!r} are still held after {waited:.0f} s; no "
                "more are granted: move it again to go on, or cancel the move",
                move=move,
                leases=left,
            )
        until = options.timeout_seconds if revoke_after is None or is_over else revoke_after
        yield partial(sleep, max(0.01, min(POLL_S, until - waited)))


def _delivered(move: PoolMove, source: End, target: End, options: MoveOptions) -> Calls[PoolMove]:
    """Have the target receive a pool that has departed, and the source forget its secrets."""
    cargo = yield from _ask(source, ReadCargo(move))
    if cargo is None:  # Another mover was quicker.
        return (yield from _as_it_is(move, source))
    there: PoolMove = yield from _ask(target, ReceivePool(cargo, source.name))
    if there.stage is MoveStage.CANCELLED:
        # Whoever cancelled it has not told the source yet.
        yield from _ask(source, CancelMove(move))
        raise _cancelled(move)
    options.done("arrived")
    move = yield from _ask(source, FinishMove(move))
    options.done("moved")
    return move


def _cancel(pool: str, source: End, target: End, options: MoveOptions) -> Calls[PoolMove]:
    move = yield from _last_move(pool, source)
    if move.goes_to not in (None, target.name):
        raise ConflictError(f"pool {pool!r} goes to ledger {move.ledger!r}", pool_name=pool)
    if move.stage is MoveStage.BEGAN:
        move = yield from _ask(source, CancelMove(move))
    if move.stage is MoveStage.DEPARTED:
        there: PoolMove = yield from _ask(target, RefusePool(move, source.name))
        options.done("refused")
        order = CancelMove if there.stage is MoveStage.CANCELLED else FinishMove
        move = yield from _ask(source, order(move))
    if move.stage is not MoveStage.CANCELLED:
        if move.goes_to == target.name:
            yield from _placed(move, target, source, options)
        raise ConflictError(
            f"it is too late: pool {pool!r} is in ledger {move.ledger!r}; move it back from there",
            pool_name=pool,
            ledger=move.ledger,
        )
    options.done("cancelled")
    yield from _placed(move, source, target, options)
    return move


def moving_in(
    fleet: AnyFleet[Any], pool: str, to: str, options: MoveOptions, sleep: Callable[[float], Any]
) -> Calls[PoolMove]:
    """Move a pool of a fleet to the ledger of this name, as :func:`move_pool` does."""
    target = fleet.directory.named(to, pool)
    source = yield from _source(fleet, pool)
    if source.name == to:
        found = yield partial(target.storage.list_pool_moves, pool)
        if not found or found[0].stage is not MoveStage.ARRIVED:
            raise ConflictError(f"pool {pool!r} is in ledger {to!r}", pool_name=pool, ledger=to)
        arrived: PoolMove = found[0]  # It is there already.
        source = fleet.directory.named(arrived.ledger, pool)
    return (yield from _move(pool, source, target, options, sleep))


def cancelling_in(fleet: AnyFleet[Any], pool: str, options: MoveOptions) -> Calls[PoolMove]:
    """Cancel the move of a pool of a fleet, as :func:`cancel_move` does."""
    source = yield from _source(fleet, pool)
    last = yield from _last_move(pool, source)
    target = fleet.directory.named(last.ledger, pool)
    return (yield from _cancel(pool, source, target, options))


def _source(fleet: AnyFleet[Any], pool: str) -> Calls[End]:
    """Return the ledger that a pool is about to leave, else the one that it is in.

    That is the one that the directory says, unless the pool has moved on from there.
    """
    check_name(pool, "pool")
    for ledger in fleet.ledgers.values():
        try:
            found = yield partial(ledger.storage.list_pool_moves, pool)
        except DatabaseError:
            continue  # A ledger that is down keeps no other pool from moving.
        if found and found[0].stage.is_under_way:
            return ledger
    said = yield from fleet.directory.reading(pool)
    place = yield from fleet.directory.following(pool, said)
    if place.name != said.name:
        yield from fleet.directory.placing(pool, place.name, instead_of=said.name)
    found_in: End = place
    return found_in


def _last_move(pool: str, source: End) -> Calls[PoolMove]:
    found = yield partial(source.storage.list_pool_moves, pool)
    if not found:
        raise PoolNotFoundError(
            f"no pool {pool!r} was moved from ledger {source.name!r}", pool_name=pool
        )
    move: PoolMove = found[0]
    return move


def _as_it_is(move: PoolMove, source: End) -> Calls[PoolMove]:
    """Return a move as a ledger has it now; the pool may have moved on and back since."""
    found = yield partial(source.storage.list_pool_moves, move.pool_name)
    (now,) = (each for each in found if each.move_id == move.move_id)
    known: PoolMove = now
    return known


def _placed(move: PoolMove, ledger: End, instead_of: End, options: MoveOptions) -> Calls[None]:
    """Have the directory say where a move left the pool, unless it has moved on from there."""
    if options.places is None:
        return
    last = yield from _last_move(move.pool_name, ledger)
    if last.move_id == move.move_id:
        place = partial(options.places.place, move.pool_name, ledger.name)
        yield partial(place, instead_of=instead_of.name)


def _cancelled(move: PoolMove) -> ConflictError:
    return ConflictError(
        f"the move of pool {move.pool_name!r} to ledger {move.ledger!r} was cancelled",
        pool_name=move.pool_name,
        ledger=move.ledger,
    )
