"""Lease from pools that may be in several ledgers, in their order.

A ledger's own chain of pools is one transaction. A request that falls back to a pool of another
ledger is a transaction in each, in order: a proxy of the first that comes free while the next
is asked is not seen any more. A ledger that is down, or hangs, is passed over if another pool is
left to try. If an answer says that a pool is elsewhere, it is looked up and all are tried once
more, before the next ledger is asked; if its old ledger has granted a fallback, the next request
finds it. A pool that moves has no queue to wait in, so it is asked
again and again while the caller's time lasts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from ..effects import Calls
from ..errors import (
    AnswerTimeoutError,
    DatabaseError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
    PharoxError,
)
from ..manager.leasing import AcquireArguments, AcquireSetArguments
from ..models import Lease, MissReason, PoolMissed, RetryConfig, check_fallback, check_name
from ..models.ids import NIL
from ..storage.requests import Acquisition, SetAcquisition, lease_id_of
from .elsewhere import Look, elsewhere
from .finding import Finding, has_lease
from .groups import raise_first
from .ledgers import AnyLedger, in_ledger

Arguments = AcquireArguments | AcquireSetArguments
Found = Acquisition | SetAcquisition


_PAUSES = RetryConfig(max_attempts=sys.maxsize, backoff_seconds=0.05, max_backoff_seconds=1.0)
"""How long to wait before a pool that moves is asked for again."""


_MOVING = (MissReason.POOL_MOVING, MissReason.POOL_MOVED)
"""The reasons for a miss of a pool that has not arrived yet, as far as the directory says."""


_SILENT = (DatabaseUnavailableError, AnswerTimeoutError)
"""What a ledger that is down comes to, or one that hangs. Neither has granted anything, unless it
is an :class:`OutcomeUnknownError`."""


class Part(NamedTuple):
    """Pools of one ledger that follow each other in a request."""

    ledger: AnyLedger
    pools: tuple[str, ...]


class Chains(Finding):
    """The programs of a manager that acquire leases."""

    def _acquiring(self, arguments: AcquireArguments) -> Calls[Acquisition]:
        found: Acquisition = yield from self._leasing_from(arguments)
        return found

    def _acquiring_set(self, arguments: AcquireSetArguments) -> Calls[SetAcquisition]:
        found: SetAcquisition = yield from self._leasing_from(arguments)
        return found

    def _leasing_from(self, arguments: Arguments) -> Calls[Any]:
        """Lease from the pools of a request. Wait for one that moves while the time lasts."""
        begun, pauses = time.monotonic(), _PAUSES.delays()
        found = yield from self._leasing_now(arguments)
        while arguments.wait_seconds and _is_moving(found):
            left = begun + arguments.wait_seconds - time.monotonic()
            if left <= 0:
                break
            yield partial(self._sleep, min(left, next(pauses)))
            left = max(0.0, begun + arguments.wait_seconds - time.monotonic())
            found = yield from self._leasing_now(_with(arguments, wait_seconds=left or None))
            found = replace(found, waited_ms=int((time.monotonic() - begun) * 1000))
        return found

    def _leasing_now(self, arguments: Arguments) -> Calls[Any]:
        """Lease from the pools of a request, and once more if they were not where they seemed."""
        pools = (check_name(arguments.pool_name, "pool"), *_fallback(arguments))
        try:
            found = yield from self._trying(arguments, pools)
        except PharoxError as error:
            if not (yield from self._are_elsewhere(pools, error)):
                raise
        else:
            if found.miss_reason is None:
                self._forget_elsewhere(found)
                return found
            if not (yield from self._are_elsewhere(pools, found)):
                return found
        return (yield from self._trying(arguments, pools))

    def _trying(self, arguments: Arguments, pools: tuple[str, ...]) -> Calls[Any]:
        parts = yield from self._parts(pools)
        if len(parts) == 1:
            return (yield from self._leasing_in(parts[0], arguments))
        granted = yield from self._granted_before(parts, arguments)
        if granted is not None:
            return (yield from self._leasing_in(granted, arguments))
        # Nobody can wait in two ledgers: all are tried at once first, then the first is waited in.
        try:
            found = yield from self._in_order(parts, _with(arguments, wait_seconds=None))
            if found.miss_reason is None or not arguments.wait_seconds:
                return found
        except OutcomeUnknownError:
            raise
        except _SILENT:
            if not arguments.wait_seconds:
                raise
        return (yield from self._in_order((yield from self._parts(pools)), arguments))

    def _parts(self, pools: Iterable[str]) -> Calls[list[Part]]:
        """Return the pools by ledger, as far as they follow each other in one."""
        parts: list[Part] = []
        for name in pools:
            ledger = yield from self._fleet.directory.finding(name)
            if parts and parts[-1].ledger is ledger:
                parts[-1] = Part(ledger, (*parts[-1].pools, name))
            else:
                parts.append(Part(ledger, (name,)))
        return parts

    def _leasing_in(self, part: Part, arguments: Arguments) -> Calls[Any]:
        """Lease from the pools of one ledger."""
        yield from self._using(part.ledger)
        name, *fallback = part.pools
        own = _with(arguments, pool_name=name, fallback=tuple(fallback))
        manager = part.ledger.manager
        found: Found
        try:
            if isinstance(own, AcquireArguments):
                found = yield from manager._acquiring(own)
            else:
                found = yield from manager._acquiring_set(own)
        except PharoxError as error:
            in_ledger(error, part.ledger.name)
            raise
        for lease in _leases(found):
            self._note(lease, part.ledger)
        return found

    def _using(self, ledger: AnyLedger) -> Calls[None]:
        """Begin to lease from a ledger: its rules for targets are read with those of the others."""
        if ledger.name not in self._used:
            self._used.add(ledger.name)
            if self._wants_rules:
                yield from ledger.manager._reading_rules()

    def _in_order(
        self, parts: Sequence[Part], arguments: Arguments, *, looks_again: bool = True
    ) -> Calls[Any]:
        """Lease from the first ledger that has something, each in a transaction of its own.

        Only the first is waited in. If nothing is granted, a ledger that does not answer is what
        the caller hears of.
        """
        missed: list[PoolMissed] = []
        failed: list[DatabaseError] = []
        found: Found | None = None
        own = arguments
        for part in parts:
            try:
                answer: Found = yield from self._leasing_in(part, own)
                own = _with(arguments, wait_seconds=None)
                if answer.miss_reason is None:
                    return replace(answer, missed_in=(*missed, *answer.missed_in))
                is_stale = looks_again and (yield from self._are_elsewhere(part.pools, answer))
            except OutcomeUnknownError:
                raise  # It may have been granted: asking the next one could grant another.
            except _SILENT as error:
                failed.append(error)
                continue
            if is_stale:
                pools = [name for each in parts for name in each.pools]
                again = yield from self._parts(pools)
                return (yield from self._in_order(again, arguments, looks_again=False))
            found = found or answer
            missed += answer.missed_in or _missed(part, answer)
            if answer.miss_reason is MissReason.UNKNOWN_POOL:
                return replace(answer, missed_in=tuple(missed))
        if failed or found is None:
            raise failed[0]
        return replace(found, missed_in=tuple(missed))

    def _granted_before(self, parts: Sequence[Part], arguments: Arguments) -> Calls[Part | None]:
        """Return the part whose ledger has granted a lease under the caller's id already.

        A ledger that does not answer may have granted it. Then its error is raised, unless another
        has: asking on could grant a second lease under this id.
        """
        ids = arguments.lease_ids if isinstance(arguments, AcquireSetArguments) else None
        lease_id = ids[0] if ids else getattr(arguments, "lease_id", None)
        if lease_id is None:
            return None
        uuid, failed = lease_id_of(lease_id), list[DatabaseError]()
        for part in parts:
            try:
                if (yield from has_lease(part.ledger.storage, uuid)):
                    return part
            except _SILENT as error:
                in_ledger(error, part.ledger.name)
                failed.append(error)
        raise_first(failed)
        return None

    def _forget_elsewhere(self, found: Found) -> None:
        """Have the next request look up pools that a ledger passed over, as they are elsewhere."""
        for each in found.missed_in:
            if (look := elsewhere(each)) is not None:
                self._fleet.directory.forget(each.pool_name, has_left=look is Look.WHERE_IT_WENT)

    def _are_elsewhere(self, pools: Sequence[str], answer: Any) -> Calls[bool]:
        """Look pools up again if an answer says so. Return whether one has another place now."""
        look = elsewhere(answer)
        if look is None:
            return False
        directory = self._fleet.directory
        before = [directory.known(name) for name in pools]
        if isinstance(look, str) and len(pools) == 1:
            directory.note(pools[0], look)
        else:
            for name in pools:
                if look is Look.WHERE_IT_WENT:
                    directory.forget(name, has_left=True)
                yield from directory.reading(name)
        return before != [directory.known(name) for name in pools]


def _is_moving(found: Found) -> bool:
    """Return whether nothing was granted, and a pool is on its way to another ledger."""
    if found.miss_reason is None:
        return False
    reasons = {found.miss_reason, *(each.reason for each in found.missed_in)}
    return not reasons.isdisjoint(_MOVING)


def _with(arguments: Arguments, **changes: Any) -> Arguments:
    """Return the arguments with some changed."""
    if isinstance(arguments, AcquireArguments):
        return arguments._replace(**changes)
    return replace(arguments, **changes)


def _fallback(arguments: Arguments) -> tuple[str, ...]:
    """Return the names of the pools that a request falls back to, if these are valid."""
    if arguments.fallback == ():
        return ()
    return check_fallback(arguments.pool_name, arguments.fallback)


def _missed(part: Part, answer: Found) -> list[PoolMissed]:
    """Return the miss of a part with a single pool, whose id nobody needs."""
    reason = answer.miss_reason or MissReason.UNKNOWN_POOL
    return [PoolMissed(pool_id=NIL, pool_name=part.pools[0], reason=reason, limit=answer.limit)]


def _leases(found: Found) -> list[Lease]:
    parts = found.acquisitions if isinstance(found, SetAcquisition) else (found,)
    return [each.lease for each in parts if each.lease is not None]
