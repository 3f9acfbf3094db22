"""Keep leases alive: renew each at a third of its duration, and notice when one is lost.

    keep ──> schedule ──> due ──> renewed, up to 500 in one statement ──> schedule
                 └──> no longer to be counted on ──> lost

One keeper per storage renews the leases of all its managers. It starts with the first
lease that is kept and needs nothing while there is none.

The timer never waits for the database: a renewal runs beside it, in a thread or a
task of its own. So a lost lease is noticed in time even while a renewal hangs. Times are
those of the monotonic clock: a lease counts for its duration from the moment before it
was requested.

It also has leases of others taken back that have run out, when the next is due: in a quiet pool
nobody else may look for long.

A keeper refers to a lease weakly. A lease that nobody refers to is no longer renewed, and
a forked child renews nothing that its parent holds.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple
from uuid import UUID
from weakref import ref

from sortedcontainers import SortedList

from ..effects import Calls, call, call_async, run, run_async
from ..errors import ConflictError, LeaseEndedError, LeaseLostError
from ..models import Lease
from ..storage.async_interface import IAsyncStorage
from ..storage.interface import IStorage
from ..storage.requests import RenewRequest, ending_of
from .per_storage import PerStorage
from .tally import known_tally

MOST = 500
"""How many leases are renewed in one statement."""

RENEWAL = 1 / 3
"""The part of a lease's duration after which it is renewed."""

EARLY = 1 / 12
"""The part of a lease's duration by which it may be renewed early, together with others."""

AGAIN = 1 / 30
"""The part of a lease's duration after which a failed renewal is repeated."""

ROUNDING_S = 0.001
"""By how much less a renewed lease may last than was asked for without being bounded."""

LOOK_S = 10.0
"""How often a keeper looks at least whether leases of others have run out."""

PAUSE_S = 1.0
"""How long it does not look, at least."""

LINGER_S = 5.0
"""How long the thread of a keeper waits for another lease before it ends."""

INFINITY = float("inf")

logger = logging.getLogger("pharox")

OnLost = Callable[[Lease, LeaseLostError], None]


class Owner(NamedTuple):
    """What the manager whose lease is kept does if it is lost, and if another has run out."""

    on_lost: OnLost
    clean_up: Callable[[], Calls[int]]


class Kept:
    """A lease that is kept alive, and whom to notify if it is lost."""

    __slots__ = (
        "_lease",
        "duration",
        "is_bounded",
        "is_renewing",
        "lease_id",
        "number",
        "on_lost",
        "owner",
        "renew_at",
    )

    def __init__(
        self, lease: Lease, begun: float, duration: float, number: int, owner: Owner
    ) -> None:
        self._lease = ref(lease)
        self.lease_id = lease.id
        self.duration = duration
        self.number = number
        self.owner = owner
        self.on_lost = [owner.on_lost]
        self.is_renewing = False
        # One that an earlier call was granted may last less than this one asks for.
        known = duration if lease.countdown is None else lease.countdown.until - begun
        self.count_from(begun, min(duration, known))

    @property
    def lease(self) -> Lease | None:
        """The lease, or None if nobody refers to it any more."""
        return self._lease()

    @property
    def counts_until(self) -> float:
        """The monotonic time until which the holder can count on the lease."""
        lease = self.lease
        return 0.0 if lease is None or lease.countdown is None else lease.countdown.until

    def count_from(self, begun: float, seconds: float) -> None:
        """Let the lease count for so long from a moment; renew it after a third of its duration.

        If it is less than was asked for, its pool lets it be held no longer. A renewal then adds
        no time, but finds out if somebody ends the lease earlier.
        """
        lease = self.lease
        if lease is not None:
            lease.count_down(begun + seconds).is_kept = True
        self.is_bounded = seconds < self.duration - ROUNDING_S
        self.renew_at = begun + self.duration * RENEWAL

    def ended(self) -> Exception | None:
        """Return why its time ran out; None if it could not be renewed in time."""
        if not self.is_bounded:
            return None
        return LeaseEndedError(
            f"Lease {self.lease_id} was held for as long as its pool allows.",
            lease_id=self.lease_id,
        )


Lost = tuple[Kept, Exception | None]
"""A lost lease, and why it was not renewed; None if that could not be done in time."""


class Due(NamedTuple):
    """What a keeper has to do now."""

    lost: list[Lost]
    renewals: list[Kept]
    looks_for: Owner | None


class Schedule:
    """The kept leases, by when they are to be renewed and by when they are lost."""

    def __init__(self) -> None:
        self._kept: dict[UUID, Kept] = {}
        self._renewals: Any = SortedList()
        self._ends: Any = SortedList()
        self._places: dict[int, tuple[Any, Any]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, lease_id: UUID) -> Kept | None:
        """Return the kept lease with this id."""
        return self._kept.get(lease_id)

    def put(self, kept: Kept) -> None:
        """Add a lease, or move it to its new place."""
        self._remove(kept)
        self._kept[kept.lease_id] = kept
        end = (kept.counts_until, kept.number, kept)
        renewal = None if kept.is_renewing else (kept.renew_at, kept.number, kept)
        self._places[kept.number] = renewal, end
        self._ends.add(end)
        if renewal is not None:
            self._renewals.add(renewal)

    def drop(self, kept: Kept) -> bool:
        """Forget a lease. Return whether it was kept."""
        if self._kept.get(kept.lease_id) is not kept:
            return False
        self._remove(kept)
        del self._kept[kept.lease_id]
        return True

    def next_at(self, *, is_busy: bool) -> float:
        """Return when there is something to do. While a renewal runs, none is begun."""
        times = [self._ends[0][0]] if self._ends else []
        if self._renewals and not is_busy:
            times.append(self._renewals[0][0])
        return min(times, default=INFINITY)

    def owner(self) -> Owner | None:
        """Return the owner of a lease that somebody still refers to."""
        kept = (each.owner for each in self._kept.values() if each.lease is not None)
        return next(kept, None)

    def take_lost(self, now: float) -> list[Kept]:
        """Remove and return the leases that can no longer be counted on."""
        ended = [kept for _, _, kept in self._ends.irange(None, (now, INFINITY))]
        for kept in ended:
            if kept.counts_until > now:  # It was renewed by hand.
                self.put(kept)
            else:
                self.drop(kept)
        return [kept for kept in ended if kept.lease_id not in self._kept]

    def take_due(self, now: float) -> list[Kept]:
        """Return the leases to be renewed now. Their renewal has begun."""
        if not self._renewals or self._renewals[0][0] > now:
            return []
        # Not more than one statement renews, and with them what is due soon.
        first = [kept for _, _, kept in islice(self._renewals, MOST)]
        due = [kept for kept in first if kept.renew_at - kept.duration * EARLY <= now]
        for kept in due:
            kept.is_renewing = True
            self.put(kept)
        return due

    def _remove(self, kept: Kept) -> None:
        renewal, end = self._places.pop(kept.number, (None, None))
        if renewal is not None:
            self._renewals.remove(renewal)
        if end is not None:
            self._ends.remove(end)


class Keeping(ABC):
    """What keepers of threads and of tasks have in common."""

    def __init__(self, storage: Any) -> None:
        self._storage_ref = ref(storage)
        self.start_empty()

    def start_empty(self) -> None:
        """Keep nothing. In a forked child, leases, threads and timers are those of its parent."""
        self._schedule = Schedule()
        self._numbers = count()
        self._is_busy = self._is_looking = False
        self._looks_at = INFINITY
        # When the timer looks at the schedule next.
        self._wakes_at = INFINITY

    @abstractmethod
    def _lock(self) -> AbstractContextManager[Any]:
        """Return what has to be entered to use the schedule."""

    @abstractmethod
    def _wake(self) -> None:
        """Have the timer look at the schedule again. The lock is held."""

    def __len__(self) -> int:
        with self._lock():
            return len(self._schedule)

    @property
    def is_over(self) -> bool:
        """Whether no timer will ever ring again."""
        return False

    def keep(self, lease: Lease, begun: float, duration: float, owner: Owner) -> None:
        """Keep a lease of a manager alive, and notify that if it is lost.

        It lasts ``duration`` seconds from ``begun``, and as long from each renewal.
        """
        with self._lock():
            known = self._schedule.get(lease.id)
            if known is not None:
                self._schedule.drop(known)
            kept = Kept(lease, begun, duration, next(self._numbers), owner)
            self._schedule.put(kept)
            if self._looks_at == INFINITY and not self._is_looking:
                self._looks_at = time.monotonic() + PAUSE_S
            if self._next_at() < self._wakes_at:
                self._wake()

    def notify(self, lease: Lease, on_lost: OnLost) -> None:
        """Call ``on_lost`` if a kept lease is lost; at once if it is lost already."""
        with self._lock():
            kept = self._schedule.get(lease.id)
            if kept is not None:
                kept.on_lost.append(on_lost)
                return
        if lease.is_lost and is_kept(lease):
            on_lost(lease, lost_error(lease))

    def let_go(self, lease_ids: Iterable[UUID]) -> None:
        """Keep leases no longer. Those that have run out by now are lost all the same."""
        with self._lock():
            found = [kept for each in lease_ids if (kept := self._schedule.get(each)) is not None]
            for kept in found:
                self._schedule.drop(kept)
        self._lose(
            [(kept, None) for kept in found if kept.lease is not None and kept.lease.is_lost]
        )

    def lose(self, leases: Iterable[Lease]) -> None:
        """Notify the holders of leases that were revoked by this process."""
        with self._lock():
            found = [
                (kept, LeaseEndedError(ending_of(lease), lease_id=lease.id))
                for lease in leases
                if (kept := self._schedule.get(lease.id)) is not None
            ]
            for kept, _ in found:
                self._schedule.drop(kept)
        self._lose(found)

    def _look(self) -> Due:
        """Return what there is to do now. The lock is held."""
        now = time.monotonic()
        lost: list[Lost] = [(kept, kept.ended()) for kept in self._schedule.take_lost(now)]
        due = [] if self._is_busy else self._schedule.take_due(now)
        self._is_busy = self._is_busy or bool(due)
        owner = None
        if self._looks_at <= now:
            owner = self._schedule.owner()
            self._looks_at, self._is_looking = INFINITY, owner is not None
        return Due(lost, due, owner)

    def _next_at(self) -> float:
        return min(self._schedule.next_at(is_busy=self._is_busy), self._looks_at)

    def _renewing(self, due: Sequence[Kept]) -> Calls[None]:
        """Renew leases, those that somebody still refers to, and lose those that have ended."""
        storage = self._storage_ref()
        asked = {kept: lease for kept in due if (lease := kept.lease) is not None}
        requests = [RenewRequest(lease, kept.duration) for kept, lease in asked.items()]
        outcomes: Sequence[Any] = ()
        begun = time.monotonic()
        try:
            if storage is not None and requests:
                outcomes = yield partial(storage.renew_leases, requests, wait=False)
        except Exception as error:
            logger.warning(
                "pharox.renewal.failed: renewing %d leases failed and will be tried again: %s",
                len(requests),
                error,
            )
        except asyncio.CancelledError:  # Somebody cancels all tasks of the loop.
            self._settle(due, {}, begun)
            raise
        self._lose(self._settle(due, dict(zip(asked, outcomes, strict=False)), begun))
        yield from _writing_reports(storage, {lease.proxy_id for lease in asked.values()})

    def _expiring(self, owner: Owner) -> Calls[None]:
        """Have what has run out taken back, and find out when the next lease does."""
        storage, left = self._storage_ref(), None
        try:
            if storage is not None:
                left = yield partial(storage.seconds_to_next_expiry)
                if left == 0:
                    yield from owner.clean_up()
                    left = yield partial(storage.seconds_to_next_expiry)
        except Exception:
            logger.warning(
                "pharox.expiry.failed: taking leases back, or a callback of it, failed",
                exc_info=True,
            )
        except asyncio.CancelledError:
            self._end_look(None)
            raise
        self._end_look(left)

    def _end_look(self, left: float | None) -> None:
        """Look again when the next lease runs out, in so many seconds; None if nobody knows."""
        pause = LOOK_S if left is None else max(PAUSE_S, min(left, LOOK_S))
        with self._lock():
            self._is_looking = False
            self._looks_at = time.monotonic() + pause
            if len(self._schedule):
                self._wake()

    def _settle(self, due: Sequence[Kept], known: Mapping[Kept, Any], begun: float) -> list[Lost]:
        """Take the outcomes of a renewal into the schedule. Return the leases that are lost."""
        lost: list[Lost] = []
        with self._lock():
            self._is_busy = False
            for kept in due:
                lease = kept.lease
                kept.is_renewing = False
                if not self._schedule.drop(kept) or lease is None:
                    continue  # It was let go, or lost, or nobody refers to it.
                outcome = known.get(kept)
                if isinstance(outcome, LeaseEndedError | ConflictError):
                    lost.append((kept, outcome))
                    continue
                if isinstance(outcome, Lease):
                    seconds = renewed_for_s(outcome)
                    kept.count_from(begun, kept.duration if seconds is None else seconds)
                else:
                    kept.renew_at = time.monotonic() + kept.duration * AGAIN
                self._schedule.put(kept)
            if len(self._schedule):
                self._wake()
        return lost

    def _lose(self, lost: Iterable[Lost]) -> None:
        """Mark leases as lost, and notify those who asked for it."""
        for kept, why in lost:
            lease = kept.lease
            if lease is None:
                continue
            error = lost_error(lease, why)
            if lease.countdown is not None:
                lease.countdown.lost_because = str(error)
            logger.warning("pharox.lease.lost: %s", error, extra={"lease_id": str(lease.id)})
            for on_lost in kept.on_lost:
                try:
                    on_lost(lease, error)
                except Exception:
                    logger.exception("pharox.callback.failed: after lease %s was lost", lease.id)


class Keeper(Keeping):
    """Keeps the leases of threads. Its timer is a daemon thread, which ends when it is idle."""

    def start_empty(self) -> None:
        """Keep nothing, with a timer of its own to come."""
        super().start_empty()
        self._condition = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None

    def _lock(self) -> AbstractContextManager[Any]:
        return self._condition

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = _start("pharox-keeper", self._run)
        else:
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                work = self._look()
                if not any(work) and not self._wait():
                    return
            # In threads of their own: neither a callback nor the database stops the timer.
            if work.lost:
                _start_or_call("pharox-lost", self._lose, work.lost)
            if work.renewals:
                _start_or_call("pharox-renewal", run, self._renewing(work.renewals), call)
            if work.looks_for:
                _start_or_call("pharox-expiry", run, self._expiring(work.looks_for), call)

    def _wait(self) -> bool:
        """Wait until there may be something to do. Return whether the thread goes on."""
        now = time.monotonic()
        self._wakes_at = min(self._next_at(), now + LINGER_S)
        self._condition.wait(max(0.0, self._wakes_at - now))
        if len(self._schedule):
            return True
        self._thread, self._wakes_at = None, INFINITY
        return False


class AsyncKeeper(Keeping):
    """Keeps the leases of tasks of one event loop, with a timer of the loop."""

    def __init__(self, storage: Any) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(storage)

    def keep(self, lease: Lease, begun: float, duration: float, owner: Owner) -> None:
        """Keep a lease alive in the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # The timer of another loop never rings again.
            self.start_empty()
            self._loop = loop
        super().keep(lease, begun, duration, owner)

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended."""
        return self._loop is not None and self._loop.is_closed()

    def start_empty(self) -> None:
        """Keep nothing, with no timer."""
        super().start_empty()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = self._next_at()
        if self._wakes_at < INFINITY:
            # Renewals are attributed to nobody's job: they are of many.
            delay = self._wakes_at - time.monotonic()
            self._timer = loop.call_later(delay, self._run, context=Context())

    def _run(self) -> None:
        self._timer = None
        work = self._look()
        self._lose(work.lost)
        if work.renewals:
            self._start(self._renewing(work.renewals))
        if work.looks_for:
            self._start(self._expiring(work.looks_for))
        self._wake()

    def _start(self, program: Calls[None]) -> None:
        task = asyncio.get_running_loop().create_task(run_async(program, call_async))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_keepers: PerStorage[Keeping] = PerStorage()


def keeper_of(storage: Any, kind: Callable[[Any], Keeping]) -> Keeping:
    """Return the keeper of a storage, made when it is first needed."""
    return _keepers.of(storage, kind)


def let_go(storage: Any, lease_ids: Iterable[UUID]) -> None:
    """Keep leases of a storage no longer, if any of its leases are kept."""
    keeper = _keepers.get(storage)
    if keeper is not None:
        keeper.let_go(lease_ids)


def lose(storage: Any, leases: Iterable[Lease]) -> None:
    """Notify the holders of revoked leases, as far as a keeper of this storage knows them."""
    keeper = _keepers.get(storage)
    if keeper is not None:
        keeper.lose(leases)


def notify(storage: Any, lease: Lease, on_lost: OnLost) -> None:
    """Call ``on_lost`` if a lease that is kept alive is lost; at once if it is lost already."""
    keeper = _keepers.get(storage)
    if keeper is not None:
        keeper.notify(lease, on_lost)


def _writing_reports(storage: Any, proxies: Collection[UUID]) -> Calls[None]:
    """Write what holders of renewed leases reported: more is not lost if they are killed."""
    tally = None if storage is None else known_tally(storage)
    if tally is not None and tally.has(proxies):
        yield from tally.flushing(proxies)


def can_renew(storage: Any) -> bool:
    """Return whether a storage can renew leases; an adapter for 0.11.0 cannot."""
    plain = (IStorage.renew_leases, IAsyncStorage.renew_leases)
    return getattr(type(storage), "renew_leases", plain[0]) not in plain


def _start(name: str, function: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, name=name, daemon=True)
    thread.start()
    return thread


def _start_or_call(name: str, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a thread; in this one if the process may have no more."""
    try:
        _start(name, function, *arguments)
    except RuntimeError as error:
        logger.warning("pharox.keeper.waits: its timer does without a thread: %s", error)
        function(*arguments)


def renewed_for_s(lease: Lease) -> float | None:
    """Return how long a renewed lease lasts from its renewal, in seconds.

    None if its storage does not say when that was: it grants what is asked for.
    """
    if lease.renewed_at is None:
        return None
    return (lease.expires_at - lease.renewed_at).total_seconds()


def is_kept(lease: Lease) -> bool:
    """Return whether a lease is, or was, kept alive."""
    return lease.countdown is not None and lease.countdown.is_kept


def lost_error(lease: Lease, why: Exception | None = None) -> LeaseLostError:
    """Return the error for the holder of a lost lease."""
    known = lease.countdown and lease.countdown.lost_because
    reason = str(why) if why else f"Lease {lease.id} could not be renewed in time."
    error = LeaseLostError(
        known or f"{reason} Somebody else may hold its proxy.",
        lease_id=lease.id,
        pool_name=lease.pool_name,
    )
    error.__cause__ = why
    return error
