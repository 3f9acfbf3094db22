"""Sticky sessions are the same in memory, in PostgreSQL and in the fold of the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pharox import (
    InMemoryStorage,
    Lease,
    PharoxError,
    ProxyFilters,
    ProxyNotFoundError,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
    Sticky,
    StickySession,
)
from pharox.storage.postgres import PostgresStorage
from pharox.storage.requests import AcquireRequest
from tests.conftest import AnyStorage, Clock, clock_of, proxies_of

KEYS = ("a", "b", "c", "d")
STICKY = st.one_of(
    st.none(),
    st.builds(
        Sticky,
        st.sampled_from(KEYS),
        seconds=st.sampled_from([30, 600]),
        policy=st.sampled_from(["prefer", "require"]),
        sliding=st.booleans(),
        shared=st.booleans(),
    ),
)
ASKED = st.fixed_dictionaries(
    {
        "sticky": STICKY,
        "selector": st.sampled_from(SelectorStrategy),
        "target": st.sampled_from([None, None, "shop.example", "else.example"]),
        "filters": st.sampled_from([None, None, ProxyFilters(country="DE")]),
    }
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *["acquire"] * 6,
                *["release"] * 3,
                *["wait", "rest", "forget", "inherit", "status", "status", "remove", "prune"],
            ]
        ),
        st.integers(0, 10**6),
        ASKED,
    ),
    min_size=5,
    max_size=30,
)


class TwoLives:
    """Leads the same life in two storages, and compares the answers and what is bound."""

    def __init__(self, both: Sequence[AnyStorage], clocks: Sequence[Clock]) -> None:
        self.both, self.clocks = both, clocks
        self.pool = ProxyPool(name=f"pool {uuid4()}")
        self.proxies = proxies_of(self.pool, 4)
        for number, proxy in enumerate(self.proxies):
            proxy.country = ("DE", "FR")[number % 2]
            proxy.max_concurrency = (1, 2, None, 1)[number]
        for storage in both:
            storage.save_pool(self.pool)
            storage.add_proxies_bulk(self.proxies)
        self.leases: list[tuple[Lease, Lease]] = []

    def both_do(self, act: Callable[[AnyStorage], Any]) -> tuple[Any, Any]:
        """Return what both answer, or the kinds of their errors."""
        ours, theirs = (_outcome(act, storage) for storage in self.both)
        return ours, theirs

    def acquire(self, _: int, asked: dict[str, Any]) -> None:
        request = AcquireRequest(self.pool.name, "w", 100, **asked)
        ours, theirs = self.both_do(lambda storage: storage.acquire_lease(request))
        assert ours.miss_reason == theirs.miss_reason
        if ours.lease is not None:
            assert ours.lease.proxy_id == theirs.lease.proxy_id
            self.leases.append((ours.lease, theirs.lease))

    def release(self, pick: int, _: dict[str, Any]) -> None:
        if self.leases:
            held = self.leases.pop(pick % len(self.leases))
            for storage, lease in zip(self.both, held, strict=True):
                storage.return_lease(lease)

    def wait(self, pick: int, _: dict[str, Any]) -> None:
        for clock in self.clocks:
            clock.advance((5, 31, 101, 700)[pick % 4])

    def rest(self, pick: int, _: dict[str, Any]) -> None:
        seconds = (None, 40)[pick % 2]
        pool = self.pool.model_copy(update={"rest_after_release_seconds": seconds})
        for storage in self.both:
            storage.save_pool(pool)

    def forget(self, pick: int, _: dict[str, Any]) -> None:
        name = self.pool.name
        ours, theirs = self.both_do(lambda s: s.forget_session(name, KEYS[pick % 4]))
        assert ours == theirs

    def inherit(self, pick: int, _: dict[str, Any]) -> None:
        old, new = KEYS[pick % 4], KEYS[pick // 4 % 4]
        ours, theirs = self.both_do(lambda s: s.inherit_session(self.pool.name, old, new))
        assert ours == theirs

    def status(self, pick: int, _: dict[str, Any]) -> None:
        proxy_id, status = self.proxies[pick % 4].id, [*ProxyStatus][pick // 4 % 4]
        for storage in self.both:
            with suppress(ProxyNotFoundError):
                storage.set_status(proxy_id, status)

    def remove(self, pick: int, _: dict[str, Any]) -> None:
        proxy = self.proxies[pick % 4]
        for storage in self.both:
            try:
                storage.delete_proxy(str(proxy.id))
            except ProxyNotFoundError:
                storage.save_proxy(proxy)

    def prune(self, pick: int, _: dict[str, Any]) -> None:
        before = self.clocks[0].now - timedelta(seconds=pick % 120)
        for storage in self.both:
            storage.prune_leases(before)

    def compare(self) -> None:
        ours, theirs = (storage.list_sessions(self.pool.name) for storage in self.both)
        assert ours == theirs
        alone: dict[UUID, list[StickySession]] = {}
        for session in ours:
            alone.setdefault(session.proxy_id, []).append(session)
        for sharing in alone.values():
            for one in sharing:
                assert not any(_excludes(one, other) for other in sharing if other is not one)


def _outcome(act: Callable[[AnyStorage], Any], storage: AnyStorage) -> Any:
    try:
        return act(storage)
    except PharoxError as error:
        return type(error)


def _excludes(one: StickySession, other: StickySession) -> bool:
    """Return whether two bindings may not be to one proxy."""
    is_same = None in (one.target, other.target) or one.target == other.target
    return is_same and not (one.shared and other.shared)


def test_memory_postgres_and_the_fold_tell_the_same_of_sessions(postgres: PostgresStorage) -> None:
    """Whatever is leased, released, forgotten, inherited, banned, removed and pruned."""
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
            lives.compare()
        assert memory.verify() == []

    agree()
    assert postgres.verify() == []
