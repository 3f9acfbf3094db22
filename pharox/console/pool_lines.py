"""The lines of a pool's page: its leases and its proxies, a page each, now and in the past."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from ..history.addresses import address_of
from ..history.past.shapes import PoolThen
from ..models import HealthCheckResult, HeldLease, Lease, Proxy, ProxyPool, TargetOutcomes, utc_now
from ..models.ids import NIL
from .figures import Figures
from .figures.plain import share_of
from .shares import Share, share_then

LEASES = 50
PROXIES = 25
PAIRS = 4
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
        pairs.sort(key=lambda pair: (pair.remaining_seconds is None, pair.success_share or 0.0))
        rests = None if proxy.rests_until is None else (proxy.rests_until - now).total_seconds()
        return ProxyLine(
            proxy.id,
            address_of(proxy),
            share_of(proxy, now),
            proxy.current_leases,
            proxy.max_concurrency,
            (),
            rests if rests and rests > 0 else None,
            None if check is None else check.checked_at,
            None if check is None else check.latency_ms,
            None if check is None else check.error_message,
            [
                Pair(pair.target, pair.success_share, pair.remaining_seconds)
                for pair in pairs[:PAIRS]
            ],
            max(0, len(pairs) - PAIRS),
        )

    def leases_then(
        self, pool_id: UUID, state: PoolThen, after: tuple[UUID, UUID], at: datetime
    ) -> list[LeaseLine]:
        """Return the next leases of a pool that were active at a moment."""
        order = sorted((lease.proxy_id, lease_id) for lease_id, lease in state.leases.items())
        page = [place for place in order if place > after][:LEASES]
        past, seq = self._figures.past, state.seq
        details = past.details(pool_id, [place[1] for place in page], seq)
        addresses = past.addresses(pool_id, [place[0] for place in page], seq)
        lines = []
        for proxy_id, lease_id in page:
            lease, known = state.leases[lease_id], details.get(lease_id)
            lines.append(
                LeaseLine(
                    lease_id,
                    proxy_id,
                    addresses.get(proxy_id, str(proxy_id)),
                    lease.consumer,
                    lease.acquired_at,
                    (known.expires_at - at).total_seconds() if known else None,
                    known.renewals if known else 0,
                    known.target if known else None,
                )
            )
        return lines

    def proxies_then(self, pool_id: UUID, state: PoolThen, after: UUID) -> list[ProxyLine]:
        """Return the next proxies that a pool had at a moment."""
        ids = [each for each in sorted(state.proxies) if each > after][:PROXIES]
        addresses = self._figures.past.addresses(pool_id, ids, state.seq)
        holders: dict[UUID, list[str]] = {}
        for lease in state.leases.values():
            holders.setdefault(lease.proxy_id, []).append(lease.consumer)
        return [
            ProxyLine(
                proxy_id,
                addresses.get(proxy_id, str(proxy_id)),
                share_then(state.proxies[proxy_id]),
                state.proxies[proxy_id].leases,
                state.proxies[proxy_id].most,
                sorted(holders.get(proxy_id, ())),
            )
            for proxy_id in ids
        ]


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
