"""The leases of a crawl: taken when a request goes, shared by the requests of a domain or session.

A lease that several requests go by is given back after the last of them: at once if it is retired,
as the proxy was refused or failed, else after a pause without any. If it is lost, the requests that
are under way are ended: somebody else may use the proxy by then.

Leases are given back in the background: a page is there, and its slot free, without waiting for
that, and what is given back goes out together with what the next requests ask for. Successes are
counted for a while, as else each release would write one. Whatever else is reported of a proxy is
written after those that came before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from ...effects import call_async, run_async
from ...errors import LeaseEndedError, LeaseLostError, ProxyUnavailableError
from ...events.attribution import attributed
from ...manager.async_proxy_manager import AsyncProxyManager
from ...manager.holding import Holding
from ...manager.pool_handle import AsyncPoolHandle
from ...models import MissReason, Outcome, OutcomeKind, ProxyFilters, ProxyProtocol, Sticky
from .._core import opening

logger = logging.getLogger("pharox")

ANOTHER_WITHIN_S = 5.0
"""How long a retry waits for another proxy before it takes one that it was refused with."""

SPIDER: Hashable = ("spider",)
"""The key of a lease for the whole crawl, which is kept while nothing goes by it."""

COUNTED_S = 2.0
"""How long successes are counted before they are reported."""

_SQUEEZE_S = 0.2
_CACHED_HANDLES = 1000


@dataclass(frozen=True)
class Wanted:
    """What a request needs of a lease."""

    target: str | None
    key: Hashable = None
    """What the lease is shared by; None if it is for this request alone."""
    session: str | None = None
    protocols: frozenset[ProxyProtocol] | None = None
    """The protocols of proxies that the download handler can use; None for all."""
    tried: tuple[UUID, ...] = ()
    """The proxies that it was refused with, or that failed."""


class Loan:
    """A lease, and the tasks whose requests go by it."""

    def __init__(self, holding: Holding) -> None:
        self.holding, self.lease = holding, holding.lease
        self.key: Hashable = None
        self.users = 0
        self.is_retired = False
        self.idle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._lost: LeaseLostError | None = None
        holding.call_when_lost(self._on_lost)

    @property
    def can_be_joined(self) -> bool:
        """Whether another request can go by the lease."""
        return not (self.is_retired or self._lost is not None or self.lease.is_lost)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[None]:
        """Go by the lease for a block, which ends if the lease is lost.

        Raises
        ------
        LeaseLostError
            If it was lost, instead of the cancellation that came of it.
        """
        if self._lost is not None:
            raise self._lost
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of Scrapy is run in one
        requested = task.cancelling()
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError as error:
            if self._lost is not None and task.uncancel() <= requested:
                raise self._lost from error
            raise
        finally:
            self._tasks.discard(task)

    def end_requests(self) -> None:
        """Cancel the requests that are under way."""
        for task in tuple(self._tasks):
            task.cancel()

    def _on_lost(self, _: object, error: LeaseLostError) -> None:
        self._lost = error
        self.end_requests()


class Leases:
    """The leases of one crawl, in its event loop.

    Parameters
    ----------
    manager:
        Whose storage is the ledger.
    pool:
        The pool to lease from.
    options:
        Of the pool's handle.
    filters:
        What every proxy has to match.
    correlation_id:
        What events are attributed to.
    session_seconds, idle_seconds:
        How long a session keeps its proxy, and a lease that no request goes by is kept.
    report:
        Whether outcomes are reported.
    """

    def __init__(
        self,
        manager: AsyncProxyManager,
        pool: str,
        options: dict[str, Any],
        *,
        filters: ProxyFilters | None,
        correlation_id: str,
        session_seconds: float,
        idle_seconds: float,
        report: bool,
        count: Any,
    ) -> None:
        self.manager = manager
        self._pool, self._options, self._filters = pool, options, filters
        self._correlation_id, self._report, self._count = correlation_id, report, count
        self._session_seconds, self._idle_seconds = session_seconds, idle_seconds
        self._shared: dict[Hashable, Loan] = {}
        self._loans: set[Loan] = set()
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._handles: dict[Wanted, AsyncPoolHandle] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._counted: dict[tuple[UUID, str | None, int | None], tuple[Loan, Outcome]] = {}
        self._counts_until: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    async def borrow(self, wanted: Wanted) -> Loan:
        """Return a lease to go by, one that is shared or a new one; wait for it if need be.

        Raises
        ------
        ProxyUnavailableError
            If nothing was free in time.
        """
        if wanted.key is None:
            return self._with_user(await self._lease(wanted))
        async with self._turn(wanted.key):
            loan = self._shared.get(wanted.key)
            if loan is not None and not loan.can_be_joined:
                self.retire(loan)
                loan = None
            if loan is None:
                loan = await self._lease(wanted)
                loan.key = wanted.key
                self._shared[wanted.key] = loan
            return self._with_user(loan)

    def end(self, loan: Loan, outcome: Outcome | None, *, retire: bool = False) -> None:
        """End a request's use of a lease, and report what became of it, in the background.

        With ``retire`` nobody else goes by the lease.
        """
        loan.users -= 1
        if outcome is not None and outcome.kind is OutcomeKind.OK:
            self.note(loan, outcome)
            outcome = None
        elif outcome is not None:
            self._write_counted(loan.lease.proxy_id)
        if retire:
            self._unshare(loan)
        if loan.users == 0 and (loan.is_retired or loan.key is None):
            self._later(self._release(loan, outcome))
            return
        if outcome is not None:
            self.note(loan, outcome)
        if loan.users == 0 and loan.key != SPIDER:
            loop = asyncio.get_running_loop()
            loan.idle = loop.call_later(self._idle_seconds, self._give_back_idle, loan)

    def note(self, loan: Loan, outcome: Outcome) -> None:
        """Report an outcome; a success is counted first. The lease may be over by then."""
        if not self._report or loan.holding.is_lost:
            return
        if outcome.kind is not OutcomeKind.OK:
            self._write_counted(loan.lease.proxy_id)
            self.manager.report_later(loan.lease, outcome)
            return
        key = (loan.lease.proxy_id, outcome.target, outcome.status)
        known = self._counted.get(key)
        if known is not None:
            outcome = _both(known[1], outcome)
        self._counted[key] = (loan, outcome)
        if self._counts_until is None:
            loop = asyncio.get_running_loop()
            self._counts_until = loop.call_later(COUNTED_S, self._write_all_counted)

    def _write_counted(self, proxy_id: UUID) -> None:
        """Report the successes of a proxy that are counted so far."""
        for key in [key for key in self._counted if key[0] == proxy_id]:
            loan, outcome = self._counted.pop(key)
            self.manager.report_later(loan.lease, outcome)

    def _write_all_counted(self) -> None:
        if self._counts_until is not None:
            self._counts_until.cancel()
            self._counts_until = None
        for loan, outcome in self._counted.values():
            self.manager.report_later(loan.lease, outcome)
        self._counted.clear()

    def retire(self, loan: Loan) -> None:
        """Have nobody else go by a lease. Who goes by it does so to the end."""
        self._unshare(loan)
        if loan.users == 0:
            self._give_back_idle(loan)

    def _unshare(self, loan: Loan) -> None:
        loan.is_retired = True
        if self._shared.get(loan.key) is loan:
            del self._shared[loan.key]

    async def close(self) -> None:
        """Give all leases back; end requests that are under way. It never raises."""
        self._is_closed = True
        for task in tuple(self._waiting):
            task.cancel()
        for loan in tuple(self._loans):
            loan.end_requests()
        self._shared.clear()
        self._write_all_counted()
        await self._settled()
        left = [loan for loan in self._loans if loan.holding.is_held]
        await asyncio.gather(*(self._release(loan, None) for loan in left))
        await self._settled()

    async def _settled(self) -> None:
        """Wait until requests that waited for a proxy, and all releases, are through.

        A request that was ended gives its lease back in a task of its own, which begins meanwhile.
        """
        while tasks := [each for each in (*self._background, *self._waiting) if not each.done()]:
            await asyncio.wait(tasks)

    def _with_user(self, loan: Loan) -> Loan:
        loan.users += 1
        if loan.idle is not None:
            loan.idle.cancel()
            loan.idle = None
        return loan

    def _turn(self, key: Hashable) -> asyncio.Lock:
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        return turn

    async def _lease(self, wanted: Wanted) -> Loan:
        """Lease a proxy: for a retry another one, unless that takes too long."""
        if self._is_closed:
            raise LeaseEndedError("the crawl has given its leases back")
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - as above
        self._waiting.add(task)
        # While somebody waits nobody keeps what nobody uses.
        squeeze = asyncio.get_running_loop().call_later(_SQUEEZE_S, self._give_back_all_idle)
        try:
            with attributed(correlation_id=self._correlation_id):
                loan = await self._leased(wanted)
        except ProxyUnavailableError as error:
            self._count(f"lease/missed/{error.reason}")
            raise
        finally:
            squeeze.cancel()
            self._waiting.discard(task)
        self._loans.add(loan)
        self._count("lease/acquired")
        return loan

    async def _leased(self, wanted: Wanted) -> Loan:
        if wanted.tried:
            waits = self._options["wait_seconds"]
            soon = None if waits is None else min(waits, ANOTHER_WITHIN_S)
            try:
                return await self._open(self._handle(wanted, wait_seconds=soon))
            except ProxyUnavailableError:
                wanted = replace(wanted, tried=())
        return await self._open(self._handle(wanted))

    async def _open(self, handle: AsyncPoolHandle) -> Loan:
        return await run_async(opening(handle, Loan, report=self._report), call_async)

    def _handle(self, wanted: Wanted, **options: Any) -> AsyncPoolHandle:
        """Return a handle for what is wanted. Most requests want the same again."""
        is_common = not wanted.tried and wanted.session is None
        if is_common and (known := self._handles.get(wanted)) is not None:
            return known
        sticky = None
        if wanted.session is not None:
            sticky = Sticky(wanted.session, seconds=self._session_seconds, sliding=True)
        handle = self.manager.pool(
            self._pool,
            **{**self._options, **options},
            filters=_filters(self._filters, wanted.protocols, wanted.tried),
            target=wanted.target,
            sticky=sticky,
        )
        if is_common:
            if len(self._handles) >= _CACHED_HANDLES:
                self._handles.clear()
            self._handles[wanted] = handle
        return handle

    async def _release(self, loan: Loan, outcome: Outcome | None) -> None:
        """Give a lease back, with what became of the last request. What fails is logged."""
        self._loans.discard(loan)
        if not loan.holding.is_held:
            return
        loan.holding.is_held = False
        is_lost = loan.holding.is_lost
        self._count("lease/lost" if is_lost else "lease/released")
        given = outcome if self._report and not is_lost else None
        try:
            with attributed(correlation_id=self._correlation_id):
                await self.manager.release_proxy(loan.lease, given)
        except Exception as error:
            # It runs out by itself, and the page that came through it is there.
            logger.warning("pharox.release.failed: lease %s: %r", loan.lease.id, error)

    def _give_back_all_idle(self) -> None:
        for loan in [each for each in self._shared.values() if each.users == 0]:
            self._give_back_idle(loan)

    def _give_back_idle(self, loan: Loan) -> None:
        """Give a lease back that no request goes by, in a task of its own."""
        if loan.users or loan not in self._loans:
            return
        if loan.idle is not None:
            loan.idle.cancel()
        self._unshare(loan)
        self._later(self._release(loan, None))

    def _later(self, releasing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(releasing)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _both(one: Outcome, other: Outcome) -> Outcome:
    """Return two successes alike as one."""
    sizes = [each.bytes for each in (one, other) if each.bytes is not None]
    update = {"count": one.count + other.count, "bytes": sum(sizes) if sizes else None}
    return one.model_copy(update=update)


def _filters(
    base: ProxyFilters | None,
    protocols: Collection[ProxyProtocol] | None,
    tried: Collection[UUID],
) -> ProxyFilters | None:
    """Return what a proxy has to match: the crawl's filters, and what the handler can use."""
    parts = [] if base is None else [base]
    if protocols is not None:
        usable = [ProxyFilters(protocol=each) for each in sorted(protocols)]
        parts.append(usable[0] if len(usable) == 1 else ProxyFilters(any_of=usable))
    if tried:
        parts.append(ProxyFilters(none_of=[ProxyFilters(proxy_id=each) for each in tried]))
    if len(parts) <= 1:
        return parts[0] if parts else None
    return ProxyFilters(all_of=parts)


def may_pass(error: ProxyUnavailableError) -> bool:
    """Return whether the same request may be granted a proxy later."""
    return error.reason is None or MissReason(error.reason).may_pass
