"""Write what holders report in few commits: successes are counted first.

    counted ──> waits, by proxy ──> every 10 s, with a release, or before another report ──> written
    noted   ──> waits, by proxy ──> at once, in the background                           ──> written

One tally per storage has the reports of all its managers. What waits of one proxy is written in
the order in which it was reported, and by one call at a time: a success that is written late must
not end the rest that a later refusal began. The timer is a thread, or one of the event loop. It
exists only while something waits.

What could not be written is tried again for some minutes. If nobody knows whether it was written,
it is not: a success is counted once or not at all. A process that is killed loses what waits.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID
from weakref import ref

from ..effects import (
    Calls,
    call,
    call_async,
    result_within,
    result_within_async,
    run,
    run_async,
)
from ..effects.cancelling import outcome_of
from ..errors import DatabaseError, OutcomeUnknownError, PharoxError
from ..models import Lease, Outcome, OutcomeKind
from ..storage.async_interface import IAsyncStorage
from ..storage.closing import before_close
from ..storage.interface import IStorage
from ..storage.reports import Reported, ReportRequest, report_rounds
from .per_storage import PerStorage
from .ruling import known_rules

PERIOD_S = 10.0
"""How long a success waits at most, and after how long what failed is tried again."""

MOST = 10_000
"""How many reports wait at most; further ones are lost. Those that are counted together are one."""

KEPT_S = 300.0
"""For how long a report is tried again."""

PATIENCE_S = 60.0
"""How long a report waits for another of the same proxy that is being written."""

BUSY_S = 0.25
"""After how long the timer looks again at what it left because it was being written."""

_MOST_COUNTED = 2**31 - 1
_MOST_BYTES = 2**63 - 1
INFINITY = float("inf")

logger = logging.getLogger("pharox")

Owner = Callable[[Sequence[tuple[ReportRequest, Reported]]], Calls[None]]
"""What the manager that reported does about outcomes, once they are written."""


@dataclass(slots=True, eq=False)
class Report:
    """An outcome under a lease, or several successes alike, to be written.

    One that ``is_kept`` is tried again if it cannot be written. Else its caller is told. If the
    storage refuses it, ``refusal`` is why, which is logged unless somebody ``is_told`` of it.
    """

    lease: Lease
    outcome: Outcome
    owner: Owner
    is_kept: bool
    since: float
    count: int
    bytes: int | None
    is_told: bool = False
    refusal: Exception | None = None

    @classmethod
    def of(cls, request: ReportRequest, owner: Owner, *, is_kept: bool) -> Report:
        """Return a report of a request."""
        lease, outcome = request.lease, request.outcome
        return cls(lease, outcome, owner, is_kept, time.monotonic(), outcome.count, outcome.bytes)

    @property
    def is_countable(self) -> bool:
        """Whether it is a success that others are added to."""
        return self.is_kept and self.outcome.kind is OutcomeKind.OK

    @property
    def key(self) -> tuple[Any, ...]:
        """What successes have in common that are counted together."""
        known = self.outcome
        target = known.target or self.lease.target
        return self.lease.id, target, known.status, known.retry_after_seconds, known.note

    @property
    def request(self) -> ReportRequest:
        """What a storage is asked to record."""
        total = {"count": self.count, "bytes": self.bytes}
        return ReportRequest(self.lease, self.outcome.model_copy(update=total))

    def add(self, other: Report) -> bool:
        """Count another success, if the sums can be recorded. Return whether they can."""
        count = self.count + other.count
        known = [each.bytes for each in (self, other) if each.bytes is not None]
        if count > _MOST_COUNTED or sum(known) > _MOST_BYTES:
            return False
        self.count, self.bytes = count, sum(known) if known else None
        return True


class Waiting:
    """The reports of one proxy that wait, in order. Successes since the last other are counted."""

    def __init__(self) -> None:
        self._closed: list[Report] = []
        self._counted: dict[tuple[Any, ...], Report] = {}

    def count(self, report: Report) -> Report | None:
        """Add a success to one that waits. Return that, or None if there is none."""
        known = self._counted.get(report.key) if report.is_countable else None
        return known if known is not None and known.add(report) else None

    def append(self, report: Report) -> None:
        """Add a report after all others. It does not keep the holder's lease alive."""
        report.lease = report.lease.model_copy()
        if report.is_countable and report.key not in self._counted:
            self._counted[report.key] = report
            return
        self._closed += [*self._counted.values(), report]
        self._counted.clear()

    def put_back(self, reports: Sequence[Report]) -> None:
        """Add reports before all others: they were taken earlier."""
        self._closed[:0] = reports

    def reports(self) -> list[Report]:
        """Return the reports in their order."""
        return [*self._closed, *self._counted.values()]


@dataclass(slots=True, eq=False)
class Work:
    """Reports of some proxies that are being written. Others of these wait until it is done."""

    proxies: Collection[UUID]
    reports: Sequence[Report]
    done: Future[None]


class Gathering:
    """Releases whose reports are written together: those that come while others are written."""

    def __init__(self, before: Future[None] | None) -> None:
        self.before = before
        self.proxies: set[UUID] = set()
        self.done: Future[None] = Future()


class Tally(ABC):
    """What tallies of threads and of event loops have in common."""

    def __init__(self, storage: Any) -> None:
        self._storage_ref = ref(storage)
        self.start_empty()
        before_close(storage, partial(_flushing, ref(self)))

    def start_empty(self) -> None:
        """Have nothing to write. In a forked child, what waits is its parent's."""
        self._of_proxies: dict[UUID, Waiting] = {}
        self._size = 0
        self._lost = 0
        self.start_anew()

    def start_anew(self) -> None:
        """Keep what waits, with a timer of its own to come."""
        self._being_written: dict[UUID, Future[None]] = {}
        self._gathering: Gathering | None = None
        self._ended_last: Future[None] | None = None
        self._rings_at = INFINITY

    @property
    def is_over(self) -> bool:
        """Whether no timer will ever ring again."""
        return False

    @abstractmethod
    def _enter(self) -> None:
        """Begin a call: what belongs to an event loop that has ended is forgotten."""

    @abstractmethod
    def _lock(self) -> AbstractContextManager[Any]:
        """Return what has to be entered to use what waits."""

    @abstractmethod
    def _wake(self) -> None:
        """Have the timer ring at another time. The lock is held."""

    @abstractmethod
    def _within(self, future: Future[Any], seconds: float) -> Any:
        """Wait for a future, or return something to await that does."""

    def __len__(self) -> int:
        with self._lock():
            return self._size

    def note(self, report: Report) -> None:
        """Have a report written in the background: a success with others, all others at once."""
        is_urgent = report.outcome.kind is not OutcomeKind.OK or self._rules_are_due()
        self._enter()
        with self._lock():
            self._add(report)
            self._ring_in(0 if is_urgent else PERIOD_S)

    def has(self, proxies: Iterable[UUID]) -> bool:
        """Return whether reports of one of these proxies wait, or are being written."""
        if not self._of_proxies and not self._being_written:
            return False
        return any(each in self._of_proxies or each in self._being_written for each in proxies)

    def flushing_all(self) -> Calls[None]:
        """Write all that waits, after what is being written now. Log errors."""
        with self._lock():
            proxies = {*self._of_proxies, *self._being_written}
        if proxies:
            yield from self.flushing(proxies)

    def writing(self, own: Sequence[Report]) -> Calls[list[Reported | PharoxError]]:
        """Write what waits of the proxies of some reports, and then these, which are not kept.

        Return what they came to. If it raises, what waited is put back.
        """
        proxies = {report.lease.proxy_id for report in own}
        work = yield from self._begin_after_others(proxies, own)
        known = yield from self._carry_out(work)
        return [known[report] for report in own]

    def ending(self, own: Sequence[Report], proxies: Collection[UUID]) -> Calls[list[Exception]]:
        """Write what waits of some proxies, and with it reports that are kept.

        Callers that come meanwhile are served together, by one of them. Return the errors of
        reports that the storage refused. What cannot be written is logged.
        """
        self._enter()
        with self._lock():
            entries = [entry for report in own if (entry := self._add(report)) is not None]
            for entry in entries:
                entry.is_told = True
            gathering, leads = self._gathering, self._gathering is None
            if gathering is None:
                gathering = self._gathering = Gathering(self._ended_last)
                self._ended_last = gathering.done
            gathering.proxies.update(proxies)
        if leads:
            yield from self._leading(gathering)
        else:
            yield partial(self._within, gathering.done, PATIENCE_S)
        return [entry.refusal for entry in entries if entry.refusal is not None]

    def _leading(self, gathering: Gathering) -> Calls[None]:
        """Write for all who have gathered once those before are served."""
        try:
            if gathering.before is not None:
                yield partial(self._within, gathering.before, PATIENCE_S)
            with self._lock():
                self._gathering = None
            yield from self.flushing(gathering.proxies)
        finally:
            with self._lock():
                if self._gathering is gathering:  # Its leader was cancelled: the timer writes.
                    self._gathering = None
                if self._size:
                    self._ring_in(PERIOD_S)
            gathering.before = None
            gathering.done.set_result(None)

    def flushing(self, proxies: Collection[UUID] | None = None) -> Calls[None]:
        """Write what waits, of some proxies or of all that are not being written. Log errors."""
        self._enter()
        try:
            if proxies is None:
                work = self._begin(None)
            else:
                work = yield from self._begin_after_others(proxies)
            yield from self._carry_out(work)
        except Exception:
            logger.warning(
                "pharox.report.failed: writing reports, which will be tried again, or a callback "
                "after it, failed",
                exc_info=True,
            )

    def ringing(self) -> Calls[None]:
        """Do what the timer is for: write what waits, and read the rules anew if that is due."""
        yield from self.flushing()
        storage = self._storage_ref()
        rules = None if storage is None else known_rules(storage)
        if rules is not None and rules.is_due:
            try:
                yield from rules.reading(storage)
            except Exception:
                logger.exception("pharox.rules.failed: the known rules for targets hold")

    def _rules_are_due(self) -> bool:
        storage = self._storage_ref()
        rules = None if storage is None else known_rules(storage)
        return rules is not None and rules.is_due

    def _begin_after_others(
        self, proxies: Collection[UUID], own: Sequence[Report] = ()
    ) -> Calls[Work]:
        """Take what waits of some proxies, after what others are writing of them now."""
        self._enter()
        until = time.monotonic() + PATIENCE_S
        while True:
            work = self._begin(proxies, own, is_late=time.monotonic() >= until)
            if isinstance(work, Work):
                return work
            yield partial(self._within, work, until - time.monotonic())

    def _begin(
        self,
        proxies: Collection[UUID] | None,
        own: Sequence[Report] = (),
        *,
        is_late: bool = False,
    ) -> Any:
        """Take reports to write them, or return what is to be waited for."""
        done: Future[None] = Future()
        with self._lock():
            if proxies is None:
                proxies = [each for each in self._of_proxies if each not in self._being_written]
                if len(proxies) < len(self._of_proxies):
                    self._ring_in(BUSY_S)
            busy = [self._being_written[each] for each in proxies if each in self._being_written]
            if busy and not is_late:
                return busy[0]
            if busy:  # Something hangs: what it writes is not waited for any more.
                return Work((), own, done)
            places = {each: self._of_proxies.pop(each, Waiting()) for each in proxies}
            self._size -= sum(len(waiting.reports()) for waiting in places.values())
            for report in own:
                places[report.lease.proxy_id].append(report)
            reports = [report for waiting in places.values() for report in waiting.reports()]
            if reports:
                self._being_written.update(dict.fromkeys(places, done))
        return Work(places, reports, done)

    def _carry_out(self, work: Work) -> Calls[dict[Report, Any]]:
        """Write reports in their order. Return what each came to."""
        known: dict[Report, Any] = {}
        cancelled: asyncio.CancelledError | None = None
        requests = [report.request for report in work.reports]
        try:
            for places in report_rounds(requests):
                asked = [(work.reports[place], requests[place]) for place in places]
                cancelled = (yield from self._write(asked, known)) or cancelled
        finally:
            self._settle(work, known)
        self._note_refused(known)
        yield from self._follow(known)
        if cancelled is not None:
            raise cancelled
        return known

    def _write(
        self, asked: Sequence[tuple[Report, ReportRequest]], known: dict[Report, Any]
    ) -> Calls[asyncio.CancelledError | None]:
        """Write reports in one call, and add what they came to.

        A storage may write some and return an error of the database for others: those that are
        kept are tried again.

        Return a cancellation that came too late to stop it: the others are written nonetheless.
        """
        storage, cancelled = self._storage_ref(), None
        outcomes: Sequence[Any] = [None] * len(asked)
        try:
            if storage is not None:
                outcomes = yield partial(storage.report_outcomes, [each for _, each in asked])
        except OutcomeUnknownError:
            known.update((report, None) for report, _ in asked)
            raise
        except asyncio.CancelledError as error:
            if not (found := outcome_of(error, "report_outcomes")):
                raise
            (outcomes,), cancelled = found, error
        known.update(
            (report, outcome)
            for (report, _), outcome in zip(asked, outcomes, strict=True)
            if not (report.is_kept and isinstance(outcome, DatabaseError))
        )
        return cancelled

    def _settle(self, work: Work, known: dict[Report, Any]) -> None:
        """Put back what waited and is not written, unless that has been tried for long."""
        since = time.monotonic() - KEPT_S
        left = [each for each in work.reports if each.is_kept and each not in known]
        kept = [report for report in left if report.since >= since]
        with self._lock():
            for proxy_id in work.proxies:
                if self._being_written.get(proxy_id) is work.done:
                    del self._being_written[proxy_id]
            for proxy_id in {report.lease.proxy_id for report in kept}:
                again = [report for report in kept if report.lease.proxy_id == proxy_id]
                self._of_proxies.setdefault(proxy_id, Waiting()).put_back(again)
            self._size += len(kept)
            if self._size:
                self._ring_in(PERIOD_S)
            lost = self._lost + sum(report.count for report in left if report.since < since)
            self._lost = 0
        work.done.set_result(None)
        if lost:
            logger.warning("pharox.report.lost: %d outcomes could not be written", lost)

    def _note_refused(self, known: dict[Report, Any]) -> None:
        """Note the errors of reports; log those of which nobody is told."""
        for report, outcome in known.items():
            if not isinstance(outcome, Exception):
                continue
            report.refusal = outcome
            if report.is_kept and not report.is_told:
                logger.warning("pharox.report.refused: %s", outcome)

    def _follow(self, known: dict[Report, Any]) -> Calls[None]:
        """Have managers do what follows from what was recorded."""
        recorded: dict[Owner, list[tuple[ReportRequest, Reported]]] = {}
        for report, outcome in known.items():
            if isinstance(outcome, Reported):
                recorded.setdefault(report.owner, []).append((report.request, outcome))
        for owner, reports in recorded.items():
            yield from owner(reports)

    def _add(self, report: Report) -> Report | None:
        """Have a report wait. Return it, or the one in which it is counted; None if it is lost."""
        waiting = self._of_proxies.get(report.lease.proxy_id) or Waiting()
        counted_in = waiting.count(report)
        if counted_in is not None:
            return counted_in
        if self._size >= MOST:
            self._lost += report.count
            return None
        waiting.append(report)
        self._of_proxies[report.lease.proxy_id] = waiting
        self._size += 1
        return report

    def _ring_in(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        if at < self._rings_at:
            self._rings_at = at
            self._wake()


class ThreadTally(Tally):
    """The tally of threads. Its timer is a daemon thread, which ends when nothing waits."""

    def start_empty(self) -> None:
        """Have nothing to write, with a timer of its own to come."""
        self._condition = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        super().start_empty()

    def _enter(self) -> None:
        pass

    def _lock(self) -> AbstractContextManager[Any]:
        return self._condition

    def _within(self, future: Future[Any], seconds: float) -> Any:
        return result_within(future, seconds)

    def _wake(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._condition.notify_all()
            return
        thread = threading.Thread(target=self._run, name="pharox-reports", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # The process may have no more; the next report tries again.
            self._rings_at = INFINITY
        else:
            self._thread = thread

    def _run(self) -> None:
        while self._is_due():
            run(self.ringing(), call)

    def _is_due(self) -> bool:
        """Wait until something is to be written. Return False if nothing waits then."""
        with self._condition:
            while (seconds := self._rings_at - time.monotonic()) > 0:
                if not self._size:
                    self._thread, self._rings_at = None, INFINITY
                    return False
                self._condition.wait(min(seconds, PERIOD_S))
            self._rings_at = INFINITY
        return True


class TaskTally(Tally):
    """The tally of one event loop, with a timer of the loop."""

    def __init__(self, storage: Any) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(storage)

    @property
    def is_over(self) -> bool:
        """Whether the event loop has ended."""
        return self._loop is not None and self._loop.is_closed()

    def start_anew(self) -> None:
        """Keep what waits, with no timer."""
        super().start_anew()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # The timer of another loop never rings again.
            self.start_anew()
            self._loop = loop

    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def _within(self, future: Future[Any], seconds: float) -> Any:
        return result_within_async(future, seconds)

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._loop is None or self._loop.is_closed():
            return
        # What many reported is attributed to nobody's job.
        delay = self._rings_at - time.monotonic()
        self._timer = self._loop.call_later(delay, self._ring, context=Context())

    def _ring(self) -> None:
        self._timer, self._rings_at = None, INFINITY
        if self._size:
            loop = asyncio.get_running_loop()
            task = loop.create_task(run_async(self.ringing(), call_async))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


_tallies: PerStorage[Tally] = PerStorage()


def tally_of(storage: Any, kind: Callable[[Any], Tally]) -> Tally:
    """Return the tally of a storage, made when it is first needed."""
    return _tallies.of(storage, kind)


def known_tally(storage: Any) -> Tally | None:
    """Return the tally of a storage if there is one."""
    return _tallies.get(storage)


def has_reports(storage: Any, proxy_id: UUID) -> bool:
    """Return whether reports of a proxy wait, or are being written."""
    tally = _tallies.get(storage)
    return tally is not None and tally.has((proxy_id,))


def can_report(storage: Any) -> bool:
    """Return whether a storage can record outcomes; an adapter for 0.11.0 cannot."""
    plain = (IStorage.report_outcomes, IAsyncStorage.report_outcomes)
    return getattr(type(storage), "report_outcomes", plain[0]) not in plain


def _flushing(tally_ref: Callable[[], Tally | None]) -> Calls[None]:
    """Write what waits, before the storage is closed."""
    tally = tally_ref()
    if tally is not None:
        yield from tally.flushing_all()
