"""One process of a soak: it does its work until it is ended, and notes what it was told.

    python -m scripts.soaking.worker KIND URL NAME JOURNAL

A line is appended to the journal for each answer: ``A`` and the id of a lease that
was acquired, ``R`` and the id of one whose release was acknowledged, ``E`` and an
error that a lost connection explains, ``X`` and one that nothing explains. A line
is one write, so a kill leaves none by halves.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

import pharox
from pharox import (
    DatabaseError,
    Delivery,
    HealthChecker,
    HealthCheckOptions,
    HealthCheckOrchestrator,
    HealthCheckResult,
    HealthCheckStrategy,
    Proxy,
    ProxyProtocol,
    ProxyStatus,
    Subscription,
)
from pharox.ledger.rebuild import rebuild

POOL = "soaked"
LEASE_S = 3
TASKS = 4
_PAUSE_S = 0.02
_FORGOTTEN = 0.05
"""A share of leases that are never released, so that some run out."""


class Journal:
    """Where a process notes what it was told."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, what: object) -> None:
        """Append a line."""
        os.write(self._file, f"{kind} {str(what).splitlines()[0] if str(what) else '-'}\n".encode())

    def failed(self, error: Exception) -> None:
        """Note an error: as explained if it is the one for a database that went away."""
        if isinstance(error, DatabaseError):
            self.note("E", type(error).__name__)
        else:
            traceback.print_exc()
            self.note("X", repr(error))


def lease_blocking(url: str, name: str, journal: Journal) -> None:
    """Lease and release, a proxy at a time."""
    manager = pharox.ProxyManager(pharox.connect(url))
    while True:
        try:
            lease = manager.acquire_proxy(POOL, name, LEASE_S)
            if lease is not None:
                journal.note("A", lease.id)
                time.sleep(_PAUSE_S)
                if random.random() > _FORGOTTEN:
                    manager.release_proxy(lease)
                    journal.note("R", lease.id)
        except Exception as error:
            journal.failed(error)
        time.sleep(_PAUSE_S)


def lease_in_tasks(url: str, name: str, journal: Journal) -> None:
    """Lease and release in several tasks of one loop."""
    asyncio.run(_tasks(url, name, journal))


async def _tasks(url: str, name: str, journal: Journal) -> None:
    manager = pharox.AsyncProxyManager(await pharox.connect_async(url))

    async def work(consumer: str) -> None:
        while True:
            try:
                lease = await manager.acquire_proxy(POOL, consumer, LEASE_S)
                if lease is not None:
                    journal.note("A", lease.id)
                    await asyncio.sleep(TASKS * _PAUSE_S)
                    if random.random() > _FORGOTTEN:
                        await manager.release_proxy(lease)
                        journal.note("R", lease.id)
            except Exception as error:
                journal.failed(error)
            await asyncio.sleep(TASKS * _PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(work(f"{name}-{number}"))


class _ByChance(HealthCheckStrategy):
    """Finds most proxies good, some slow and few inactive, without asking anybody."""

    async def check(self, proxy: Proxy, options: HealthCheckOptions) -> HealthCheckResult:
        chances = (ProxyStatus.ACTIVE, ProxyStatus.SLOW, ProxyStatus.INACTIVE)
        return HealthCheckResult(
            proxy_id=proxy.id,
            status=random.choices(chances, (90, 7, 3))[0],
            latency_ms=random.randrange(1_000),
            protocol=proxy.protocol,
            checked_at=datetime.now(UTC),
        )


def sweep(url: str, name: str, journal: Journal) -> None:
    """Check the whole pool again and again, which also takes back what ran out."""
    checker = HealthChecker(strategies={ProxyProtocol.HTTP: _ByChance()})
    orchestrator = HealthCheckOrchestrator(pharox.connect(url), checker)

    async def once() -> None:
        async for _ in orchestrator.sweep():
            pass

    while True:
        try:
            asyncio.run(once())
        except Exception as error:
            journal.failed(error)
        time.sleep(1)


def follow(url: str, name: str, journal: Journal) -> None:
    """Copy each event's seq into a table, in the transaction that moves the checkpoint."""

    def copy(delivery: Delivery) -> None:
        assert delivery.connection is not None
        delivery.connection.execute("INSERT INTO followed (seq) VALUES (%s)", [delivery.seq])

    subscription = Subscription("soak", copy, in_transaction=True, attempts=None)
    while True:
        try:
            subscription.run(pharox.connect(url))
        except Exception as error:
            journal.failed(error)
        time.sleep(0.5)


def rebuild_models(url: str, name: str, journal: Journal) -> None:
    """Make all read models anew, again and again."""
    storage = pharox.connect(url)
    while True:
        time.sleep(5)
        try:
            done = rebuild(storage)
            if done.findings:
                journal.note("X", f"a rebuild found {done.findings[0]}")
        except Exception as error:
            journal.failed(error)


KINDS: dict[str, Callable[[str, str, Journal], None]] = {
    "blocking": lease_blocking,
    "tasks": lease_in_tasks,
    "sweeper": sweep,
    "follower": follow,
    "rebuilder": rebuild_models,
}


def main() -> None:
    kind, url, name, journal = sys.argv[1:]
    KINDS[kind](url, name, Journal(journal))


if __name__ == "__main__":
    main()
