"""Where a call of the fleet's manager belongs: the ledgers of pools, leases and proxies.

A lease stays for ever in the ledger that granted it, so that is kept for each lease. A pool moves
with its proxies, so where they were seen is a guess, which an answer corrects. What was not seen is
asked for: the directory for a pool, all ledgers for a lease or a proxy.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from ..effects import Calls
from ..errors import (
    DatabaseError,
    DirectoryUnavailableError,
    InvalidInputError,
    PharoxError,
    ProxyNotFoundError,
)
from ..manager.leasing import Leasing
from ..manager.tally import known_tally
from ..models import Lease, check_name
from ..storage.reports import ReportRequest
from ..storage.requests import check_lease
from .groups import Group, grouped, raise_all, raise_first
from .known import Known
from .ledgers import AnyLedger, in_ledger

if TYPE_CHECKING:
    from .fleets import AnyFleet

P = TypeVar("P")
T = TypeVar("T")
Has = Callable[[Any, UUID], Calls[bool]]

logger = logging.getLogger("pharox")

_CALLBACKS = (
    "_acquire_callbacks",
    "_release_callbacks",
    "_expire_callbacks",
    "_revoke_callbacks",
    "_health_callbacks",
    "_lost_callbacks",
    "_outcome_callbacks",
    "_failure_callbacks",
)


class FleetStorage:
    """What a manager asks its storage for, of a fleet: what it can do, and when to ask again.

    It takes the reports that are made in the background of leases whose ledger is still to be
    found, and passes them on.
    """

    can_wait = can_stick = can_fall_back = True

    def __init__(self, routing: Finding) -> None:
        self._routing = routing

    def seconds_to_next_change(self, pool_name: str, *sought: str | None) -> Any:
        """Return the seconds until something of a pool may be free by itself, or None."""
        return self._routing._perform(self._routing._next_change(pool_name, sought))

    def report_outcomes(self, requests: Sequence[ReportRequest]) -> Any:
        """Have the ledgers of leases record outcomes in the background.

        Return an error for each whose lease may be in a ledger that does not answer, else None.
        """
        return self._routing._perform(self._routing._passing_on(requests))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"a fleet has a storage for each ledger: fleet.ledgers[name].storage.{name}"
        )


class Finding(Leasing[Any], ABC):
    """Finds ledgers, and runs the programs of their managers."""

    _fleet: AnyFleet[Any]

    def _route(self, fleet: AnyFleet[Any]) -> None:
        """Begin to route calls to the managers of the ledgers, with one set of callbacks."""
        self._fleet = fleet
        self._storage = FleetStorage(self)
        self._ledger_of_lease: Known[UUID] = Known()
        self._ledger_of_pool: Known[UUID] = Known()
        self._ledger_of_proxy: Known[UUID] = Known()
        self._used: set[str] = set()
        self._wants_rules = False
        for ledger in fleet.ledgers.values():
            for name in _CALLBACKS:
                setattr(ledger.manager, name, getattr(self, name))

    @abstractmethod
    def _perform(self, program: Calls[T]) -> Any:
        """Run a program, or return what runs it when it is awaited."""

    @abstractmethod
    def _sleep(self, seconds: float) -> Any:
        """Pause a program."""

    @abstractmethod
    def _together(self, programs: Sequence[Calls[T]]) -> Any:
        """Run programs side by side."""

    def _note(self, lease: Lease, ledger: AnyLedger) -> None:
        """Keep which ledger has a lease, its pool, and its proxy."""
        self._ledger_of_lease.note(lease.id, ledger.name)
        if lease.pool_id is not None:
            self._ledger_of_pool.note(lease.pool_id, ledger.name)
        self._ledger_of_proxy.note(lease.proxy_id, ledger.name)

    def _has_seen(self, lease: Lease) -> bool:
        return self._ledger_of_lease.get(lease.id) is not None

    def _guess(self, lease: Lease) -> AnyLedger | None:
        """Return where a lease was seen, else its pool, which may have moved since."""
        name = self._ledger_of_lease.get(lease.id)
        if name is None and lease.pool_id is not None:
            name = self._ledger_of_pool.get(lease.pool_id)
        return None if name is None else self._fleet.ledgers[name]

    def _guess_or_home(self, lease: Lease) -> AnyLedger:
        return self._guess(lease) or self._fleet.home

    def _looking_for(self, lease: Lease) -> Calls[None]:
        """Look for a lease of another process where its pool was seen, or is said to be."""
        ledger = self._guess(lease)
        with suppress(DatabaseError, InvalidInputError):  # All ledgers are asked for it then.
            if ledger is None and lease.pool_name is not None:
                ledger = yield from self._fleet.directory.finding(lease.pool_name)
            if ledger is not None and (yield from has_lease(ledger.storage, lease.id)):
                self._note(lease, ledger)

    def _of_pool(self, pool_name: str) -> Calls[AnyLedger]:
        """Return the ledger of a pool as the directory has it, or as it is known if that is down.

        Commands that do not tell an unknown pool from one without anything begin with this, so
        the ledger is asked whether it has the pool.
        """
        directory = self._fleet.directory
        check_name(pool_name, "pool")
        try:
            ledger = yield from directory.reading(pool_name)
        except DirectoryUnavailableError:
            if (known := directory.known(pool_name)) is None:
                raise
            return self._fleet.ledgers[known]
        if (yield from self._said_by(ledger, has_pool(ledger.storage, pool_name))):
            return ledger
        directory.forget(pool_name, has_left=True)
        return (yield from directory.reading(pool_name))

    def _next_change(self, pool_name: str, sought: tuple[Any, ...]) -> Calls[float | None]:
        ledger = yield from self._fleet.directory.finding(pool_name)
        seconds: float | None
        seconds = yield partial(ledger.storage.seconds_to_next_change, pool_name, *sought)
        return seconds

    def _of_lease(self, lease: Lease) -> Calls[AnyLedger]:
        """Return the ledger of a lease."""
        (ledger,) = yield from self._of_leases([lease])
        return ledger

    def _of_leases(self, leases: Sequence[Lease]) -> Calls[list[AnyLedger]]:
        """Return the ledger of each lease; one that nobody knows is for home to refuse."""
        for lease in leases:
            check_lease(lease)
        tally = known_tally(self._storage)
        proxies = {lease.proxy_id for lease in leases}
        if tally is not None and tally.has(proxies):  # They were reported before.
            yield from tally.flushing(proxies)
        return (yield from self._found(leases))

    def _found(self, leases: Sequence[Lease]) -> Calls[list[AnyLedger]]:
        for lease in leases:
            if not self._has_seen(lease):
                yield from self._looking_for(lease)
        where, errors = yield from self._where(leases)
        if any(each.id not in where for each in leases):
            raise_first(errors.values())
        return [where.get(each.id, self._fleet.home) for each in leases]

    def _where(
        self, leases: Sequence[Lease]
    ) -> Calls[tuple[dict[UUID, AnyLedger], dict[str, Exception]]]:
        """Return the ledgers of leases, by their ids, and errors as :meth:`_asking` does."""
        ledgers = self._fleet.ledgers
        names = {each.id: self._ledger_of_lease.get(each.id) for each in leases}
        unseen = {each for each, name in names.items() if name is None}
        found, errors = yield from self._asking(unseen, has_lease)
        for lease in leases:
            if lease.id in found:
                self._note(lease, found[lease.id])
        seen = {each: ledgers[name] for each, name in names.items() if name is not None}
        return seen | found, errors

    def _passing_on(self, requests: Sequence[ReportRequest]) -> Calls[list[DatabaseError | None]]:
        """Have the ledgers of leases record outcomes, and return why one is not found.

        All ledgers are found before the first report is passed on, and nothing is asked for
        after that. So whatever fails or is cancelled has passed on nothing, and all can be tried
        again: no report is counted twice.
        """
        where, errors = yield from self._where([each.lease for each in requests])
        unclear = _as_unclear(errors)
        answers: list[DatabaseError | None] = []
        for request in requests:
            ledger = where.get(request.lease.id)
            if ledger is None and unclear is not None:
                answers.append(unclear)
            else:
                manager = (ledger or self._fleet.home).manager
                manager.report_later(request.lease, request.outcome)
                answers.append(None)
        return answers

    def _of_proxies(self, proxy_ids: Sequence[UUID]) -> Calls[list[AnyLedger]]:
        """Return the ledger of each proxy; one that nobody knows is for home to refuse."""
        known = {each: self._ledger_of_proxy.get(each) for each in proxy_ids}
        unknown = {each for each, name in known.items() if name is None}
        asked = yield from self._asking_all(unknown, has_proxy)
        for each, ledger in asked.items():
            self._ledger_of_proxy.note(each, ledger.name)
        ledgers, home = self._fleet.ledgers, self._fleet.home
        return [
            asked.get(each, home) if each in unknown else ledgers[str(known[each])]
            for each in proxy_ids
        ]

    def _are_seen_elsewhere(self, proxy_ids: Collection[UUID]) -> Calls[bool]:
        """Look again for proxies that are not where they were seen. Return if any was found."""
        wrong = [each for each in proxy_ids if self._ledger_of_proxy.get(each) is not None]
        for each in wrong:
            self._ledger_of_proxy.forget(each)
        with suppress(DatabaseError):  # Then the first answer stands.
            yield from self._of_proxies(wrong)
        return any(self._ledger_of_proxy.get(each) is not None for each in wrong)

    def _asking_all(self, ids: Collection[UUID], has: Has) -> Calls[dict[UUID, AnyLedger]]:
        """Return which ledgers have leases or proxies, by asking all of them side by side.

        What none has is not in it. A ledger that does not answer may have it: then it is its
        error that is raised.
        """
        where, errors = yield from self._asking(ids, has)
        if len(where) < len(ids):
            raise_first(errors.values())
        return where

    def _asking(
        self, ids: Collection[UUID], has: Has
    ) -> Calls[tuple[dict[UUID, AnyLedger], dict[str, Exception]]]:
        """Ask all ledgers for leases or proxies.

        Return which ledgers have them, and why others do not say so, by the ledgers' names.
        """
        if not ids:
            return {}, {}
        fleet = self._fleet

        def asking(ledger: AnyLedger) -> Calls[set[UUID]]:
            found = set()
            for each in ids:
                if (yield from has(ledger.storage, each)):
                    found.add(each)
            return found

        answers = yield from fleet.reading(self._together, asking)
        where: dict[UUID, AnyLedger] = {}
        errors: dict[str, Exception] = {}
        for name, answer in answers.items():
            if isinstance(answer, Exception):
                errors[name] = answer
            else:
                where.update(dict.fromkeys(answer, fleet.ledgers[name]))
        return where, errors

    def _in_all(self, program: Callable[[AnyLedger], Calls[T]]) -> Calls[list[T]]:
        """Run a program in each ledger, and raise afterwards what went wrong in any."""
        found = yield from self._fleet.reading(self._together, program)
        raise_all(found.values())
        return [each for each in found.values() if not isinstance(each, Exception)]

    def _in_groups(
        self,
        things: Sequence[P],
        ledgers: Sequence[AnyLedger],
        program: Callable[[AnyLedger, list[P]], Calls[Sequence[T]]],
    ) -> Calls[list[T]]:
        """Run a program in each ledger for what is there, and return its answers in order.

        All of them are run; what went wrong is raised afterwards.
        """
        groups = grouped(things, ledgers)
        answers = yield from self._run_groups(groups, program)
        raise_all(answers)
        places = [place for group in groups for place in group.places]
        flat = [each for answer in answers if not isinstance(answer, Exception) for each in answer]
        return [flat[number] for number in sorted(range(len(flat)), key=places.__getitem__)]

    def _run_groups(
        self, groups: Sequence[Group[P]], program: Callable[[AnyLedger, list[P]], Calls[T]]
    ) -> Calls[list[T | Exception]]:
        runs = [
            self._said_by(group.ledger, program(group.ledger, group.things)) for group in groups
        ]
        if len(runs) == 1:
            try:
                return [(yield from runs[0])]
            except Exception as error:
                return [error]
        answers: list[T | Exception] = yield partial(self._together, runs)
        return answers

    def _said_by(self, ledger: AnyLedger, program: Calls[T]) -> Calls[T]:
        """Run a program; an error of the database says which ledger it is about."""
        try:
            return (yield from program)
        except PharoxError as error:
            in_ledger(error, ledger.name)
            raise


def _as_unclear(errors: Mapping[str, Exception]) -> DatabaseError | None:
    """Log why ledgers do not say which leases they have. Return one error, to be tried again."""
    unclear = None
    for name, error in errors.items():
        unclear = DatabaseError(f"the ledger {name!r} does not say which leases it has: {error}")
        unclear.__cause__ = error
        in_ledger(unclear, name)
        logger.warning("pharox.report.failed: it will be tried again: %s", unclear)
    return unclear


def has_pool(storage: Any, pool_name: str) -> Calls[bool]:
    """Return whether a storage has a pool of this name."""
    return (yield partial(storage.get_pool_by_name, pool_name)) is not None


def has_lease(storage: Any, lease_id: UUID) -> Calls[bool]:
    """Return whether a storage has granted a lease."""
    return (yield partial(storage.get_lease, str(lease_id))) is not None


def has_proxy(storage: Any, proxy_id: UUID) -> Calls[bool]:
    """Return whether a storage has a proxy."""
    try:
        yield partial(storage.get_proxy, str(proxy_id))
    except ProxyNotFoundError:
        return False
    return True
