"""Tell misses that follow each other as one: a shortage is one thing that happened, not seventy.

A run ends with any other event of the story: what is told in between can be what changed the
answer. It also ends with a miss in another pool, or for another reason. Who asked, and for what,
may differ within it, unless the reason is a limit or a session of theirs: workers that wait for
the same proxies take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..events import AcquireMissed
from .audit import Entry


@dataclass(slots=True)
class MissRun:
    """Misses in one pool for one reason, without another event in between.

    ``first`` and ``last`` are its ends, which are the same entry if it is a single miss.
    ``consumers`` has the number of misses of each consumer. ``has_one_origin`` says whether all
    were recorded by one actor as part of one job.
    """

    first: Entry
    last: Entry
    count: int = 0
    consumers: Counter[str] = field(default_factory=Counter)
    has_one_origin: bool = True

    def take(self, entry: Entry, miss: AcquireMissed) -> None:
        """Add the next miss."""
        self.last = entry
        self.count += 1
        self.consumers[miss.consumer] += 1
        self.has_one_origin &= _origin(entry) == _origin(self.first)


def with_runs(entries: Iterable[Entry]) -> Iterator[Entry | MissRun]:
    """Yield the entries of a story, with runs of at least two misses as one.

    A run is yielded when it has ended.
    """
    run: MissRun | None = None
    for entry in entries:
        miss = entry.event if isinstance(entry.event, AcquireMissed) else None
        if run is not None and (miss is None or _kind(entry) != _kind(run.first)):
            yield _single(run)
            run = None
        if miss is None:
            yield entry
            continue
        if run is None:
            run = MissRun(entry, entry)
        run.take(entry, miss)
    if run is not None:
        yield _single(run)


def _origin(entry: Entry) -> tuple[str | None, str | None]:
    return entry.event.actor, entry.event.correlation_id


def _single(run: MissRun) -> Entry | MissRun:
    return run.first if run.count == 1 else run


def _kind(entry: Entry) -> tuple[object, ...]:
    """Return what the misses of a run have in common."""
    miss = entry.event
    if not isinstance(miss, AcquireMissed):
        return ()
    limit = miss.limit and (miss.limit.name, miss.limit.per, miss.consumer)
    elsewhere = tuple((other.pool_name, other.reason) for other in miss.fallback)
    return (miss.pool_id, entry.pool, miss.reason, limit, miss.session, elsewhere)
