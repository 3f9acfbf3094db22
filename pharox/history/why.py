"""Why a consumer got no proxy: its last miss, and what stood in its way at that moment.

The miss and the ban are read from the log, the holders from the pool's past (:mod:`.past`): no
state of the whole ledger is folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pharox.log import Extract
from projections import AVAILABLE_PROXIES, Availability, PoolCounts
from projections.carrying import rows_of

from ..errors import ArchivedError
from ..events import (
    AcquireMissed,
    Event,
    HealthChecked,
    LeaseAcquired,
    PoolStateCarried,
    ProxyChanged,
)
from ..models import LEASABLE, CarriedBan, LimitReached, MissReason, ProxyStatus
from ..models.ids import NIL
from ..storage.moving import BANS
from ..storage.validation import id_from_text
from .audit import Moment
from .finding import find_consumer
from .latest import backwards, newest
from .past import past_of
from .past.keyframes import Keyframes
from .past.shapes import Past, PoolThen, ProxyThen
from .pool_names import pools_then
from .sealed_log import Beginning, SealedLog, beginning, first, last_seq, seq_of

COUNTED = 5_000
"""How many misses are counted at most."""

_ASKED = ("AcquireMissed", "LeaseAcquired")

EXPLAINED = 10
"""Of how many unusable proxies it is looked up who changed them."""


_OF_PROXIES = frozenset(
    {
        MissReason.NONE_HEALTHY,
        MissReason.AT_CAPACITY,
        MissReason.TOO_FEW,
        MissReason.RESTING,
        MissReason.ROTATING,
    }
)
"""The reasons that have to do with proxies which nobody could lease."""

_OF_HOLDERS = frozenset({MissReason.AT_CAPACITY, MissReason.TOO_FEW})
"""The reasons for which a lease of anybody else stood in the way."""


class HeldThen(NamedTuple):
    """A lease that was held, and until when as far as was known then."""

    id: UUID
    proxy_id: UUID
    acquired_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Holder:
    """A consumer who held proxies of the pool, and its leases by acquisition."""

    consumer: str
    leases: tuple[HeldThen, ...]


@dataclass(frozen=True, slots=True)
class Unusable:
    """A proxy that nobody could lease.

    Of the first :data:`EXPLAINED` the rest is known. ``drains`` says that it was to be removed
    after its last lease, ``until`` when its ban was to end. ``change`` is what gave it its status;
    if nobody did, ``check`` is its last check.
    """

    id: UUID
    address: str
    status: str
    drains: bool = False
    until: datetime | None = None
    change: ProxyChanged | CarriedBan | None = None
    check: HealthChecked | None = None


class MissMinute(NamedTuple):
    """How many misses there were for a reason within a minute, which begins at ``minute``."""

    minute: datetime
    reason: MissReason
    misses: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a consumer got nothing.

    ``miss`` is the last one up to the moment asked about, ``in_a_row`` how many came since it last
    got a proxy, the first of them at ``since``. If ``is_cut``, there may be more before that: only
    :data:`COUNTED` are counted, and none that is archived. ``counts`` are the statistics of the
    pool after the miss, None if there was none of the name. ``holders`` come with those of most
    leases first. ``unusable`` are the proxies that nobody could lease, none where the reason has
    nothing to do with them. ``then`` is its next lease, None if it has none yet. ``minutes`` are
    the misses in a row, by minute and reason. ``addresses`` are those of the proxies that were
    held, by their ids.
    """

    miss: AcquireMissed
    in_a_row: int
    since: datetime
    counts: PoolCounts | None
    holders: tuple[Holder, ...]
    unusable: tuple[Unusable, ...]
    then: LeaseAcquired | None
    minutes: tuple[MissMinute, ...] = ()
    addresses: Mapping[UUID, str] = field(default_factory=dict)
    is_cut: bool = False

    def address_of(self, proxy_id: UUID) -> str:
        """Return a held proxy's URL without credentials; its id if it is not known."""
        return self.addresses.get(proxy_id, str(proxy_id))


class Culprit(NamedTuple):
    """What stood in a consumer's way: leases, unusable proxies, or a limit, of which one is set.

    ``limited`` is whose limit ``limit`` is, such as ``consumer 'bbb'``.
    """

    holders: tuple[Holder, ...] = ()
    unusable: tuple[Unusable, ...] = ()
    limit: LimitReached | None = None
    limited: str = ""


def culprit(found: Explanation) -> Culprit | None:
    """Return what stood in the way of a consumer; None if the reason of its miss says it all.

    Who held proxies of the pool is blamed only if a lease less would have helped.
    """
    miss = found.miss
    if miss.limit is not None:
        return Culprit(limit=miss.limit, limited=_limited(miss, miss.limit.per))
    if miss.reason in _OF_HOLDERS and found.holders:
        return Culprit(holders=found.holders)
    if found.unusable:
        return Culprit(unusable=found.unusable)
    return None


def _limited(miss: AcquireMissed, per: str) -> str:
    """Return whose limit it is that is one per consumer, target, proxy, pair or pool."""
    return {
        "consumer": f"consumer {miss.consumer!r}",
        "target": f"target {miss.target!r}",
        "pool": f"pool {miss.pool_name!r}",
        "pair": f"each proxy at target {miss.target!r}",
        "proxy": "each proxy",
    }[per]


def why(
    log: SealedLog,
    consumer: str | UUID,
    *,
    at: Moment | None = None,
) -> Explanation | None:
    """Return why a consumer got no proxy; None if it never missed.

    Parameters
    ----------
    log:
        A storage.
    consumer:
        Its name or id.
    at:
        A time, or a seq: the last miss up to then. Now if None.

    Raises
    ------
    ConsumerNotFoundError
        If there never was such a consumer.
    InvalidInputError
        If the log does not reach to the moment.
    """
    return explain(log, Keyframes(past_of(log)), consumer, at)


def explain(
    log: SealedLog, keyframes: Keyframes, consumer: str | UUID, at: Moment | None
) -> Explanation | None:
    """Do what :func:`why` does, from states of pools that are kept, for whoever asks often."""
    upto = last_seq(log) if at is None else seq_of(log, at)
    begin = beginning(log)
    is_id = id_from_text(consumer) is not None
    name = find_consumer(log, consumer, begin).name if is_id else str(consumer)
    found = _last_misses(log, Extract(upto=upto, consumer=name, types=_ASKED))
    if found is None:
        # Whoever missed was there: only of others it has to be looked up.
        find_consumer(log, consumer, begin)
        return None
    miss = found.last
    pool = _Pool.after(log, begin, keyframes, miss)
    then = first(log, Extract(after=miss.seq, consumer=name, types=("LeaseAcquired",)))
    return Explanation(
        miss=miss,
        in_a_row=found.in_a_row,
        since=found.first.recorded_at,
        counts=None if pool is None else pool.then.counts(miss.pool_id),
        holders=() if pool is None else pool.holders(),
        unusable=() if pool is None else tuple(pool.unusable(miss)),
        then=then if isinstance(then, LeaseAcquired) else None,
        minutes=found.by_minute(),
        addresses={} if pool is None else pool.held_addresses(),
        is_cut=found.is_cut,
    )


@dataclass(slots=True)
class _Misses:
    """Misses without a lease in between. If ``is_cut``, others may have come before."""

    first: AcquireMissed
    last: AcquireMissed
    is_cut: bool
    minutes: Counter[tuple[datetime, MissReason]] = field(default_factory=Counter)

    @property
    def in_a_row(self) -> int:
        """How many there are."""
        return self.minutes.total()

    def take(self, miss: AcquireMissed) -> None:
        """Add the next one."""
        self.last = miss
        self.minutes[miss.recorded_at.replace(second=0, microsecond=0), miss.reason] += 1

    def by_minute(self) -> tuple[MissMinute, ...]:
        """Return their numbers by minute and reason."""
        return tuple(MissMinute(*key, number) for key, number in sorted(self.minutes.items()))


def _last_misses(log: SealedLog, asked: Extract) -> _Misses | None:
    """Return the misses of a consumer since its last lease, the last :data:`COUNTED` of them."""
    last = next(iter(newest(log, asked._replace(types=("AcquireMissed",)), 1)), None)
    if not isinstance(last, AcquireMissed):
        return None
    found: list[AcquireMissed] = []
    is_archived = False
    try:
        for part in backwards(log, asked._replace(upto=last.seq)):
            misses, is_whole = _after_last_lease(part.events)
            found[:0] = misses
            if is_whole or len(found) > COUNTED:
                break
    except ArchivedError:
        is_archived = True
    counted = found[-COUNTED:]
    run = _Misses(counted[0], last, is_archived or len(found) > COUNTED)
    for miss in counted:
        run.take(miss)
    return run


def _after_last_lease(events: Sequence[Event]) -> tuple[list[AcquireMissed], bool]:
    """Return the misses after the last lease among events, and whether there is one."""
    misses: list[AcquireMissed] = []
    for event in reversed(events):
        if not isinstance(event, AcquireMissed):
            return misses[::-1], True
        misses.append(event)
    return misses[::-1], False


_Brought = Mapping[UUID, tuple[int, Availability, CarriedBan | None]]
"""What proxies were that came with their pool from another ledger, the seq of that event, and who
had banned them there."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """The pool of a miss as it was after it."""

    log: SealedLog
    begin: Beginning
    past: Past
    id: UUID
    lease_slow: bool
    then: PoolThen

    @classmethod
    def after(
        cls, log: SealedLog, begin: Beginning, keyframes: Keyframes, miss: AcquireMissed
    ) -> _Pool | None:
        """Return the pool after a miss; None if there was none, or it had just been removed."""
        if miss.pool_id == NIL:
            return None
        row = pools_then(log, begin, miss.seq, miss.pool_id).get(miss.pool_id)
        if row is None:
            return None
        then = keyframes.at(miss.pool_id, miss.seq, last_seq(log))
        return cls(log, begin, keyframes.past, miss.pool_id, row.lease_slow, then)

    def holders(self) -> tuple[Holder, ...]:
        """Return who held what, those of most leases first."""
        details = self.past.details(self.id, list(self.then.leases), self.then.seq)
        held: dict[str, list[HeldThen]] = {}
        order = sorted(self.then.leases.items(), key=lambda each: (each[1].acquired_at, each[0]))
        for lease_id, lease in order:
            until = details[lease_id].expires_at if lease_id in details else lease.acquired_at
            one = HeldThen(lease_id, lease.proxy_id, lease.acquired_at, until)
            held.setdefault(lease.consumer, []).append(one)
        most_first = sorted(held.items(), key=lambda each: -len(each[1]))
        return tuple(Holder(consumer, tuple(leases)) for consumer, leases in most_first)

    def held_addresses(self) -> Mapping[UUID, str]:
        """Return the addresses of the proxies that were held."""
        ids = {lease.proxy_id for lease in self.then.leases.values()}
        return self.past.addresses(self.id, sorted(ids), self.then.seq)

    def unusable(self, miss: AcquireMissed) -> Iterator[Unusable]:
        """Yield the proxies that nobody could lease, and what changed the first few of them."""
        if miss.reason not in _OF_PROXIES:
            return
        usable = {status.value for status in LEASABLE[: 1 + self.lease_slow]}
        found = [
            (proxy_id, proxy)
            for proxy_id, proxy in self.then.proxies.items()
            if proxy.status not in usable
        ]
        found.sort()
        addresses = self.past.addresses(self.id, [each[0] for each in found], self.then.seq)
        brought = self._brought() if found else {}
        for number, (proxy_id, proxy) in enumerate(found):
            address = addresses.get(proxy_id, str(proxy_id))
            known = self._explained(proxy_id, proxy, brought) if number < EXPLAINED else ()
            yield Unusable(proxy_id, address, proxy.status, *known)

    def _explained(
        self, proxy_id: UUID, proxy: ProxyThen, brought: _Brought
    ) -> tuple[bool, datetime | None, ProxyChanged | CarriedBan | None, HealthChecked | None]:
        """Return the rest of what is known of an unusable proxy."""
        stored = self.begin.rows("available_proxies").get((proxy_id, self.id))
        arrival, arrived, ban = brought.get(proxy_id, (0, None, None))
        drains, until = (stored.drains, stored.banned_until) if stored else (False, None)
        change: ProxyChanged | CarriedBan | None = None
        of_proxy = Extract(self.begin.seq, self.then.seq, pool_id=self.id, proxy_id=proxy_id)
        described = of_proxy._replace(types=("ProxyRegistered", "ProxyChanged"))
        for event in self.log.history(described):
            if isinstance(event, ProxyChanged):
                drains, until = event.drains, event.until
                if event.before.status != event.after.status:
                    change = event
            elif arrived is not None and event.seq < arrival:
                drains, until, change = arrived.drains, arrived.banned_until, ban
            else:
                drains, until, change = False, None, None
        status = change.after.status if isinstance(change, ProxyChanged) else ProxyStatus.BANNED
        if change is not None and status.value == proxy.status:
            return bool(drains), until, change, None
        return bool(drains), until, None, self._last_check(of_proxy)

    def _brought(self) -> _Brought:
        """Return what the proxies were that came with the pool from another ledger."""
        of_pool = Extract(self.begin.seq, self.then.seq, pool_id=self.id)
        states: dict[UUID, tuple[int, Availability]] = {}
        bans: dict[UUID, CarriedBan] = {}
        for event in self.log.history(of_pool._replace(types=("PoolStateCarried",))):
            if not isinstance(event, PoolStateCarried) or not event.arrived:
                continue
            if event.read_model == AVAILABLE_PROXIES.name:
                for row in rows_of(AVAILABLE_PROXIES, event.rows):
                    if isinstance(row, Availability):
                        states[row.proxy_id] = event.seq, row
                        bans.pop(row.proxy_id, None)  # of an earlier arrival
            elif event.read_model == BANS:
                for ban in map(CarriedBan.model_validate, event.rows):
                    bans[ban.proxy_id] = ban
        return {each: (*state, bans.get(each)) for each, state in states.items()}

    def _last_check(self, of_proxy: Extract) -> HealthChecked | None:
        checks = of_proxy._replace(types=("HealthChecked",))
        found = newest(self.log, checks, 1, lambda check: getattr(check, "applied", False))
        return found[0] if found and isinstance(found[0], HealthChecked) else None
