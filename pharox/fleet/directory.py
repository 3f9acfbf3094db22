"""The directory: which ledger each pool is in, as the home ledger records it.

A place is an event, ``PoolPlaced``, of the home ledger, and its read model has the last one of
each pool. A pool that was never placed is in the home ledger, so a ledger that was alone becomes a
fleet without a word about its pools. Each process keeps the places that it has read; nobody tells
it of a change. A wrong one costs a question: a ledger that lacks the pool answers so, and then
the directory is read anew (:mod:`.elsewhere`).

The directory itself may be wrong: a mover was killed after the move, before it wrote the place.
Then the ledger that the pool left knows where it went. Whoever hears of that from it writes the
place.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..effects import Calls
from ..errors import (
    ConflictError,
    DatabaseError,
    DirectoryUnavailableError,
    InvalidInputError,
)
from ..models import MoveStage, PoolMove, PoolPlace, check_name
from ..storage.places import already_placed
from .known import Known
from .ledgers import Ledger

logger = logging.getLogger("pharox")


class Directory:
    """Where pools are. All methods that return ``Calls`` are programs, for threads and asyncio.

    Parameters
    ----------
    home:
        The ledger that keeps the directory.
    ledgers:
        All ledgers by name.
    """

    def __init__(self, home: Ledger[Any, Any], ledgers: Mapping[str, Ledger[Any, Any]]) -> None:
        self._home = home
        self._ledgers = ledgers
        self._places: Known[str] = Known()
        self._left: Known[str] = Known()

    def known(self, pool_name: str) -> str | None:
        """Return the ledger that this process takes a pool to be in, without asking."""
        return self._places.get(pool_name)

    def finding(self, pool_name: str) -> Calls[Ledger[Any, Any]]:
        """Return the ledger of a pool, asking the home ledger only if it is not known yet."""
        name = self._places.get(pool_name)
        if name is None:
            return (yield from self.reading(pool_name))
        return self._ledgers[name]

    def reading(self, pool_name: str) -> Calls[Ledger[Any, Any]]:
        """Return the ledger of a pool as the directory has it now.

        If that is a ledger that said that the pool has left, it is asked where to, and the
        directory is corrected.

        Raises
        ------
        DirectoryUnavailableError
            If the home ledger does not answer.
        InvalidInputError
            If the directory names a ledger that the settings lack.
        """
        try:
            places: list[PoolPlace] = yield partial(self._home.storage.list_places, [pool_name])
        except DatabaseError as error:
            raise DirectoryUnavailableError(
                f"the home ledger {self._home.name!r} does not answer, and where pool "
                f"{pool_name!r} is was not known yet: {error}",
                pool_name=pool_name,
                ledger=self._home.name,
            ) from error
        ledger = self.named(places[0].ledger, pool_name) if places else self._home
        if self._left.get(pool_name) == ledger.name:
            ledger = yield from self._corrected(pool_name, ledger)
        self._left.forget(pool_name)
        self.note(pool_name, ledger.name)
        return ledger

    def _corrected(self, pool_name: str, said: Ledger[Any, Any]) -> Calls[Ledger[Any, Any]]:
        """Return the ledger that a pool went to from there, and have the directory say so."""
        ledger = said
        try:
            ledger = yield from self.following(pool_name, said)
            if ledger is not said:
                yield from self.placing(pool_name, ledger.name, instead_of=said.name)
        except (ConflictError, DatabaseError) as error:  # The next one who hears of it tries.
            logger.warning("pharox.fleet.place_not_written: of pool %r: %s", pool_name, error)
        return ledger

    def following(self, pool_name: str, said: Ledger[Any, Any]) -> Calls[Ledger[Any, Any]]:
        """Return the ledger that a pool has moved to from one, through all that it has left."""
        ledger, left = said, set[str]()
        while ledger.name not in left:
            left.add(ledger.name)
            moves: list[PoolMove] = yield partial(ledger.storage.list_pool_moves, pool_name)
            if not moves or moves[0].stage is not MoveStage.MOVED:
                break
            ledger = self.named(moves[0].ledger, pool_name)
        return ledger

    def placing(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> Calls[bool]:
        """Record that a pool is in a ledger. Return whether the directory had said something else.

        Raises
        ------
        ConflictError
            If it is in another ledger than that, or than ``instead_of``. A pool that was never
            placed is in the home ledger, if that has it.
        """
        self.named(ledger, pool_name)
        if self._home.name not in (ledger, instead_of):
            yield from self._check_not_at_home(check_name(pool_name, "pool"))
        place = partial(self._home.storage.place_pool, pool_name, ledger, instead_of=instead_of)
        is_new: bool = yield place
        self.note(pool_name, ledger)
        return is_new

    def _check_not_at_home(self, pool_name: str) -> Calls[None]:
        """Refuse to place a pool elsewhere that is in the home ledger and has no place yet."""
        storage = self._home.storage
        if (yield partial(storage.list_places, [pool_name])):
            return  # The place that it has is compared when it is changed.
        is_here = (yield partial(storage.get_pool_by_name, pool_name)) is not None
        moves = [] if is_here else (yield partial(storage.list_pool_moves, pool_name))
        if is_here or (moves and moves[0].stage.is_under_way):
            raise already_placed(pool_name, self._home.name)

    def listing(self) -> Calls[list[PoolPlace]]:
        """Return all places, by the names of the pools."""
        places: list[PoolPlace] = yield self._home.storage.list_places
        return places

    def note(self, pool_name: str, ledger: str) -> None:
        """Take a pool to be in a ledger from now on, in this process."""
        self._places.note(pool_name, ledger)

    def forget(self, pool_name: str, *, has_left: bool = False) -> None:
        """Have the directory asked when the pool is needed next.

        Parameters
        ----------
        has_left:
            Whether the ledger that it was taken to be in says that it has moved away from there.
        """
        known = self._places.get(pool_name)
        if has_left and known is not None:
            self._left.note(pool_name, known)
        self._places.forget(pool_name)

    def named(self, ledger: str, pool_name: str) -> Ledger[Any, Any]:
        """Return the ledger that a pool is said to be in, or to go to.

        Raises
        ------
        InvalidInputError
            If the settings lack it.
        """
        known = self._ledgers.get(ledger)
        if known is None:
            raise InvalidInputError(
                f"pool {pool_name!r} is said to be in the ledger {ledger!r}, which the fleet's "
                f"settings do not name; they have {', '.join(sorted(self._ledgers))}",
                ledger=ledger,
            )
        return known
