"""MOST_SUCCESSFUL offers the proxy that succeeded most at the target, sometimes any other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from pharox import (
    InMemoryStorage,
    Lease,
    MissReason,
    Outcome,
    Proxy,
    ProxyFilters,
    SelectorStrategy,
    Sticky,
)
from pharox.events import LeaseAcquired
from pharox.models import explores, seed_of
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.batch import Batch, command_of
from pharox.storage.reports import ReportRequest
from pharox.storage.requests import AcquireRequest, AcquireSetRequest
from tests.conftest import AnyStorage, clock_of, fill, pages_read, proxies_of, run_sql

SHOP = "shop.example"
BEST = SelectorStrategy.MOST_SUCCESSFUL


def lease_of(storage: AnyStorage, **options: Any) -> Lease:
    """Lease a proxy for the site."""
    asked = {"selector": BEST, "target": SHOP, **options}
    lease = storage.acquire_lease(AcquireRequest("pool", "w", **asked)).lease
    assert lease is not None
    return lease


def used(storage: AnyStorage, **options: Any) -> UUID:
    """Lease a proxy for the site, give it back, and return which it was."""
    lease = lease_of(storage, **options)
    storage.return_lease(lease)
    return lease.proxy_id


def report(storage: AnyStorage, proxy: Proxy, *, ok: int = 0, failed: int = 0) -> None:
    """Say how often a proxy succeeded and failed at the site."""
    lease = storage.create_lease(proxy, "reporter", 30)
    outcomes = [Outcome.ok(SHOP, count=ok)] if ok else []
    outcomes += [Outcome.target_failed(SHOP)] * failed
    for outcome in outcomes:
        storage.report_outcomes([ReportRequest(lease, outcome)])
    storage.return_lease(lease)


def at_rest(storage: AnyStorage) -> Any:
    """Return the storage's clock, put to a moment at which nothing is explored."""
    clock = clock_of(storage)
    until_explored(clock, explored=False)
    return clock


def until_explored(clock: Any, *, explored: bool) -> None:
    """Put a clock on, to a moment at which something is explored or not."""
    while explores(seed_of(SHOP, clock.now)) is not explored:
        clock.advance(0.001)


class TestOrder:
    def test_the_best_record_comes_first(self, any_storage: AnyStorage) -> None:
        """Then one without a record, which counts as a half, then those that fail."""
        _, (bad, good, new, better) = fill(any_storage, 4)
        at_rest(any_storage)
        report(any_storage, bad, failed=3)
        report(any_storage, good, ok=4, failed=2)
        report(any_storage, better, ok=9)
        leases = [lease_of(any_storage) for _ in range(4)]
        assert [each.proxy_id for each in leases] == [better.id, good.id, new.id, bad.id]

    def test_sets_and_filters_go_by_it(self, any_storage: AnyStorage) -> None:
        """In one statement for several leases, too."""
        _, proxies = fill(any_storage, 4, country="DE")
        at_rest(any_storage)
        for number, proxy in enumerate(proxies):
            report(any_storage, proxy, ok=number + 1)
        request = AcquireSetRequest(
            "pool", "w", 3, filters=ProxyFilters(country="DE"), selector=BEST, target=SHOP
        )
        found = [lease.proxy_id for lease in any_storage.acquire_set(request).leases]
        assert found == [proxy.id for proxy in reversed(proxies[1:])]

    def test_a_shared_proxy_is_filled_first(self, any_storage: AnyStorage) -> None:
        """A lease changes nothing in a record."""
        _, (one, other) = fill(any_storage, 2, max_concurrency=2)
        at_rest(any_storage)
        report(any_storage, one, ok=1)
        request = AcquireSetRequest("pool", "w", 3, distinct=False, selector=BEST, target=SHOP)
        found = [lease.proxy_id for lease in any_storage.acquire_set(request).leases]
        assert found == [one.id, one.id, other.id]

    def test_a_session_is_bound_to_the_best(self, any_storage: AnyStorage) -> None:
        """As far as no other key has it."""
        _, (one, other) = fill(any_storage, 2)
        at_rest(any_storage)
        report(any_storage, other, ok=3)
        assert used(any_storage, sticky=Sticky("a")) == other.id
        assert used(any_storage, sticky=Sticky("b")) == one.id

    def test_a_predicate_goes_by_it(self, any_storage: AnyStorage) -> None:
        """Of the proxies that it accepts."""
        _, (one, other, best) = fill(any_storage, 3)
        at_rest(any_storage)
        report(any_storage, other, ok=3)
        report(any_storage, best, ok=9)
        fits = ProxyFilters(predicate=lambda proxy: proxy.id != best.id)
        assert used(any_storage, filters=fits) == other.id
        assert one.id != other.id

    def test_the_pools_default_and_no_target(self, any_storage: AnyStorage) -> None:
        """A lease for no target has no record to go by, and is as with FIRST_AVAILABLE."""
        pool, proxies = fill(any_storage, 3)
        at_rest(any_storage)
        report(any_storage, proxies[1], ok=3)
        any_storage.save_pool(pool.model_copy(update={"selector": BEST}))
        assert used(any_storage, selector=None) == proxies[1].id
        plain = SelectorStrategy.FIRST_AVAILABLE
        first = used(any_storage, selector=plain, target=None)
        assert used(any_storage, selector=None, target=None) == first
        assert used(any_storage, target=None) == first
        assert any_storage.find_available_proxy("pool", None, BEST).id == first  # type: ignore[union-attr]

    def test_what_rests_for_the_target_is_passed_over(self, any_storage: AnyStorage) -> None:
        """However well it did before."""
        _, (one, other) = fill(any_storage, 2)
        clock = at_rest(any_storage)
        report(any_storage, one, ok=50)
        lease = lease_of(any_storage)
        refused = Outcome.blocked(SHOP, status=429, retry_after=60)
        any_storage.report_outcomes([ReportRequest(lease, refused)])
        any_storage.return_lease(lease)
        until_explored(clock, explored=False)
        assert lease_of(any_storage).proxy_id == other.id
        missed = any_storage.acquire_lease(AcquireRequest("pool", "w", selector=BEST, target=SHOP))
        assert missed.miss_reason is MissReason.COOLING_DOWN


class TestExploring:
    def test_the_best_is_had_19_times_of_20(self, any_storage: AnyStorage) -> None:
        """Over 400 moments; the event says which were explored, and all others had the best."""
        _, proxies = fill(any_storage, 10)
        clock = clock_of(any_storage)
        report(any_storage, proxies[7], ok=3)
        for _ in range(400):
            used(any_storage)
            clock.advance(0.7)
        events = [
            event
            for event in any_storage.events()
            if isinstance(event, LeaseAcquired) and event.selector is BEST
        ]
        explored = [event for event in events if event.explored]
        # Five standard deviations of 400 draws of one in twenty.
        assert abs(len(explored) - 20) <= 5 * (400 * 0.05 * 0.95) ** 0.5
        assert all(e.proxy_id == proxies[7].id for e in events if not e.explored)
        assert len({event.proxy_id for event in explored}) > len(explored) / 4

    def test_an_event_tells_what_was_drawn(self, any_storage: AnyStorage) -> None:
        """The same moment, target and proxies give the same again, in either storage."""
        _, proxies = fill(any_storage, 6)
        clock = clock_of(any_storage)
        until_explored(clock, explored=True)
        drawn = used(any_storage)
        again = InMemoryStorage()
        other, _ = fill(again, 0)
        again.add_proxies_bulk([each.model_copy(update={"pool_id": other.id}) for each in proxies])
        same = clock_of(again)
        same.advance((clock.now - same.now).total_seconds())
        assert used(again) == drawn

    def test_records_that_were_pruned_count_no_more(self, any_storage: AnyStorage) -> None:
        """They are those of a proxy that was not reported for long."""
        _, (one, other) = fill(any_storage, 2)
        clock = clock_of(any_storage)
        report(any_storage, one, ok=5)
        clock.advance(7200)
        report(any_storage, other, ok=1)
        any_storage.prune_leases(clock.now - timedelta(seconds=3600))
        until_explored(clock, explored=False)
        assert lease_of(any_storage).proxy_id == other.id


@pytest.mark.parametrize("best_are_leased", [False, True])
def test_a_large_pool_costs_no_more(storage: PostgresStorage, best_are_leased: bool) -> None:
    """With 100 times the proxies and records, also when those in front are leased."""
    pool, _ = fill(storage, 40)
    storage.ensure_consumer("w")

    def pages() -> int:
        query = Batch((command_of(AcquireRequest("pool", "w", selector=BEST, target=SHOP)),))
        made = query.query(storage.schema)
        return pages_read(storage, made.statement, dict(made.values))

    def records() -> None:
        run_sql(
            storage.engine,
            "INSERT INTO pharox.target_outcomes (pool_id, proxy_id, target, successes, failures, "
            "streak, cool_downs) SELECT pool_id, proxy_id, 'shop.example', "
            "('x' || substr(md5(proxy_id::text), 1, 3))::bit(12)::integer, 5, 1, 0 "
            "FROM pharox.available_proxies ON CONFLICT DO NOTHING",
        )
        if best_are_leased:
            run_sql(
                storage.engine,
                "UPDATE pharox.available_proxies SET current_leases = 1 WHERE "
                "proxy_id IN (SELECT proxy_id FROM pharox.target_outcomes "
                "ORDER BY successes DESC LIMIT 200)",
            )
        run_sql(storage.engine, "VACUUM ANALYZE")

    records()
    pages()
    small = pages()
    storage.add_proxies_bulk(proxies_of(pool, 4000, network="10.1"))
    records()
    pages()
    # 32 candidates either way, and at most 1024 records that are passed over.
    assert pages() <= 3 * small + (1024 * 6 if best_are_leased else 0)
