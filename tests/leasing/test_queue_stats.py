"""Who waits for a proxy: how many requests, for how long, and whose."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from pharox import (
    AcquireEventPayload,
    InMemoryStorage,
    InvalidInputError,
    IStorage,
    ProxyFilters,
    ProxyManager,
    QueueStats,
)
from pharox.events import AcquireMissed, LeaseAcquired
from pharox.storage.postgres import PostgresStorage
from tests.conftest import AnyStorage, clock_of, fill, run_sql
from tests.queueing import add_ticket, live_with_waits, waiting


def test_it_says_who_waits(any_storage: AnyStorage) -> None:
    """The requests of a pool, by consumer, and how long the oldest of them has waited."""
    clock = clock_of(any_storage)
    for name in ("pool", "other", "quiet"):
        fill(any_storage, name=name)
    manager = ProxyManager(any_storage)
    held = [manager.acquire_proxy(name, "early", 600) for name in ("pool", "other")]
    with ExitStack() as stack:
        granted = [stack.enter_context(waiting(manager, name)) for name in ("b", "c")]
        clock.advance(3)
        granted += [stack.enter_context(waiting(manager, "b"))]
        granted += [stack.enter_context(waiting(manager, "b", pool="other"))]
        clock.advance(2)
        in_pool = QueueStats(
            pool_name="pool", waiting=3, longest_wait_seconds=5, consumers={"b": 2, "c": 1}
        )
        in_other = QueueStats(
            pool_name="other", waiting=1, longest_wait_seconds=2, consumers={"b": 1}
        )
        assert any_storage.queue_stats() == [in_other, in_pool]
        assert any_storage.queue_stats("pool") == [in_pool]
        assert any_storage.queue_stats("quiet") == any_storage.queue_stats("nowhere") == []
        for lease in held:
            assert lease is not None
            manager.release_proxy(lease)
        for each in granted:
            lease = each.result()
            assert lease is not None
            manager.release_proxy(lease)
    assert any_storage.queue_stats() == []


def test_a_pool_needs_a_name(any_storage: AnyStorage) -> None:
    """As for the other statistics."""
    with pytest.raises(InvalidInputError):
        any_storage.queue_stats("")


def test_of_a_storage_without_queues_nobody_waits() -> None:
    """Somebody's own adapter need not know of queues."""
    assert IStorage.queue_stats(InMemoryStorage()) == []


def test_a_silent_process_does_not_count(postgres: PostgresStorage) -> None:
    """Six seconds after it was seen last nobody waits in it any more."""
    clock = clock_of(postgres)
    pool, _ = fill(postgres)
    add_ticket(postgres, pool.id)
    clock.advance(5.9)
    (found,) = postgres.queue_stats()
    assert (found.waiting, found.longest_wait_seconds) == (1, 5.9)
    clock.advance(0.1)
    assert postgres.queue_stats() == []


def test_a_ledger_without_queues_has_its_other_statistics(postgres: PostgresStorage) -> None:
    """As one that has not been upgraded: nobody waits there, and that is no error."""
    fill(postgres)
    run_sql(postgres.engine, "ALTER TABLE pharox.waiting_tickets RENAME TO away")
    assert postgres.queue_stats() == []
    assert postgres.list_pool_stats()[0].total_proxies == 1


def test_who_looks_for_itself_has_waited_too(any_storage: AnyStorage) -> None:
    """A caller with a predicate waits in the same queue: its grant and its miss say how long."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    held = manager.acquire_proxy("pool", "early", 600)
    assert held is not None
    any_proxy = ProxyFilters(predicate=lambda _: True)
    with waiting(manager, filters=any_proxy) as granted:
        manager.release_proxy(held)
    assert granted.result() is not None
    manager.acquire_proxy("pool", "vain", 60, any_proxy, wait_seconds=0.01)
    manager.acquire_proxy("pool", "hasty", 60, any_proxy)
    assert [
        (event.type, event.consumer, event.waited_ms is not None)
        for event in any_storage.events()
        if isinstance(event, LeaseAcquired | AcquireMissed)
    ] == [
        ("LeaseAcquired", "early", False),
        ("LeaseAcquired", "late", True),
        ("AcquireMissed", "vain", True),
        ("AcquireMissed", "hasty", False),
    ]


def test_a_callback_is_told_of_the_wait(any_storage: AnyStorage) -> None:
    """Who got a proxy in turn, or nothing in time, has waited; who was answered at once has not."""
    fill(any_storage)
    manager = ProxyManager(any_storage)
    told: list[AcquireEventPayload] = []
    manager.register_acquire_callback(told.append)
    live_with_waits(manager, clock_of(any_storage).advance)
    assert manager.acquire_proxy("pool", "hasty") is None
    waits = {payload.consumer_name: payload.waited_ms for payload in told}
    logged = {
        event.consumer: event.waited_ms
        for event in any_storage.events()
        if isinstance(event, LeaseAcquired | AcquireMissed)
    }
    assert logged == {"early": None, "late": 900, "vain": 0, "hasty": None}
    if isinstance(any_storage, InMemoryStorage):
        assert waits == logged
    else:  # by this machine's clock
        assert {name for name, waited in waits.items() if waited is not None} == {"late", "vain"}
