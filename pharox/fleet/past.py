"""The past of a fleet: the logs of its ledgers, merged by time.

A ledger's own events stay in the order of its log, whatever their times. Between two ledgers only
their clocks decide, so the order is as good as these agree. Events are read while they are asked
for; all that is read ahead is one event a ledger, and for asyncio a page of what is merged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from heapq import merge
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

from pharox.log import Extract

from ..effects import Calls, call, run
from ..effects.limiting import answers_within
from ..errors import ConsumerNotFoundError
from ..events import Event
from ..history.audit import Entry, of_consumer
from ..history.sealed_log import SealedLog, beginning
from .ledgers import Ledger
from .merging import InLedger, reading_all, together

T = TypeVar("T")
Past = tuple[Iterator[InLedger[T]], dict[str, Exception]]
"""What was read, each with its ledger, and why other ledgers are missing."""

PAGE = 200
"""How many rows a task has a thread read at once."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class Logs(NamedTuple):
    """The logs of a fleet's ledgers.

    Attributes
    ----------
    found:
        Each log by its ledger's name, or why there is none.
    within_s:
        How many seconds each answer of a ledger may take.
    """

    found: Mapping[str, SealedLog | Exception]
    within_s: float


def log_of(ledger: Ledger[Any, Any]) -> Calls[SealedLog]:
    """Return the log of a ledger for threads, whatever its storage is for."""
    storage = ledger.storage
    if hasattr(storage, "blocking"):
        storage = yield storage.blocking
    log: SealedLog = getattr(storage, "memory", storage)
    return log


def events_by_time(logs: Logs, extract: Extract) -> Past[Event]:
    """Return the events of all ledgers that match an extract.

    An archived part is left out, unless the extract asks for events in it: then its ledger is
    missing.
    """

    def events(log: SealedLog) -> Iterator[Event]:
        after = max(extract.after, beginning(log).seq)
        return log.history(extract._replace(after=after))

    return _by_time(logs, events, lambda event: event.recorded_at)


def story_by_time(
    logs: Logs, consumer: str, since: datetime | None, until: datetime | None
) -> Past[Entry]:
    """Return the entries of a consumer's stories in all ledgers where it is known.

    Raises
    ------
    ConsumerNotFoundError
        If no ledger knows it, and all of them answer.
    """

    def entries(log: SealedLog) -> Iterator[Entry]:
        return of_consumer(log, consumer, since=since, until=until).entries

    found, missing = _by_time(logs, entries, lambda entry: entry.event.recorded_at)
    unknown = [each for each in missing.values() if isinstance(each, ConsumerNotFoundError)]
    if len(unknown) == len(logs.found):
        raise unknown[0]
    down = {name: each for name, each in missing.items() if each not in unknown}
    return found, down


async def in_threads(rows: Iterator[T]) -> AsyncIterator[T]:
    """Yield what threads read, a page at a time. An error comes after what was read before it."""
    error: Exception | None = None
    is_over = False
    try:
        while not is_over and error is None:
            page, error = await asyncio.to_thread(_read_page, rows)
            is_over = not page
            for row in page:
                yield row
        if error is not None:
            raise error
    finally:
        await asyncio.to_thread(_close, rows)


def _read_page(rows: Iterator[T]) -> tuple[list[T], Exception | None]:
    """Read rows until the page is full. Return them, and the error that ended them if any."""
    page: list[T] = []
    try:
        while len(page) < PAGE:
            page.append(next(rows))
    except StopIteration:
        return page, None
    except Exception as error:
        return page, error
    return page, None


def _close(rows: Any) -> None:
    with suppress(ValueError):  # The thread of a task that was cancelled is still reading.
        rows.close()


def _by_time(
    logs: Logs, read: Callable[[SealedLog], Iterator[T]], time: Callable[[T], datetime]
) -> Past[T]:
    def opening(log: SealedLog | Exception) -> Calls[Iterator[T]]:
        if isinstance(log, Exception):
            raise log
        rows: Iterator[T] = yield partial(_begun, read, log)
        return rows

    found = run(reading_all(logs.found, together, opening, logs.within_s), call)
    missing = {name: each for name, each in found.items() if isinstance(each, Exception)}
    rising = [
        _rising(name, _each_read_within(each, logs.within_s), time)
        for name, each in found.items()
        if not isinstance(each, Exception)
    ]
    ordered = merge(*rising, key=lambda pair: pair[0])
    return (row for _, row in ordered), missing


def _begun(read: Callable[[SealedLog], Iterator[T]], log: SealedLog) -> Iterator[T]:
    """Read the first row, so that a ledger that is down is known before the others are read."""
    rows = read(log)
    for first in rows:
        return chain([first], rows)
    return iter(())


def _each_read_within(rows: Iterator[T], within_s: float) -> Iterator[T]:
    """Yield rows, none of which is waited for longer than a ledger's answer may take."""
    while True:
        with answers_within(within_s):
            page = [*islice(rows, 1)]
        if not page:
            return
        yield page[0]


def _rising(
    ledger: str, rows: Iterator[T], time: Callable[[T], datetime]
) -> Iterator[tuple[datetime, InLedger[T]]]:
    """Yield rows in their order with the latest time so far, by which they can be merged."""
    latest = _NEVER
    for row in rows:
        latest = max(latest, time(row))
        yield latest, InLedger(ledger, row)
