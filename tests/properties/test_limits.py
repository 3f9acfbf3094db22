"""Limits are the same in memory, in PostgreSQL and in the fold of the log, and always hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pharox import (
    InMemoryStorage,
    Lease,
    Pace,
    PoolLimits,
    ProxyFilters,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
)
from pharox.events import ENDED_STATUS, Event, LeaseAcquired, PoolChanged
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest, AcquireSetRequest, RenewRequest
from tests.conftest import AnyStorage, Clock, clock_of, proxies_of

FEW = st.one_of(st.none(), st.integers(1, 3))
PACE = st.builds(
    Pace,
    starts=st.integers(1, 3),
    seconds=st.sampled_from([10, 40, 90.5]),
    per=st.sampled_from(["proxy", "pair", "consumer"]),
)
LIMITS = st.one_of(
    st.none(),
    st.builds(
        PoolLimits,
        leases_per_consumer=FEW,
        leases_per_target=FEW,
        paces=st.lists(PACE, max_size=3).map(tuple),
    ),
)
ASKED = st.fixed_dictionaries(
    {
        "selector": st.sampled_from(SelectorStrategy),
        "target": st.sampled_from([None, None, "shop.example", "else.example"]),
        "filters": st.sampled_from([None, None, ProxyFilters(country="DE")]),
    }
)
STICKY = st.sampled_from([None, None, Sticky("a"), Sticky("b", policy="require"), Sticky("c")])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 6,
                *["batch", "set", "set"],
                *["release"] * 3,
                *["wait", "wait", "back", "limit", "prune", "renew", "status"],
            ]
        ),
        st.integers(0, 10**6),
        ASKED,
        STICKY,
        LIMITS,
    ),
    min_size=5,
    max_size=30,
)


class TwoLives:
    """Leads the same life in two storages, and compares the answers."""

    def __init__(
        self, both: Sequence[AnyStorage], clocks: Sequence[Clock], limits: PoolLimits | None
    ) -> None:
        self.both, self.clocks = both, clocks
        self.pool = ProxyPool(name=f"pool {uuid4()}", limits=limits, lease_slow=True)
        self.proxies = proxies_of(self.pool, 4)
        for number, proxy in enumerate(self.proxies):
            proxy.country = ("DE", "FR")[number % 2]
            proxy.max_concurrency = (1, 2, None, 1)[number]
        for storage in both:
            storage.save_pool(self.pool)
            storage.add_proxies_bulk(self.proxies)
        self.leases: list[tuple[Lease, Lease]] = []

    def acquire(self, pick: int, asked: dict[str, Any], sticky: Any, _: Any) -> None:
        request = AcquireRequest(
            self.pool.name, f"w{pick % 3}", (30, 100)[pick % 2], sticky=sticky, **asked
        )
        self._same(*(storage.acquire_lease(request) for storage in self.both))

    def batch(self, pick: int, asked: dict[str, Any], *_: Any) -> None:
        if asked["selector"] is SelectorStrategy.LEAST_RECENTLY_USED:
            return  # Leases of one statement have one moment: which comes first is by id.
        requests = [
            AcquireRequest(self.pool.name, f"w{pick // n % 2}", 100, **asked) for n in (1, 2, 3)
        ]
        for ours, theirs in zip(*(s.run_batch(requests) for s in self.both), strict=True):
            self._same(ours, theirs)

    def set(self, pick: int, asked: dict[str, Any], *_: Any) -> None:
        needed = 1 + pick // 3 % 3
        request = AcquireSetRequest(
            self.pool.name,
            f"w{pick % 3}",
            3,
            100,
            at_least=needed,
            distinct=bool(pick // 9 % 2),
            **asked,
        )
        ours, theirs = (storage.acquire_set(request) for storage in self.both)
        assert (ours.miss_reason, ours.free, ours.limit) == (
            theirs.miss_reason,
            theirs.free,
            theirs.limit,
        )
        for one, other in zip(ours.acquisitions, theirs.acquisitions, strict=True):
            self._same(one, other)

    def _same(self, ours: Any, theirs: Any) -> None:
        assert ours.miss_reason == theirs.miss_reason
        assert ours.limit == theirs.limit
        assert ours.retry_after_seconds == theirs.retry_after_seconds
        assert (ours.lease is None) == (theirs.lease is None)
        if ours.lease is not None:
            assert ours.lease.proxy_id == theirs.lease.proxy_id
            self.leases.append((ours.lease, theirs.lease))

    def release(self, pick: int, *_: Any) -> None:
        if self.leases:
            held = self.leases.pop(pick % len(self.leases))
            for storage, lease in zip(self.both, held, strict=True):
                storage.return_lease(lease)

    def renew(self, pick: int, *_: Any) -> None:
        if self.leases:
            held = self.leases[pick % len(self.leases)]
            for storage, lease in zip(self.both, held, strict=True):
                storage.renew_leases([RenewRequest(lease, 60)])

    def wait(self, pick: int, *_: Any) -> None:
        self._advance((5, 10, 31, 101)[pick % 4])

    def back(self, pick: int, *_: Any) -> None:
        self._advance((-3, -20, -600)[pick % 3])

    def _advance(self, seconds: float) -> None:
        for clock in self.clocks:
            clock.advance(seconds)

    def limit(self, _pick: int, _asked: Any, _sticky: Any, limits: PoolLimits | None) -> None:
        pool = self.pool.model_copy(update={"limits": limits})
        for storage in self.both:
            storage.save_pool(pool)

    def status(self, pick: int, *_: Any) -> None:
        status = list(ProxyStatus)[pick % len(ProxyStatus)]
        for storage in self.both:
            storage.set_status(self.proxies[pick % 4].id, status)

    def prune(self, pick: int, *_: Any) -> None:
        before = self.clocks[0].now - timedelta(seconds=pick % 120)
        for storage in self.both:
            storage.prune_leases(before)


def exceeded(storage: AnyStorage, pool_id: UUID, limits: PoolLimits) -> list[str]:
    """Return what leases exceeded of the limits of a pool that has had no others, by the log."""
    events = [event for event in storage.events() if event.pool_id == pool_id]
    return [*_held_too_many(events, limits), *_began_too_many(events, limits)]


def _held_too_many(events: Sequence[Event], limits: PoolLimits) -> Iterator[str]:
    most = {"consumer": limits.leases_per_consumer, "target": limits.leases_per_target}
    held: dict[tuple[str, str], set[UUID]] = {}
    for event in events:
        if isinstance(event, LeaseAcquired):
            for per, name in (("consumer", event.consumer), ("target", event.target)):
                if name is not None:
                    leases = held.setdefault((per, name), set())
                    leases.add(event.lease_id)
                    if len(leases) > (most[per] or len(leases)):
                        yield f"{per} {name} has {len(leases)}"
        elif event.type in ENDED_STATUS and event.lease_id is not None:
            for leases in held.values():
                leases.discard(event.lease_id)


def _began_too_many(events: Sequence[Event], limits: PoolLimits) -> Iterator[str]:
    for pace in limits.paces:
        starts: dict[Any, list[datetime]] = {}
        for event in events:
            if isinstance(event, LeaseAcquired) and (pace.per != "pair" or event.target):
                key = {
                    "proxy": event.proxy_id,
                    "pair": (event.proxy_id, event.target),
                    "consumer": event.consumer,
                }[pace.per]
                starts.setdefault(key, []).append(event.recorded_at)
        for key, moments in starts.items():
            moments.sort()
            for first, last in zip(moments, moments[pace.starts :], strict=False):
                if (last - first).total_seconds() < pace.seconds:
                    yield f"{pace.per} {key} began {pace.starts + 1} within {last - first}"


def test_memory_postgres_and_the_fold_tell_the_same_of_limits(postgres: PostgresStorage) -> None:
    """Whatever is leased, released, renewed and pruned, as limits change and clocks are moved."""
    clock = clock_of(postgres)

    @given(LIMITS, STEPS)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(limits: PoolLimits | None, steps: list[tuple[Any, ...]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = TwoLives((memory, postgres), clocks, limits)
        for name, *arguments in steps:
            getattr(lives, name)(*arguments)
        assert memory.verify() == []
        changed = any(isinstance(event, PoolChanged) for event in memory.events())
        if limits is not None and not changed:
            assert exceeded(memory, lives.pool.id, limits) == []
            assert exceeded(postgres, lives.pool.id, limits) == []

    agree()
    assert postgres.verify() == []
