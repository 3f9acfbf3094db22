"""The lines of a pool's page: its leases and its proxies, a page each, now and in the past."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from projections import TargetOutcomesRow

from ..history.addresses import address_of
from ..history.past.shapes import LeaseDetails, PoolThen, Records
from ..models import (
    HealthCheckResult,
    HeldLease,
    Lease,
    Proxy,
    ProxyPool,
    StickySession,
    TargetOutcomes,
    utc_now,
)
from ..models.ids import NIL
from ..models.targets import success_share_of
from .figures import Figures
from .figures.plain import share_of
from .shares import Share, share_then

LEASES = 50
PROXIES = 25
PAIRS = 4
SESSIONS = 10
MOST_PAIRS = 500
"""How many pairs of proxies and targets are read for a page of proxies at once."""


class LeaseLine(NamedTuple):
    """An active lease. ``remaining_s`` is negative if it had run out and was not taken back."""

    id: UUID
    proxy_id: UUID
    address: str
    consumer: str
    acquired_at: datetime
    remaining_s: float | None
    renewals: int
    target: str | None


class Pair(NamedTuple):
    """What a proxy came to at a target. ``rests_s`` is how long it still rests for it."""

    target: str
    success: float | None
    rests_s: float | None


class Check(NamedTuple):
    """The last check of a proxy. ``latency_ms`` is None if it failed, ``error`` if it did not."""

    checked_at: datetime
    latency_ms: int | None
    error: str | None


class ProxyLine(NamedTuple):
    """A proxy. ``most`` is how many leases it can have, None if any number."""

    id: UUID
    address: str
    share: Share
    leases: int
    most: int | None
    holders: Sequence[str] = ()
    rests_s: float | None = None
    checked_at: datetime | None = None
    latency_ms: int | None = None
    error: str | None = None
    pairs: Sequence[Pair] = ()
    more_pairs: int = 0


class SessionLine(NamedTuple):
    """A living binding of a key to a proxy. ``remaining_s`` is how long it lives on."""

    key: str
    proxy_id: UUID
    address: str
    target: str | None
    remaining_s: float


class LinesThen(NamedTuple):
    """The lines of a pool at a moment of the past.

    ``resting`` are the proxies of the pool that rested. ``looked_from`` is the seq of the first
    event that was looked at for rests, outcomes and sessions, None if all were.
    """

    leases: Sequence[LeaseLine]
    proxies: Sequence[ProxyLine]
    sessions: Sequence[SessionLine]
    resting: Container[UUID]
    looked_from: int | None


class PoolLines:
    """Reads the lines of pools from a storage."""

    def __init__(self, storage: Any, figures: Figures) -> None:
        self._storage, self._figures = storage, figures

    def leases(self, pool: ProxyPool, after: tuple[UUID, UUID], seq: int) -> list[LeaseLine]:
        """Return the next active leases of a pool now; ``seq`` is the end of the log."""
        proxy_id, lease_id = after
        held: list[HeldLease] = self._storage.list_held_leases(
            pool.name, after=_after(pool.id, proxy_id, lease_id), limit=LEASES
        )
        details = self._figures.past.details(pool.id, [each.id for each in held], seq)
        return [
            LeaseLine(
                each.id,
                each.proxy_id,
                each.address,
                each.consumer_name or "",
                each.acquired_at,
                each.remaining_seconds,
                details[each.id].renewals if each.id in details else 0,
                each.target,
            )
            for each in held
        ]

    def proxies(self, pool: ProxyPool, after: UUID, now: datetime) -> list[ProxyLine]:
        """Return the next proxies of a pool now, by their ids."""
        proxies = self._figures.proxies(pool.id, after, PROXIES)
        checks = last_checks(self._storage, [proxy.id for proxy in proxies])
        pairs = self._pairs(pool, proxies) if proxies else {}
        return [
            self._proxy(proxy, checks.get(proxy.id), pairs.get(proxy.id, []), now)
            for proxy in proxies
        ]

    def _pairs(
        self, pool: ProxyPool, proxies: Sequence[Proxy]
    ) -> Mapping[UUID, list[TargetOutcomes]]:
        """Return what proxies came to at targets, as far as one page of pairs has it."""
        first = _before_pairs(pool, proxies[0])
        found: list[TargetOutcomes] = self._storage.list_target_outcomes(
            pool.name, after=first, limit=MOST_PAIRS
        )
        pairs: dict[UUID, list[TargetOutcomes]] = {}
        for pair in found:
            pairs.setdefault(pair.proxy_id, []).append(pair)
        if len(found) == MOST_PAIRS:
            for proxy in proxies:
                if proxy.id >= found[-1].proxy_id:
                    pairs[proxy.id] = self._storage.list_target_outcomes(proxy_id=proxy.id)
        return pairs

    def _proxy(
        self,
        proxy: Proxy,
        check: HealthCheckResult | None,
        pairs: list[TargetOutcomes],
        now: datetime,
    ) -> ProxyLine:
        rests = None if proxy.rests_until is None else (proxy.rests_until - now).total_seconds()
        return _proxy_line(
            ProxyLine(
                proxy.id,
                address_of(proxy),
                share_of(proxy, now),
                proxy.current_leases,
                proxy.max_concurrency,
                rests_s=rests if rests and rests > 0 else None,
            ),
            None
            if check is None
            else Check(check.checked_at, check.latency_ms, check.error_message),
            [Pair(pair.target, pair.success_share, pair.remaining_seconds) for pair in pairs],
        )

    def sessions(self, pool: ProxyPool) -> list[SessionLine]:
        """Return the first sticky sessions of a pool now, by key."""
        found: list[StickySession] = self._storage.list_sessions(pool.name, limit=SESSIONS)
        return [
            SessionLine(
                each.key,
                each.proxy_id,
                each.address or str(each.proxy_id),
                each.target,
                each.remaining_seconds,
            )
            for each in found
        ]

    def then(
        self,
        pool_id: UUID,
        state: PoolThen,
        after: tuple[tuple[UUID, UUID], UUID],
        at: datetime,
    ) -> LinesThen:
        """Return the lines that come after a lease and a proxy, at a moment of the past."""
        after_lease, after_proxy = after
        order = sorted((lease.proxy_id, lease_id) for lease_id, lease in state.leases.items())
        leases = [place for place in order if place > after_lease][:LEASES]
        proxies = [each for each in sorted(state.proxies) if each > after_proxy][:PROXIES]
        past, seq = self._figures.past, state.seq
        records = past.records(pool_id, proxies, seq, at, sessions=SESSIONS)
        shown = {*proxies, *(place[0] for place in leases)}
        shown |= {session.proxy_id for session in records.sessions}
        addresses = past.addresses(pool_id, sorted(shown), seq)
        details = past.details(pool_id, [place[1] for place in leases], seq)
        holders: dict[UUID, list[str]] = {each: [] for each in proxies}
        for lease in state.leases.values():
            if lease.proxy_id in holders:
                holders[lease.proxy_id].append(lease.consumer)
        return LinesThen(
            [
                _lease_then(lease_id, state, details.get(lease_id), addresses, at)
                for _, lease_id in leases
            ],
            [
                _proxy_then(each, state, sorted(holders[each]), records, addresses, at)
                for each in proxies
            ],
            [
                SessionLine(
                    each.key,
                    each.proxy_id,
                    addresses.get(each.proxy_id, str(each.proxy_id)),
                    each.target,
                    (each.expires_at - at).total_seconds(),
                )
                for each in records.sessions
            ],
            records.rests,
            records.looked_from,
        )


def _lease_then(
    lease_id: UUID,
    state: PoolThen,
    known: LeaseDetails | None,
    addresses: Mapping[UUID, str],
    at: datetime,
) -> LeaseLine:
    lease = state.leases[lease_id]
    return LeaseLine(
        lease_id,
        lease.proxy_id,
        addresses.get(lease.proxy_id, str(lease.proxy_id)),
        lease.consumer,
        lease.acquired_at,
        (known.expires_at - at).total_seconds() if known else None,
        known.renewals if known else 0,
        known.target if known else None,
    )


def _proxy_then(
    proxy_id: UUID,
    state: PoolThen,
    holders: Sequence[str],
    records: Records,
    addresses: Mapping[UUID, str],
    at: datetime,
) -> ProxyLine:
    proxy, until = state.proxies[proxy_id], records.rests.get(proxy_id)
    check = records.checks.get(proxy_id)
    line = ProxyLine(
        proxy_id,
        addresses.get(proxy_id, str(proxy_id)),
        share_then(proxy, rests=until is not None),
        proxy.leases,
        proxy.most,
        holders,
        rests_s=None if until is None else (until - at).total_seconds(),
    )
    return _proxy_line(
        line,
        None if check is None else Check(check.checked_at, check.latency_ms, check.error),
        [_pair_then(row, at) for row in records.pairs.get(proxy_id, ())],
    )


def _pair_then(row: TargetOutcomesRow, at: datetime) -> Pair:
    remaining = None if row.cools_until is None else (row.cools_until - at).total_seconds()
    share = success_share_of(row.successes, row.failures)
    return Pair(row.target, share, remaining if remaining and remaining > 0 else None)


def _proxy_line(line: ProxyLine, check: Check | None, pairs: list[Pair]) -> ProxyLine:
    """Return a line with its last check, and the pairs that matter most: those that rest first."""
    pairs.sort(key=lambda pair: (pair.rests_s is None, pair.success or 0.0, pair.target))
    return line._replace(
        checked_at=check and check.checked_at,
        latency_ms=check and check.latency_ms,
        error=check and check.error,
        pairs=pairs[:PAIRS],
        more_pairs=max(0, len(pairs) - PAIRS),
    )


def after_leases(page: Sequence[LeaseLine]) -> tuple[UUID, UUID] | None:
    """Return what the next page of leases begins after, None on the last one."""
    return (page[-1].proxy_id, page[-1].id) if len(page) == LEASES else None


def after_proxies(page: Sequence[ProxyLine]) -> UUID | None:
    """Return what the next page of proxies begins after, None on the last one."""
    return page[-1].id if len(page) == PROXIES else None


def last_checks(storage: Any, proxy_ids: Sequence[UUID]) -> Mapping[UUID, HealthCheckResult]:
    """Return the newest check of each of some proxies that has one."""
    if hasattr(storage, "last_checks"):
        found: Mapping[UUID, HealthCheckResult] = storage.last_checks(proxy_ids)
        return found
    results = {each: storage.get_last_health_result(each) for each in proxy_ids}
    return {each: result for each, result in results.items() if result is not None}


def _after(pool_id: UUID, proxy_id: UUID, lease_id: UUID) -> Lease:
    """Return a lease that stands for a place in the order of leases."""
    return Lease(
        id=lease_id, pool_id=pool_id, proxy_id=proxy_id, consumer_id=NIL, expires_at=utc_now()
    )


def _before_pairs(pool: ProxyPool, proxy: Proxy) -> TargetOutcomes:
    """Return a pair that stands for the place before those of a proxy."""
    return TargetOutcomes(
        pool_id=pool.id,
        pool_name=pool.name,
        proxy_id=proxy.id,
        address=None,
        target="",
        successes=0.0,
        failures=0.0,
        streak=0,
        cool_downs=0,
        cools_until=None,
        outcome=None,
        status=None,
        reported_at=None,
        remaining_seconds=None,
    )
