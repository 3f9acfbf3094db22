"""Have somebody wait for a proxy while a test goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from uuid import UUID

from pharox import IStorage, Lease, ProxyFilters, ProxyManager
from pharox.storage.postgres import PostgresStorage
from tests.conftest import run_sql
from tests.ledger.following import until


def waiting_in(storage: IStorage, pool: str = "pool") -> int:
    """Return how many requests wait in a pool."""
    return sum(queue.waiting for queue in storage.queue_stats(pool))


@contextmanager
def waiting(
    manager: ProxyManager,
    consumer: str = "late",
    *,
    pool: str = "pool",
    filters: ProxyFilters | None = None,
) -> Iterator[Future[Lease | None]]:
    """Wait for a proxy in a thread, for a block that lets it be granted."""
    before = waiting_in(manager.storage, pool)
    with ThreadPoolExecutor(1) as thread:
        granted = thread.submit(
            manager.acquire_proxy, pool, consumer, filters=filters, wait_seconds=60
        )
        until(lambda: waiting_in(manager.storage, pool) > before)
        yield granted


def live_with_waits(manager: ProxyManager, advance: Callable[[float], None]) -> None:
    """Lease a pool's only proxy, have "late" wait 0.9 s for it, and "vain" wait for nothing."""
    held = manager.acquire_proxy("pool", "early", 600)
    assert held is not None
    with waiting(manager) as granted:
        advance(0.9)
        manager.release_proxy(held)
    assert granted.result() is not None
    assert manager.acquire_proxy("pool", "vain", wait_seconds=0.01) is None


def add_ticket(storage: PostgresStorage, pool_id: UUID, consumer: str = "elsewhere") -> None:
    """Let a process that nobody runs wait in a pool."""
    run_sql(
        storage.engine,
        "SELECT pharox.queue_v1(gen_random_uuid(), 100, "
        f"'{pool_id}', pharox.clock(), '{consumer}', 'first_available', NULL, NULL, NULL, 0, "
        "false, ARRAY[gen_random_uuid()], false, 60, NULL, NULL, false)",
    )
