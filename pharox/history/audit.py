"""Audit a lease, a proxy, a consumer, a pool or a source: read its story from the log.

A story has the events in the sealed order. Each comes with data that the event
lacks: the pool's name, the proxy's address, how long a lease was held, and the
pool's statistics at a miss. Entries are read lazily, so a story may be larger
than memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import merge
from operator import attrgetter
from uuid import UUID

from pharox.log import Extract
from pharox.log.extract import BIGGEST
from projections import PoolCounts

from ..errors import InvalidInputError, PharoxError
from ..events import (
    AcquireMissed,
    Event,
    LeaseAcquired,
    LeaseEnd,
    LeaseExpired,
    LeaseReleased,
    LeaseRenewed,
    LeaseRevoked,
    OutcomeReported,
    ProxyDescribed,
    SourceFailed,
    SourceRefreshed,
    SourceSaved,
    fallback_of,
    held,
    named_pool,
)
from ..models import OutcomeKind, check_aware, utc_now
from ..models.ids import NIL
from ..storage.sources import REFRESH_JOB
from ..storage.validation import id_from_text
from .addresses import Addresses
from .finding import find_consumer, find_proxy
from .past_counts import Holding, PastCounts
from .pool_names import PoolLife, find_pool, pool_names
from .sealed_log import Beginning, SealedLog, beginning, seq_of

_SOURCE_TYPES = ("SourceSaved", "SourceRemoved", "SourceRefreshed", "SourceFailed")

Moment = int | datetime
"""A seq of the log, or a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a story.

    ``pool`` is the pool's name and ``address`` the proxy's, as they were then.
    ``held_s`` is how many seconds the ended lease was held, and ``pool_had`` the
    pool's statistics at a miss. ``fallback_had`` are those of the pools of ``fallback_from``, or
    ``fallback``, of the event. ``holders`` held leases of the pool at a miss, those of most first.
    ``known`` is the description of a changed proxy before, if the story has that.
    """

    event: Event
    pool: str | None = None
    address: str | None = None
    held_s: float | None = None
    pool_had: PoolCounts | None = None
    fallback_had: tuple[PoolCounts | None, ...] = ()
    holders: tuple[Holding, ...] = ()
    known: ProxyDescribed | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """The story of one object.

    ``kind`` is "lease", "proxy", "consumer", "pool" or "source", ``name`` its readable name,
    ``id`` its id. ``namesakes`` are earlier pools of the same name, whose events
    are not included. ``entries`` can be iterated once.
    """

    kind: str
    id: UUID
    name: str
    entries: Iterator[Entry]
    namesakes: Sequence[PoolLife] = ()


@dataclass(slots=True)
class Refusals:
    """How often a target refused proxies in a story, and since when."""

    since: datetime
    count: int = 0


@dataclass(slots=True)
class Totals:
    """Totals over entries; ``held_s`` is the sum over the leases that ended.

    ``renewed`` counts the renewals that holders asked for, ``redated`` those of a clock that went
    back. ``refused`` has the refusals by target. Of sources, ``came`` and ``went`` sum up the
    proxies, and ``failed`` counts the failures that were recorded.
    """

    acquired: int = 0
    released: int = 0
    expired: int = 0
    held_s: float = 0
    missed: Counter[str] = field(default_factory=Counter)
    renewed: int = 0
    revoked: int = 0
    redated: int = 0
    refused: dict[str, Refusals] = field(default_factory=dict)
    came: int = 0
    went: int = 0
    failed: int = 0

    def add(self, entry: Entry) -> None:
        """Count one entry."""
        match entry.event:
            case LeaseAcquired():
                self.acquired += 1
            case LeaseRenewed(is_redated=is_redated):
                self.redated += is_redated
                self.renewed += not is_redated
            case LeaseReleased():
                self.released += 1
            case LeaseExpired():
                self.expired += 1
            case LeaseRevoked():
                self.revoked += 1
            case AcquireMissed(reason=reason):
                self.missed[reason.value] += 1
            case SourceRefreshed(counts=counts):
                self.came += counts.added + counts.returned
                self.went += counts.removed + counts.draining
            case SourceFailed():
                self.failed += 1
            case OutcomeReported(outcome=OutcomeKind.BLOCKED, target=str(target)) as event:
                known = self.refused.setdefault(target, Refusals(event.recorded_at))
                known.count += event.count
        self.held_s += entry.held_s or 0


def of_lease(
    log: SealedLog,
    lease_id: str | UUID,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Story:
    """Return the story of a lease, including events of its proxy while it was held.

    Parameters
    ----------
    log:
        A storage.
    lease_id:
        Its id, also as text.
    since, until:
        Include only events recorded from ``since`` on and before ``until``. Either
        may be a seq instead: that of the first or the last event.

    Raises
    ------
    PharoxError
        If there never was such a lease.
    InvalidInputError
        If the log does not reach to the beginning, or to a seq.
    """
    window = extract_between(log, since, until)
    uuid = id_from_text(lease_id)
    known = [] if uuid is None else list(log.history(Extract(lease_id=uuid)))
    acquired = next((event for event in known if isinstance(event, LeaseAcquired)), None)
    if uuid is None or acquired is None:
        raise PharoxError(f"there never was a lease {str(lease_id)!r}", lease_id=lease_id)
    ended = next((e for e in known if isinstance(e, LeaseEnd)), None)
    meanwhile = Extract(
        after=acquired.seq,
        upto=BIGGEST if ended is None else ended.seq,
        types=("HealthChecked", "ProxyChanged"),
        proxy_id=acquired.proxy_id,
    )
    events = merge(known, log.history(meanwhile), key=attrgetter("seq"))
    return Story(
        "lease", uuid, str(uuid), _entries(log, filter(window.holds, events), beginning(log))
    )


def of_proxy(
    log: SealedLog,
    proxy: str | UUID,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Story:
    """Return the story of a proxy: registrations, changes, holders one after another, health.

    ``proxy`` is its id, or an address (a URL or ``host:port``) that no other proxy had.

    Raises
    ------
    ProxyNotFoundError
        If there never was such a proxy. Parameters are those of :func:`of_lease`.
    PharoxError
        If several proxies had the address.
    """
    window = extract_between(log, since, until)
    begin = beginning(log)
    uuid, address = find_proxy(log, proxy, begin)
    events = log.history(window._replace(proxy_id=uuid))
    return Story("proxy", uuid, address, _entries(log, events, begin))


def of_consumer(
    log: SealedLog,
    consumer: str | UUID,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Story:
    """Return the story of a consumer, by name or id: its leases, releases and misses.

    Raises
    ------
    ConsumerNotFoundError
        If there never was such a consumer. Parameters are those of :func:`of_lease`.
    """
    window = extract_between(log, since, until)
    begin = beginning(log)
    known = find_consumer(log, consumer, begin)
    events = log.history(window._replace(consumer=known.name))
    entries = _entries(log, events, begin, PastCounts(log))
    return Story("consumer", known.id, known.name, entries)


def of_pool(
    log: SealedLog,
    pool: str | UUID,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Story:
    """Return the story of a pool, by id or name: all of its events.

    If several pools have had the name, it is the story of the last one; the others
    are its ``namesakes``.

    Raises
    ------
    PoolNotFoundError
        If there never was such a pool. Parameters are those of :func:`of_lease`.
    """
    window = extract_between(log, since, until)
    found = find_pool(log, pool)
    events = log.history(window._replace(pool_id=found.pool.id))
    entries = _entries(log, events, beginning(log), PastCounts(log, found.pool.id))
    return Story("pool", found.pool.id, found.pool.name, entries, found.namesakes)


def of_source(
    log: SealedLog,
    source: str,
    *,
    since: Moment | None = None,
    until: Moment | None = None,
) -> Story:
    """Return the story of a source, by name: its settings, refreshes and failures.

    It includes the events of the proxies that its refreshes brought, changed and removed. Sources
    of one name after another are one story.

    Raises
    ------
    PharoxError
        If there never was such a source. Parameters are those of :func:`of_lease`.
    """
    window = extract_between(log, since, until)
    begin = beginning(log)
    known: dict[UUID, UUID] = {
        row.id: row.pool_id for row in begin.rows("sources").values() if row.name == source
    }
    for event in log.history(Extract(begin.seq, types=("SourceSaved",))):
        if isinstance(event, SourceSaved) and event.source == source:
            known[event.source_id] = event.pool_id
    if not known:
        raise PharoxError(f"there never was a source {source!r}", source=source)
    types = (*_SOURCE_TYPES, "ProxyRegistered", "ProxyChanged", "ProxyRemoved")
    pools = [
        log.history(window._replace(pool_id=pool_id, types=types))
        for pool_id in dict.fromkeys(known.values())
    ]
    job = f"{REFRESH_JOB}{source} "
    events = (
        event
        for event in merge(*pools, key=attrgetter("seq"))
        if getattr(event, "source_id", None) in known
        or (event.correlation_id or "").startswith(job)
    )
    return Story("source", list(known)[-1], source, _entries(log, events, begin))


def extract_between(log: SealedLog, since: Moment | None, until: Moment | None) -> Extract:
    """Return the events from one moment on and before another; a seq is the last one itself.

    Raises
    ------
    InvalidInputError
        If the log does not reach to a moment, or the end is before the beginning.
    """
    window = Extract()
    match since:
        case int():
            window = window._replace(after=seq_of(log, since) - 1)
        case datetime():
            if check_aware(since) > utc_now():
                seq_of(log, since)
            window = window._replace(since=since)
    match until:
        case int():
            window = window._replace(upto=seq_of(log, until))
        case datetime():
            window = window._replace(until=check_aware(until))
    if window.upto <= window.after or _is_before(window.until, window.since):
        raise InvalidInputError(f"the end, {until}, is before the beginning, {since}")
    return window


def _is_before(a: datetime | None, b: datetime | None) -> bool:
    return a is not None and b is not None and a < b


def _entries(
    log: SealedLog,
    events: Iterator[Event],
    begin: Beginning,
    counts: PastCounts | None = None,
) -> Iterator[Entry]:
    addresses, names, of_others = Addresses(log, begin), _Names(log, begin), PastCounts(log)
    described: dict[UUID | None, ProxyDescribed] = {}
    for event in events:
        held_s = pool_had = None
        holders: tuple[Holding, ...] = ()
        match event:
            case LeaseReleased() | LeaseExpired() | LeaseRevoked():
                held_s = held(event).total_seconds()
            case AcquireMissed() if counts is not None and event.pool_id != NIL:
                pool_had = counts.of(event.pool_id, event.seq)
                holders = counts.holders_of(event.pool_id)
        fallback_had = tuple(of_others.of(each.pool_id, event.seq) for each in fallback_of(event))
        pool, address = names.of(event), addresses.of(event)
        known = described.get(event.proxy_id)
        if isinstance(event, ProxyDescribed):
            described[event.proxy_id] = event
        yield Entry(event, pool, address, held_s, pool_had, fallback_had, holders, known)


class _Names:
    """Names of pools at each event: from the story's events, else the last name."""

    def __init__(self, log: SealedLog, begin: Beginning) -> None:
        self._log, self._begin = log, begin
        self._names: dict[UUID, str] = {}
        self._last: dict[UUID, str] | None = None

    def of(self, event: Event) -> str | None:
        """Return the name of an event's pool; None for an event without a pool."""
        name = named_pool(event)
        if event.pool_id == NIL:
            return name
        if name is not None:
            self._names[event.pool_id] = name
        elif event.pool_id not in self._names:
            if self._last is None:
                self._last = pool_names(self._log, self._begin)
            self._names[event.pool_id] = self._last.get(event.pool_id, str(event.pool_id))
        return self._names[event.pool_id]
