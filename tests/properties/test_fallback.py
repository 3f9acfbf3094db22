"""Falling back to other pools is the same in memory, in PostgreSQL and in the fold of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pharox import (
    InMemoryStorage,
    Lease,
    Outcome,
    PharoxError,
    ProxyFilters,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
    new_lease_id,
)
from pharox.events import AcquireMissed, LeaseAcquired, SessionBound, fallback_of
from pharox.models import DefaultSeconds
from pharox.storage.postgres import PostgresStorage
from pharox.storage.reports import ReportRequest
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, Clock, clock_of, proxies_of

POOLS = 3
ORDERS = st.permutations(range(POOLS)).flatmap(
    lambda order: st.integers(1, POOLS).map(lambda size: tuple(order[:size]))
)
ASKED = st.fixed_dictionaries(
    {
        "order": ORDERS,
        "selector": st.sampled_from([None, *SelectorStrategy]),
        "target": st.sampled_from([None, "shop.example"]),
        "filters": st.sampled_from([None, None, ProxyFilters(country="DE")]),
        "duration_seconds": st.sampled_from([30, 300, DefaultSeconds(60)]),
        "sticky": st.one_of(
            st.none(),
            st.builds(
                Sticky,
                st.sampled_from("ab"),
                seconds=st.sampled_from([40, 600]),
                policy=st.sampled_from(["prefer", "require"]),
                sliding=st.booleans(),
                shared=st.booleans(),
            ),
        ),
        "count": st.integers(0, 3),
        "own_id": st.sampled_from([False, False, False, True]),
    }
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [*["acquire"] * 8, *["release"] * 3, "wait", "wait", "report", "status", "again"]
        ),
        st.integers(0, 10**6),
        ASKED,
    ),
    min_size=8,
    max_size=40,
)


class TwoLives:
    """Leads the same life in two storages, and compares what they answer and record."""

    def __init__(self, both: Sequence[AnyStorage], clocks: Sequence[Clock]) -> None:
        self.both, self.clocks = both, clocks
        self.pools = [
            ProxyPool(
                name=f"pool {number} {uuid4()}",
                selector=(None, SelectorStrategy.LEAST_USED, SelectorStrategy.ROUND_ROBIN)[number],
                lease_seconds=(None, 45, None)[number],
                rest_after_release_seconds=(None, None, 20)[number],
            )
            for number in range(POOLS)
        ]
        self.proxies = [proxy for pool in self.pools for proxy in proxies_of(pool, 2)]
        for number, proxy in enumerate(self.proxies):
            proxy.country = ("DE", "FR")[number % 2]
            proxy.max_concurrency = (1, 1, 2, 1, 1, 1)[number]
        for storage in both:
            for pool in self.pools:
                storage.save_pool(pool)
            storage.add_proxies_bulk(self.proxies)
        self.leases: list[tuple[Lease, Lease]] = []
        self.last: Any = None

    def request(self, asked: dict[str, Any]) -> AcquireRequest | AcquireSetRequest:
        """Return what to ask for: one lease, or a set."""
        first, *others = (self.pools[number].name for number in asked["order"])
        common = {"fallback": others, **{name: asked[name] for name in ("selector", "target")}}
        common |= {name: asked[name] for name in ("filters", "duration_seconds")}
        if asked["count"] > 1:
            return AcquireSetRequest(first, "w", asked["count"], at_least=2, **common)
        lease_id = new_lease_id() if asked["own_id"] else None
        return AcquireRequest(first, "w", sticky=asked["sticky"], lease_id=lease_id, **common)

    def acquire(self, _: int, asked: dict[str, Any]) -> None:
        self.last = self.request(asked)
        self.ask(self.last)

    def again(self, _: int, __: dict[str, Any]) -> None:
        if getattr(self.last, "lease_id", None) is not None:
            self.ask(self.last)

    def ask(self, request: AcquireRequest | AcquireSetRequest) -> None:
        ours, theirs = (_answer(storage, request) for storage in self.both)
        if isinstance(ours, type):
            assert ours is theirs
            return
        assert ours.miss_reason == theirs.miss_reason
        assert ours.missed_in == theirs.missed_in
        leases = [ours.lease] if isinstance(request, AcquireRequest) else ours.leases
        others = [theirs.lease] if isinstance(request, AcquireRequest) else theirs.leases
        found = [(a, b) for a, b in zip(leases, others, strict=True) if a is not None]
        assert all((a.proxy_id, a.expires_at) == (b.proxy_id, b.expires_at) for a, b in found)
        assert len({a.pool_name for a, _ in found}) <= 1
        self.leases += found

    def release(self, pick: int, _: dict[str, Any]) -> None:
        if self.leases:
            held = self.leases.pop(pick % len(self.leases))
            for storage, lease in zip(self.both, held, strict=True):
                storage.return_lease(lease)

    def report(self, pick: int, _: dict[str, Any]) -> None:
        if self.leases:
            held = self.leases[pick % len(self.leases)]
            outcome = Outcome.blocked(target="shop.example", status=429, retry_after=50)
            for storage, lease in zip(self.both, held, strict=True):
                storage.report_outcomes([ReportRequest(lease, outcome)])

    def status(self, pick: int, _: dict[str, Any]) -> None:
        proxy_id, status = self.proxies[pick % 6].id, [*ProxyStatus][pick // 6 % 4]
        for storage in self.both:
            storage.set_status(proxy_id, status)

    def wait(self, pick: int, _: dict[str, Any]) -> None:
        for clock in self.clocks:
            clock.advance((5, 21, 46, 301)[pick % 4])


def _answer(storage: AnyStorage, request: AcquireRequest | AcquireSetRequest) -> Any:
    try:
        if isinstance(request, AcquireRequest):
            return storage.acquire_lease(request)
        return storage.acquire_set(request)
    except PharoxError as error:
        return type(error)


def _told(storage: AnyStorage, lives: TwoLives) -> list[Any]:
    """Return what the log says of these pools: all that does not differ by chance."""
    names = {pool.id for pool in lives.pools}
    return [
        (
            event.type,
            event.recorded_at,
            event.pool_id,
            event.proxy_id,
            event.consumer,
            fallback_of(event),
            getattr(event, "selector", None),
            getattr(event, "session", None),
            getattr(event, "session_proxy_id", None),
            getattr(event, "free", None),
        )
        for event in storage.events()
        if event.pool_id in names
        and isinstance(event, LeaseAcquired | AcquireMissed | SessionBound)
    ]


def test_memory_postgres_and_the_fold_tell_the_same_of_fallbacks(
    postgres: PostgresStorage,
) -> None:
    """Whatever is leased from several pools in any order, released, refused, banned and due."""
    clock = clock_of(postgres)

    @given(STEPS)
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    def agree(steps: list[tuple[str, int, dict[str, Any]]]) -> None:
        memory = InMemoryStorage()
        clocks = [clock_of(memory), clock]
        clocks[0].advance((clock.now - clocks[0].now).total_seconds())
        lives = TwoLives((memory, postgres), clocks)
        for name, pick, asked in steps:
            getattr(lives, name)(pick, asked)
        assert _told(memory, lives) == _told(postgres, lives)
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []
