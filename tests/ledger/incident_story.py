"""An incident to report: twelve proxies, six consumers, a quarter of an hour that goes wrong.

Five minutes in, a site bans three proxies and two more become slow; a bulk job
leases what is left and crashes with what it holds, so the others find nothing
until its leases run out and a person lifts the bans.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from uuid import UUID

import pharox
from pharox import (
    HealthCheckResult,
    Lease,
    Proxy,
    ProxyFilters,
    ProxyManager,
    ProxyPool,
    ProxyStatus,
    SelectorStrategy,
)
from tests.conftest import AnyStorage, Clock, clock_of

START = datetime.fromisoformat("2026-01-01T10:00:00Z")
MINUTE = 60.0
WORKERS = ("checkout", "price-watch", "search-eu", "search-us", "sitemap")
BULK = "bulk-import"


class Incident:
    """Plays the incident into a ledger, second by second of its own clock."""

    def __init__(self, storage: AnyStorage, *, seed: int = 1) -> None:
        self.storage = storage
        self.manager = ProxyManager(storage)
        self.clock: Clock = clock_of(storage)
        self.clock.advance((START - timedelta(minutes=2) - self.clock.now).total_seconds())
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._hoard: list[Lease] = []
        self.pool = ProxyPool(name="residential-eu")
        storage.save_pool(self.pool)
        self.proxies = [
            Proxy(
                id=UUID(int=n),  # which decides between proxies that were used as often
                host=f"gw{n}.proxies.example",
                port=8000 + n % 3,
                protocol="http" if n % 4 else "socks5",
                pool_id=self.pool.id,
                status=ProxyStatus.ACTIVE,
                max_concurrency=1 if n < 10 else 2,
                country="DE" if n % 3 else "FR",
            )
            for n in range(1, 13)
        ]
        storage.add_proxies_bulk(self.proxies)

    def play(self, minutes: float = 17) -> None:
        for number, worker in enumerate(WORKERS):
            for copy in range(2 if number % 2 else 1):
                self._at(3.0 * number + 7 * copy, partial(self._work, worker))
        for half_minute in range(int(2 * minutes)):
            self._at(30 * half_minute, self._probe)
        self._at(7 * MINUTE, lambda: self._check(1, ProxyStatus.SLOW, latency_ms=4200))
        self._at(7 * MINUTE + 4, lambda: self._check(6, ProxyStatus.SLOW, latency_ms=3900))
        for n, delay in ((2, 1), (3, 9), (7, 12)):
            self._at(7 * MINUTE + delay, partial(self._check, n, ProxyStatus.BANNED, error="403"))
        self._at(7.4 * MINUTE, self._take_all)
        self._at(12 * MINUTE, lambda: self._lift(2, 3, 7))
        self._at(12.5 * MINUTE, lambda: self._check(1, ProxyStatus.ACTIVE, latency_ms=240))
        self._at(12.7 * MINUTE, lambda: self._check(6, ProxyStatus.ACTIVE, latency_ms=310))
        begin = self.clock.now
        while self._due and self._due[0][0] <= minutes * MINUTE:
            second, _, act = heapq.heappop(self._due)
            passed = (self.clock.now - begin).total_seconds()
            self.clock.advance(max(0.0, second - passed))
            act()

    def _at(self, second: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._due, (second, next(self._order), act))

    @property
    def _second(self) -> float:
        return (self.clock.now - START).total_seconds() + 2 * MINUTE

    def _work(self, worker: str) -> None:
        filters = ProxyFilters(country="DE") if worker == "search-eu" else None
        with pharox.attributed(correlation_id=f"{worker}-{int(self._second)}"):
            lease = self.manager.acquire_proxy(
                self.pool.name, worker, 90, filters=filters, selector=SelectorStrategy.LEAST_USED
            )
        if lease is None:
            self._at(self._second + self._random.uniform(2, 5), lambda: self._work(worker))
            return
        held = self._random.uniform(12, 55)
        if self._random.random() < 0.04:
            self._at(self._second + 95, lambda: self._work(worker))
            return
        self._at(self._second + held, lambda: self._done(worker, lease))

    def _done(self, worker: str, lease: Lease) -> None:
        self.manager.release_proxy(lease)
        self._at(self._second + self._random.uniform(0.5, 6), lambda: self._work(worker))

    def _take_all(self) -> None:
        lease = self.manager.acquire_proxy(self.pool.name, BULK, 180)
        if lease is not None:
            self._hoard.append(lease)
        if self._second < 8.5 * MINUTE:
            self._at(self._second + self._random.uniform(1, 4), self._take_all)

    def _probe(self) -> None:
        self.manager.cleanup_expired_leases()
        self._check(9, ProxyStatus.ACTIVE, latency_ms=self._random.randint(150, 400))

    def _check(
        self, n: int, status: ProxyStatus, *, latency_ms: int = 0, error: str | None = None
    ) -> None:
        proxy = self.proxies[n - 1]
        self.storage.apply_health_check_result(
            HealthCheckResult(
                proxy_id=proxy.id,
                status=status,
                latency_ms=latency_ms,
                protocol=proxy.protocol,
                checked_at=self.clock.now,
                error_message=error,
            )
        )

    def _lift(self, *numbers: int) -> None:
        for n in numbers:
            self.storage.save_proxy(
                self.proxies[n - 1].model_copy(update={"status": ProxyStatus.ACTIVE})
            )
