"""Replay a pool: its state at a moment, the steps between two moments, and their difference.

A moment is a seq or a time. The state at the first moment is queried, later events
are folded one by one. Only the current state of the pool is kept in memory, however
long the time in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pharox.log import Extract
from projections import (
    AVAILABLE_PROXIES,
    LEASES,
    POOL_STATS,
    POOLS,
    PROXIES,
    PROXY_HEALTH,
    SELECTOR_CURSORS,
    SOURCES,
    TARGET_OUTCOMES,
    Availability,
    CursorRow,
    HealthRow,
    LeaseRow,
    PoolCounts,
    PoolRow,
    Projection,
    ProxyRow,
    SourceRow,
    State,
    TargetOutcomesRow,
)

from ..errors import InvalidInputError, PoolNotFoundError
from ..events import Event
from ..storage.validation import id_from_text
from .addresses import address_of
from .pool_names import find_pool
from .sealed_log import SealedLog, event_at, seq_of

_PARTS: tuple[Projection, ...] = (
    POOLS,
    PROXIES,
    AVAILABLE_PROXIES,
    LEASES,
    POOL_STATS,
    SELECTOR_CURSORS,
    PROXY_HEALTH,
    TARGET_OUTCOMES,
    SOURCES,
)
_CHECKED = ("status", "latency_ms", "protocol", "attempts", "status_code", "checked_at", "error")
_OF_A_PAIR = ("pool_id", "proxy_id", "target")
_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class ProxyMoment:
    """One proxy at a moment: its description, availability, holders and newest check.

    ``cooling`` are the targets that it rested for, by name.
    """

    proxy: ProxyRow
    availability: Availability
    holders: tuple[LeaseRow, ...] = ()
    health: HealthRow | None = None
    cooling: tuple[TargetOutcomesRow, ...] = ()

    @property
    def address(self) -> str:
        """Its URL without credentials."""
        return address_of(self.proxy)

    def attributes(self) -> dict[str, Any]:
        """Return all attributes that can change, except its holders, by name.

        Those of a target that it rested for begin with the target.
        """
        checked = {} if self.health is None else asdict(self.health)
        rests = {
            f"{pair.target} {name}": value
            for pair in self.cooling
            for name, value in asdict(pair).items()
            if name not in _OF_A_PAIR
        }
        return {
            **asdict(self.proxy),
            **asdict(self.availability),
            **{f"check_{name}": checked.get(name) for name in _CHECKED},
            **rests,
        }


@dataclass(frozen=True, slots=True)
class PoolMoment:
    """A pool after the event ``seq``, which was recorded at ``recorded_at``.

    Proxies are ordered by id, the holders of each by acquisition, and ``sources`` by name.
    """

    seq: int
    recorded_at: datetime
    pool: PoolRow
    counts: PoolCounts
    cursors: tuple[CursorRow, ...]
    proxies: tuple[ProxyMoment, ...]
    sources: tuple[SourceRow, ...] = ()

    @property
    def leases(self) -> dict[UUID, LeaseRow]:
        """The leases that were active, by id."""
        return {lease.id: lease for proxy in self.proxies for lease in proxy.holders}


@dataclass(frozen=True, slots=True)
class Step:
    """An event of a pool, with the pool's name, the proxy's address and the statistics after it.

    ``counts`` is None after the pool was removed.
    """

    event: Event
    pool: str
    counts: PoolCounts | None
    address: str | None = None


Change = tuple[Any, Any]
"""A value before and after."""


@dataclass(frozen=True, slots=True)
class ProxyChange:
    """A changed proxy: the attributes that changed, by name."""

    id: UUID
    address: str
    attributes: dict[str, Change]


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed between two moments, without what began and ended in between."""

    pool: dict[str, Change]
    statistics: dict[str, Change]
    cursors: dict[str, Change]
    added: tuple[ProxyMoment, ...]
    removed: tuple[ProxyMoment, ...]
    changed: tuple[ProxyChange, ...]
    begun: tuple[LeaseRow, ...]
    ended: tuple[LeaseRow, ...]
    renewed: tuple[LeaseRow, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__dataclass_fields__)


class Replay:
    """One pool that moves forward along its events.

    Create one with :meth:`at`. ``seq`` is its current place in the log.
    """

    def __init__(self, log: SealedLog, pool_id: UUID, seq: int, states: dict[str, State]) -> None:
        self._log = log
        self.pool_id = pool_id
        self.seq = seq
        self._states = {part.name: _of_pool(part, states[part.name], pool_id) for part in _PARTS}

    @classmethod
    def at(cls, log: SealedLog, pool: str | UUID, at: int | datetime) -> Replay:
        """Return a replay of a pool at a moment, which may be before the pool's registration.

        Parameters
        ----------
        log:
            A storage.
        pool:
            An id, or a name: the pool that had it at the moment, else the last that had it.
        at:
            A seq, or a moment.

        Raises
        ------
        PoolNotFoundError
            If there never was such a pool.
        InvalidInputError
            If the log does not reach to the moment.
        """
        seq = seq_of(log, at)
        states = log.state_at(seq)
        uuid = id_from_text(pool)
        current: list[PoolRow] = list(states[POOLS.name].values())
        here = [row.id for row in current if row.id == uuid]
        here += [row.id for row in current if row.name == pool]
        return cls(log, here[0] if here else find_pool(log, pool).pool.id, seq, states)

    def forward(self, to: int | datetime) -> Iterator[Step]:
        """Yield each change of the pool up to a moment, and move there.

        Raises
        ------
        InvalidInputError
            If the moment is before the current one, or the log does not reach it.
        """
        upto = seq_of(self._log, to)
        if upto < self.seq:
            raise InvalidInputError(
                f"the end, event {upto}, is before the beginning, event {self.seq}"
            )
        return self._steps(upto)

    def moment(self) -> PoolMoment:
        """Return the pool's current state.

        Raises
        ------
        PoolNotFoundError
            If there was no such pool then.
        """
        event = event_at(self._log, self.seq)
        pool = self._states[POOLS.name].get((self.pool_id,))
        if event is None or pool is None:
            raise self._absent()
        holders: dict[UUID, list[LeaseRow]] = {}
        for lease in self._states[LEASES.name].values():
            holders.setdefault(lease.proxy_id, []).append(replace(lease))
        cooling: dict[UUID, list[TargetOutcomesRow]] = {}
        for pair in self._states[TARGET_OUTCOMES.name].values():
            if pair.cools_until is not None and pair.cools_until > event.recorded_at:
                cooling.setdefault(pair.proxy_id, []).append(replace(pair))
        return PoolMoment(
            self.seq,
            event.recorded_at,
            replace(pool),
            replace(self._states[POOL_STATS.name][(self.pool_id,)]),
            tuple(replace(row) for _, row in sorted(self._states[SELECTOR_CURSORS.name].items())),
            tuple(
                self._proxy(
                    key,
                    sorted(holders.get(key[0], ()), key=lambda row: row.fencing_token),
                    sorted(cooling.get(key[0], ()), key=lambda row: row.target),
                )
                for key in sorted(self._states[PROXIES.name])
            ),
            tuple(sorted(self._states[SOURCES.name].values(), key=lambda row: row.name)),
        )

    def _steps(self, upto: int) -> Iterator[Step]:
        # In pages, so that no transaction stays open while the caller looks at a step.
        for after in range(self.seq, upto, _PAGE):
            page = Extract(after, min(after + _PAGE, upto), pool_id=self.pool_id)
            for event in list(self._log.history(page)):
                yield self._step(event)
        self.seq = upto

    def _step(self, event: Event) -> Step:
        was = self._name(), self._address(event)
        for one in event.parts():
            for part in _PARTS:
                part.apply(self._states[part.name], one)
        self._forget_ended(event)
        self.seq = event.seq
        counts = self._states[POOL_STATS.name].get((self.pool_id,))
        return Step(
            event,
            self._name() or was[0] or str(self.pool_id),
            counts and replace(counts),
            self._address(event) or was[1],
        )

    def _forget_ended(self, event: Event) -> None:
        key = event.lease_id, event.pool_id
        lease = self._states[LEASES.name].get(key)
        if lease is not None and not LEASES.is_current(lease):
            del self._states[LEASES.name][key]

    def _name(self) -> str | None:
        row = self._states[POOLS.name].get((self.pool_id,))
        return row and row.name

    def _address(self, event: Event) -> str | None:
        row = self._states[PROXIES.name].get((event.proxy_id, event.pool_id))
        return row and address_of(row)

    def _proxy(
        self,
        key: tuple[UUID, UUID],
        holders: list[LeaseRow],
        cooling: list[TargetOutcomesRow],
    ) -> ProxyMoment:
        health = self._states[PROXY_HEALTH.name].get(key)
        return ProxyMoment(
            replace(self._states[PROXIES.name][key]),
            replace(self._states[AVAILABLE_PROXIES.name][key]),
            tuple(holders),
            health and replace(health),
            tuple(cooling),
        )

    def _absent(self) -> PoolNotFoundError:
        life = find_pool(self._log, self.pool_id).pool
        later = life.registered is not None and self.seq < life.registered.seq
        mark = life.registered if later else life.removed
        explanation = "it was registered later" if later else "it had been removed"
        where = "" if mark is None else f", by event {mark.seq} at {mark.recorded_at}"
        return PoolNotFoundError(
            f"there was no pool {life.name!r} ({life.id}) at event {self.seq}: "
            f"{explanation}{where}",
            pool_id=life.id,
            seq=self.seq,
        )


def pool_at(log: SealedLog, pool: str | UUID, at: int | datetime) -> PoolMoment:
    """Return a pool as it was at a moment.

    Parameters
    ----------
    log:
        A storage.
    pool:
        An id, or the name that the pool had at the moment.
    at:
        A seq, or a moment.

    Raises
    ------
    PoolNotFoundError
        If there was no such pool then.
    InvalidInputError
        If the log does not reach to the moment.
    """
    return Replay.at(log, pool, at).moment()


def changes(
    log: SealedLog, pool: str | UUID, start: int | datetime, end: int | datetime
) -> Iterator[Step]:
    """Yield the steps of a pool after one moment, up to another, in order.

    The pool may be registered in between; otherwise as :func:`pool_at`.
    """
    return Replay.at(log, pool, start).forward(end)


def difference(a: PoolMoment, b: PoolMoment) -> Difference:
    """Return what changed from ``a`` to ``b``."""
    were = {proxy.proxy.id: proxy for proxy in a.proxies}
    are = {proxy.proxy.id: proxy for proxy in b.proxies}
    held, holds = a.leases, b.leases
    altered = (
        ProxyChange(proxy_id, are[proxy_id].address, attributes)
        for proxy_id in are
        if proxy_id in were
        and (attributes := _changes(were[proxy_id].attributes(), are[proxy_id].attributes()))
    )
    return Difference(
        _changes(asdict(a.pool), asdict(b.pool)),
        _changes(asdict(a.counts), asdict(b.counts)),
        _changes(
            {cursor.selector: cursor.proxy_id for cursor in a.cursors},
            {cursor.selector: cursor.proxy_id for cursor in b.cursors},
        ),
        tuple(proxy for proxy_id, proxy in are.items() if proxy_id not in were),
        tuple(proxy for proxy_id, proxy in were.items() if proxy_id not in are),
        tuple(altered),
        tuple(lease for lease_id, lease in holds.items() if lease_id not in held),
        tuple(lease for lease_id, lease in held.items() if lease_id not in holds),
        tuple(lease for lease_id, lease in holds.items() if held.get(lease_id, lease) != lease),
    )


def _of_pool(part: Projection, state: State, pool_id: UUID) -> State:
    if part is SOURCES:
        return {key: row for key, row in state.items() if row.pool_id == pool_id}
    place = part.key.index("id" if part is POOLS else "pool_id")
    return {key: row for key, row in state.items() if key[place] == pool_id}


def _changes(was: dict[str, Any], becomes: dict[str, Any]) -> dict[str, Change]:
    return {
        name: (was.get(name), becomes.get(name))
        for name in {**was, **becomes}
        if was.get(name) != becomes.get(name)
    }
