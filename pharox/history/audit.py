"""Audit a lease, a proxy, a consumer or a pool: read its story from the log.

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
from projections import CONSUMERS, ConsumerRow, PoolCounts

from ..errors import ConsumerNotFoundError, InvalidInputError, PharoxError, ProxyNotFoundError
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
    held,
    named_pool,
)
from ..models import OutcomeKind, check_aware, utc_now
from ..models.ids import NIL
from ..models.text import without_secrets
from ..storage.validation import id_from_text
from .addresses import Addresses, proxies_at
from .past_counts import PastCounts
from .pool_names import PoolLife, find_pool, pool_names
from .sealed_log import Beginning, SealedLog, beginning, seq_of

Moment = int | datetime
"""A seq of the log, or a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a story.

    ``pool`` is the pool's name and ``address`` the proxy's, as they were then.
    ``held_s`` is how many seconds the ended lease was held, and ``pool_had`` the
    pool's statistics at a miss.
    """

    event: Event
    pool: str | None = None
    address: str | None = None
    held_s: float | None = None
    pool_had: PoolCounts | None = None


@dataclass(frozen=True, slots=True)
class Story:
    """The story of one object.

    ``kind`` is "lease", "proxy", "consumer" or "pool", ``name`` its readable name,
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
    back. ``refused`` has the refusals by target.
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
    window = _window(log, since, until)
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
    window = _window(log, since, until)
    begin = beginning(log)
    uuid = id_from_text(proxy) or _at_address(log, begin, str(proxy))
    address = None if uuid is None else Addresses(log, begin).last(uuid)
    if uuid is None or address is None:
        shown = without_secrets(str(proxy))
        raise ProxyNotFoundError(f"there never was a proxy {shown!r}", proxy_id=shown)
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
    window = _window(log, since, until)
    begin = beginning(log)
    known = _consumer(log, consumer, begin)
    if known is None:
        raise ConsumerNotFoundError(
            f"there never was a consumer {str(consumer)!r}", consumer=consumer
        )
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
    window = _window(log, since, until)
    found = find_pool(log, pool)
    events = log.history(window._replace(pool_id=found.pool.id))
    entries = _entries(log, events, beginning(log), PastCounts(log, found.pool.id))
    return Story("pool", found.pool.id, found.pool.name, entries, found.namesakes)


def _window(log: SealedLog, since: Moment | None, until: Moment | None) -> Extract:
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


def _at_address(log: SealedLog, begin: Beginning, address: str) -> UUID | None:
    """Return the proxy that had an address, or None."""
    found = proxies_at(log, begin, address)
    if len(found) > 1:
        names = pool_names(log, begin)
        which = ", ".join(f"{proxy_id} of pool {names[found[proxy_id]]!r}" for proxy_id in found)
        raise PharoxError(
            f"{len(found)} proxies had this address; ask for one by its id: {which}",
            proxy_ids=tuple(found),
        )
    return next(iter(found), None)


def _consumer(log: SealedLog, consumer: str | UUID, begin: Beginning) -> ConsumerRow | None:
    registered = Extract(begin.seq, types=("ConsumerRegistered",))
    state = dict(begin.rows("consumers"))
    for event in log.history(registered._replace(consumer=str(consumer))):
        CONSUMERS.apply(state, event)
    named: ConsumerRow | None = state.get((str(consumer),))
    if named is not None:
        return named
    if (uuid := id_from_text(consumer)) is None:
        return None
    for event in log.history(registered):
        CONSUMERS.apply(state, event)
    return next((row for row in state.values() if row.id == uuid), None)


def _entries(
    log: SealedLog,
    events: Iterator[Event],
    begin: Beginning,
    counts: PastCounts | None = None,
) -> Iterator[Entry]:
    addresses, names = Addresses(log, begin), _Names(log, begin)
    for event in events:
        held_s = pool_had = None
        match event:
            case LeaseReleased() | LeaseExpired() | LeaseRevoked():
                held_s = held(event).total_seconds()
            case AcquireMissed() if counts is not None and event.pool_id != NIL:
                pool_had = counts.of(event.pool_id, event.seq)
        yield Entry(event, names.of(event), addresses.of(event), held_s, pool_had)


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
