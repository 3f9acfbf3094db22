"""Leasing said once more, as plainly as it can be: lists, loops and no cleverness."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from hashlib import md5
from math import ceil, floor
from typing import Any
from uuid import UUID

from pharox import (
    HealthCheckResult,
    HealthPolicy,
    MissReason,
    PoolStatsSnapshot,
    Proxy,
    ProxyFilters,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
)


@dataclass
class PlainLease:
    proxy_id: UUID
    pool_id: UUID
    consumer: str
    expires_at: datetime
    seconds: float
    acquired_at: datetime
    status: str = "active"
    ended_at: datetime | None = None

    def renew(self, now: datetime, seconds: float | None, max_held: float | None) -> None:
        """Extend it, but not beyond what its pool allows, and take nothing that it had."""
        until = now + timedelta(seconds=self.seconds if seconds is None else seconds)
        if max_held is not None:
            last = self.acquired_at + timedelta(seconds=max_held)
            until = min(until, max(last, self.expires_at))
        self.expires_at, self.seconds = until, (until - now).total_seconds()

    @property
    def is_held(self) -> bool:
        return self.status == "active"


@dataclass
class PlainModel:
    now: datetime
    pools: dict[UUID, ProxyPool] = field(default_factory=dict)
    proxies: dict[UUID, Proxy] = field(default_factory=dict)
    leases: list[PlainLease] = field(default_factory=list)
    turns: dict[UUID, UUID] = field(default_factory=dict)
    probed: dict[UUID, datetime] = field(default_factory=dict)
    latency: dict[UUID, int] = field(default_factory=dict)
    exits: dict[UUID, str] = field(default_factory=dict)
    draining: set[UUID] = field(default_factory=set)
    rests: dict[UUID, datetime] = field(default_factory=dict)
    bans: dict[UUID, tuple[datetime, ProxyStatus]] = field(default_factory=dict)
    leased_at: dict[UUID, datetime] = field(default_factory=dict)
    in_turn: dict[UUID, tuple[int, int]] = field(default_factory=dict)
    since_decided: dict[UUID, list[bool]] = field(default_factory=dict)

    def held(self, proxy_id: UUID) -> int:
        return sum(1 for x in self.leases if x.proxy_id == proxy_id and x.status == "active")

    def has_room(self, proxy: Proxy) -> bool:
        return proxy.max_concurrency is None or self.held(proxy.id) < proxy.max_concurrency

    def is_resting(self, proxy: Proxy) -> bool:
        return proxy.id in self.rests and self.rests[proxy.id] > self.now

    def end(self, lease: PlainLease, status: str) -> None:
        """End a lease; its proxy rests as its pool says, and no shorter than before."""
        lease.status, lease.ended_at = status, self.now
        pool = self.pools[lease.pool_id]
        seconds = pool.rest_after_expiry_seconds
        if status == "released":
            seconds = pool.rest_after_release_seconds
        rests = [until for until in [self.rests.pop(lease.proxy_id, self.now)] if until > self.now]
        if seconds:
            rests.append(self.now + timedelta(seconds=seconds))
        if rests:
            self.rests[lease.proxy_id] = max(rests)

    def healthy(self, pool: ProxyPool, proxy: Proxy) -> bool:
        return proxy.status is ProxyStatus.ACTIVE or (
            pool.lease_slow and proxy.status is ProxyStatus.SLOW
        )

    def members(self, pool: ProxyPool) -> list[Proxy]:
        return [p for p in self.proxies.values() if p.pool_id == pool.id]

    def offer(
        self,
        pool: ProxyPool,
        selector: SelectorStrategy | None,
        filters: ProxyFilters | None,
        taken: Collection[UUID] = (),
        order: Sequence[UUID] = (),
    ) -> Proxy | None:
        """Return what a selector offers. ``order`` has what a set was given, last time last."""
        never = datetime.min.replace(tzinfo=UTC)
        free = [
            p
            for p in self.members(pool)
            if self.healthy(pool, p)
            and self.has_room(p)
            and not self.is_resting(p)
            and p.id not in taken
            and (filters is None or filters.matches(p))
        ]
        turn = self.turns.get(pool.id)

        def newest_check(p: Proxy) -> tuple[Any, ...]:
            return -p.checked_at.timestamp(), p.id

        keys: dict[SelectorStrategy, Callable[[Proxy], tuple[Any, ...]]] = {
            SelectorStrategy.FIRST_AVAILABLE: newest_check,
            SelectorStrategy.MOST_SUCCESSFUL: newest_check,  # Of no target there is no record.
            SelectorStrategy.LEAST_USED: lambda p: (self.held(p.id), p.checked_at, p.id),
            SelectorStrategy.ROUND_ROBIN: lambda p: (turn is not None and p.id <= turn, p.id),
            SelectorStrategy.LOWEST_LATENCY: lambda p: (
                self.latency.get(p.id) is None,
                self.latency.get(p.id, 0),
                p.id,
            ),
            SelectorStrategy.LEAST_RECENTLY_USED: lambda p: (
                order.index(p.id) + 1 if p.id in order else 0,
                self.leased_at.get(p.id, never),
                p.id,
            ),
            SelectorStrategy.WEIGHTED: lambda p: (self.in_turn.get(p.id, (0, -1))[1], p.id),
        }
        key = keys[self.used(pool, selector)]
        free.sort(key=lambda p: (p.status is ProxyStatus.SLOW, key(p)))
        return free[0] if free else None

    def offer_set(
        self,
        pool: ProxyPool,
        selector: SelectorStrategy | None,
        filters: ProxyFilters | None,
        count: int,
        *,
        distinct: bool,
    ) -> list[Proxy]:
        """Lease one after the other, look what that was, and forget it."""
        leases, turns, rests = len(self.leases), dict(self.turns), dict(self.rests)
        leased_at, in_turn = dict(self.leased_at), dict(self.in_turn)
        order: list[UUID] = []
        found: list[Proxy] = []
        for _ in range(count):
            taken = {p.id for p in found} if distinct else ()
            proxy = self.offer(pool, selector, filters, taken, order)
            if proxy is None:
                break
            found.append(proxy)
            order = [*(each for each in order if each != proxy.id), proxy.id]
            self.grant(proxy, "nobody", 1)
            self.turn(proxy, selector)
        del self.leases[leases:]
        self.turns, self.rests = turns, rests
        self.leased_at, self.in_turn = leased_at, in_turn
        return found

    def used(self, pool: ProxyPool, selector: SelectorStrategy | None) -> SelectorStrategy:
        return selector or pool.selector or SelectorStrategy.FIRST_AVAILABLE

    def turn(self, proxy: Proxy, selector: SelectorStrategy | None) -> None:
        """Note whose turn it was, if the selector takes turns."""
        pool = self.pools[proxy.pool_id]
        used = self.used(pool, selector)
        if used is SelectorStrategy.ROUND_ROBIN:
            self.turns[proxy.pool_id] = proxy.id
        if used is SelectorStrategy.WEIGHTED:
            alike = [p.id for p in self.members(pool) if p.status is proxy.status]
            turn = max([0, *(self.in_turn[each][0] for each in alike if each in self.in_turn)])
            step, after = 306_306_000 // (proxy.weight or 1), None
            if proxy.id in self.in_turn:
                turn = max(turn, self.in_turn[proxy.id][1])
            else:  # a place in the first step that comes from its id
                place = Fraction(int(md5(str(proxy.id).encode()).hexdigest()[:8], 16), 2**32)
                after = turn + 1 + floor(step * place)
            self.in_turn[proxy.id] = (turn, turn + step if after is None else after)

    def reason(self, pool: ProxyPool, filters: ProxyFilters | None) -> MissReason:
        members = self.members(pool)
        if not members:
            return MissReason.EMPTY_POOL
        matching = [p for p in members if filters is None or filters.matches(p)]
        if not matching:
            return MissReason.NO_MATCH
        healthy = [p for p in matching if self.healthy(pool, p)]
        if any(self.has_room(p) and self.is_resting(p) for p in healthy):
            return MissReason.RESTING
        if not healthy:
            return MissReason.NONE_HEALTHY
        return MissReason.AT_CAPACITY

    def expire(self, pool_id: UUID | None = None) -> int:
        due = [
            x
            for x in self.leases
            if x.status == "active"
            and x.expires_at <= self.now
            and (pool_id is None or x.pool_id == pool_id)
        ]
        for lease in due:
            self.end(lease, "expired")
        return len(due)

    def ban(self, proxy: Proxy, seconds: float) -> None:
        """Ban a proxy for a time, after which it is as it was, or ACTIVE."""
        returns_to = proxy.status
        if returns_to is ProxyStatus.BANNED:
            _, returns_to = self.bans.get(proxy.id, (None, ProxyStatus.ACTIVE))
        self.decide(proxy.model_copy(update={"status": ProxyStatus.BANNED}))
        self.draining.discard(proxy.id)
        self.bans[proxy.id] = (self.now + timedelta(seconds=seconds), returns_to)

    def end_bans(self, pool_id: UUID | None = None) -> None:
        for proxy_id, (until, returns_to) in list(self.bans.items()):
            proxy = self.proxies[proxy_id]
            if until <= self.now and pool_id in (None, proxy.pool_id):
                self.decide(proxy.model_copy(update={"status": returns_to}))

    def redate(self) -> None:
        """Let no lease last longer than its duration from now, after the clock went back."""
        for lease in self.leases:
            granted_at = lease.expires_at - timedelta(seconds=lease.seconds)
            if lease.is_held and granted_at > self.now + timedelta(seconds=1):
                lease.renew(self.now, None, None)

    def grant(self, proxy: Proxy, consumer: str, seconds: float) -> None:
        self.rests.pop(proxy.id, None)
        self.leased_at[proxy.id] = self.now
        expires_at = self.now + timedelta(seconds=seconds)
        self.leases.append(
            PlainLease(proxy.id, proxy.pool_id, consumer, expires_at, seconds, self.now)
        )

    def revoke(self, lease: PlainLease) -> bool:
        """End a lease, unless it has ended or run out."""
        may = lease.is_held and lease.expires_at > self.now
        if may:
            self.end(lease, "revoked")
        return may

    def end_held(self, proxy_id: UUID) -> None:
        for lease in self.leases:
            if lease.proxy_id == proxy_id and lease.status == "active":
                lease.status, lease.ended_at = "released", self.now

    def check(self, result: HealthCheckResult, policy: HealthPolicy) -> list[str]:
        """Take a result in; return who holds the proxy if it may be leased no more."""
        proxy = self.proxies[result.proxy_id]
        last = self.probed.get(proxy.id)
        made = min(result.checked_at, self.now)
        if last is not None and made <= last:
            return []
        self.probed[proxy.id] = made
        well = result.status in ("active", "slow")
        self.since_decided.setdefault(proxy.id, []).append(well)
        wanted = policy.successes_before_active if well else policy.failures_before_inactive
        in_a_row = all(x is well for x in self.since_decided[proxy.id][-wanted:])
        enough = in_a_row and len(self.since_decided[proxy.id]) >= wanted
        was_well = proxy.status in ("active", "slow")
        changes: dict[str, Any] = {"checked_at": made}
        if proxy.status != "banned" and (enough or well == was_well or result.status == "banned"):
            changes["status"] = result.status
        self.proxies[proxy.id] = proxy.model_copy(update=changes)
        if result.exit_ip is not None:
            self.exits[proxy.id] = result.exit_ip
        if well:
            mean = self.latency.get(proxy.id, result.latency_ms)
            part = Fraction(2, policy.latency_window + 1) * abs(result.latency_ms - mean)
            step = ceil(part)
            self.latency[proxy.id] = mean + (step if result.latency_ms > mean else -step)
        if was_well and self.proxies[proxy.id].status not in ("active", "slow"):
            return [x.consumer for x in self.leases if x.proxy_id == proxy.id and x.is_held]
        return []

    def drain(self, proxy: Proxy) -> None:
        if proxy.id not in self.draining:
            self.decide(proxy.model_copy(update={"status": ProxyStatus.BANNED}))
            self.bans.pop(proxy.id, None)
            self.draining.add(proxy.id)

    def remove_drained(self) -> None:
        """Remove what drains and is not leased."""
        for proxy_id in list(self.draining):
            if not self.held(proxy_id):
                self.forget(proxy_id)

    def decide(self, proxy: Proxy) -> None:
        """Take in what a person says of a proxy."""
        if self.proxies.get(proxy.id) != proxy:
            self.draining.discard(proxy.id)
        if (known := self.proxies.get(proxy.id)) and known.status != proxy.status:
            self.since_decided.pop(proxy.id, None)
        if proxy.status is not ProxyStatus.BANNED:
            self.bans.pop(proxy.id, None)
        self.proxies[proxy.id] = proxy

    def forget(self, proxy_id: UUID) -> None:
        self.draining.discard(proxy_id)
        known: tuple[dict[UUID, Any], ...] = (
            self.proxies,
            self.rests,
            self.bans,
            self.leased_at,
            self.in_turn,
            self.probed,
            self.latency,
            self.exits,
            self.since_decided,
        )
        for facts in known:
            facts.pop(proxy_id, None)

    def stats(self, pool: ProxyPool) -> PoolStatsSnapshot:
        members = self.members(pool)
        active = [p for p in members if p.status is ProxyStatus.ACTIVE]
        return PoolStatsSnapshot(
            pool_name=pool.name,
            total_proxies=len(members),
            active_proxies=len(active),
            available_proxies=sum(1 for p in active if self.has_room(p)),
            leased_proxies=sum(1 for p in members if self.held(p.id)),
            total_leases=sum(self.held(p.id) for p in members),
            collected_at=self.now,
        )
