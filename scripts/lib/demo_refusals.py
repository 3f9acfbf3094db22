"""A simulated site that refuses each exit after a few requests, and what is sent to it."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple
from uuid import UUID

from pharox import Outcome, Proxy, ProxyManager, ProxyPool
from pharox.integrations.testing import Behaviour, Script, Verdict

SITE = "shop.example"
TAKEN, REFUSED_FOR_S = 5, 1.0
WORKERS, EXITS = 20, 20
CRAWL_S, REQUEST_S = 2.0, 0.02


class Site:
    """A site that takes so many requests of each exit, and then none for a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        behaviour = Behaviour(blocks_after=TAKEN, blocks_for_s=REFUSED_FOR_S)
        self._exits: dict[UUID, Script] = defaultdict(lambda: Script(behaviour))

    def refuses(self, exit_id: UUID) -> float | None:
        """Take a request. Return for how many seconds the exit is refused, or None if not."""
        time.sleep(REQUEST_S)
        with self._lock:
            now, script = time.monotonic(), self._exits[exit_id]
            is_refused = script.decide(now) is Verdict.REFUSED
            return script.refused_for_s(now) if is_refused else None


class Crawl(NamedTuple):
    """How many requests the site answered, and how many it refused."""

    answered: int
    refused: int

    def __str__(self) -> str:
        share = 100 * self.refused / max(1, self.answered + self.refused)
        return f"{self.answered:>5} pages, {self.refused:>5} requests refused ({share:.0f} %)"


def pool_of_exits(manager: ProxyManager, name: str) -> list[Proxy]:
    """Register a pool of exits that exist in this demo only, and return them."""
    pool = ProxyPool(name=name)
    exits = [
        Proxy(
            host=f"192.0.2.{number}",
            port=8000,
            protocol="http",
            pool_id=pool.id,
            status="active",
            max_concurrency=1,
        )
        for number in range(1, EXITS + 1)
    ]
    manager.storage.save_pool(pool)
    manager.storage.add_proxies_bulk(exits)
    return exits


def by_chance(exits: list[Proxy]) -> Crawl:
    """Crawl with an exit at random for each request, as scripts do."""
    site = Site()

    def send(_worker: str, _until: float) -> bool:
        return site.refuses(random.choice(exits).id) is None

    return _crawl(send)


def with_leases(manager: ProxyManager, pool: str) -> Crawl:
    """Crawl with a lease for the site for each request, and report what it said."""
    site = Site()

    def send(worker: str, until: float) -> bool | None:
        left = max(0.0, until - time.monotonic())
        lease = manager.acquire_proxy(pool, worker, 30, wait_seconds=left, target=SITE)
        if lease is None:
            return None
        retry_after = site.refuses(lease.proxy_id)
        if retry_after is None:
            outcome = Outcome.ok(status=200)
        else:
            outcome = Outcome.blocked(status=429, retry_after=retry_after)
        manager.release_proxy(lease, outcome=outcome)
        return retry_after is None

    return _crawl(send)


def _crawl(send: Callable[[str, float], bool | None]) -> Crawl:
    until = time.monotonic() + CRAWL_S

    def work(number: int) -> list[bool]:
        answers = []
        while time.monotonic() < until:
            answer = send(f"crawler-{number}", until)
            if answer is not None:
                answers.append(answer)
        return answers

    with ThreadPoolExecutor(WORKERS) as threads:
        answers = [each for of_worker in threads.map(work, range(WORKERS)) for each in of_worker]
    return Crawl(answers.count(True), answers.count(False))


@contextmanager
def failing_site(manager: ProxyManager, pool: str) -> Iterator[int]:
    """Lease all exits of a pool for a site that is down, and report that; yield how many."""
    leases = []
    while (lease := manager.acquire_proxy(pool, "crawler", 30, target="down.example")) is not None:
        leases.append(lease)
    for lease in leases:
        manager.report(lease, Outcome.target_failed(status=503))
        manager.report(lease, Outcome.unclear(note="connection reset"))
    try:
        yield len(leases)
    finally:
        manager.release_proxies(leases)
