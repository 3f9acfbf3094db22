"""The past of a fleet: the logs of its ledgers, merged by time.

A ledger's own events stay in the order of its log, whatever their times. Between two ledgers only
their clocks decide, so the order is as good as these agree. Events are read while they are asked
for; all that is read ahead is one event a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from heapq import merge
from itertools import chain
from typing import Any, TypeVar

from pharox.log import Extract

from ..effects import Calls, call, run
from ..errors import ConsumerNotFoundError
from ..events import Event
from ..history.audit import Entry, of_consumer
from ..history.sealed_log import SealedLog, beginning
from .ledgers import Ledger
from .merging import InLedger, reading_all, together

T = TypeVar("T")
Ledgers = Mapping[str, Ledger[Any, Any]]
Past = tuple[Iterator[InLedger[T]], dict[str, Exception]]
"""What was read, each with its ledger, and why other ledgers are missing."""

_NEVER = datetime.min.replace(tzinfo=UTC)


def events_by_time(ledgers: Ledgers, extract: Extract) -> Past[Event]:
    """Return the events of all ledgers that match an extract.

    An archived part is left out, unless the extract asks for events in it: then its ledger is
    missing.
    """

    def events(log: SealedLog) -> Iterator[Event]:
        after = max(extract.after, beginning(log).seq)
        return log.history(extract._replace(after=after))

    return _by_time(ledgers, events, lambda event: event.recorded_at)


def story_by_time(
    ledgers: Ledgers, consumer: str, since: datetime | None, until: datetime | None
) -> Past[Entry]:
    """Return the entries of a consumer's stories in all ledgers where it is known.

    Raises
    ------
    ConsumerNotFoundError
        If no ledger knows it, and all of them answer.
    """

    def entries(log: SealedLog) -> Iterator[Entry]:
        return of_consumer(log, consumer, since=since, until=until).entries

    found, missing = _by_time(ledgers, entries, lambda entry: entry.event.recorded_at)
    unknown = [each for each in missing.values() if isinstance(each, ConsumerNotFoundError)]
    if len(unknown) == len(ledgers):
        raise unknown[0]
    down = {name: each for name, each in missing.items() if each not in unknown}
    return found, down


def _by_time(
    ledgers: Ledgers, read: Callable[[SealedLog], Iterator[T]], time: Callable[[T], datetime]
) -> Past[T]:
    def opening(ledger: Ledger[Any, Any]) -> Calls[Iterator[T]]:
        rows: Iterator[T] = yield partial(_begun, read, ledger.storage)
        return rows

    found = run(reading_all(ledgers, together, opening), call)
    missing = {name: each for name, each in found.items() if isinstance(each, Exception)}
    rising = [
        _rising(name, each, time) for name, each in found.items() if not isinstance(each, Exception)
    ]
    ordered = merge(*rising, key=lambda pair: pair[0])
    return (row for _, row in ordered), missing


def _begun(read: Callable[[SealedLog], Iterator[T]], log: SealedLog) -> Iterator[T]:
    """Read the first row, so that a ledger that is down is known before the others are read."""
    rows = read(log)
    for first in rows:
        return chain([first], rows)
    return iter(())


def _rising(
    ledger: str, rows: Iterator[T], time: Callable[[T], datetime]
) -> Iterator[tuple[datetime, InLedger[T]]]:
    """Yield rows in their order with the latest time so far, by which they can be merged."""
    latest = _NEVER
    for row in rows:
        latest = max(latest, time(row))
        yield latest, InLedger(ledger, row)
