"""How many requests a target refuses if proxies rest for it; what that costs, and what limits cost.

A simulated site takes 60 requests of each proxy and then refuses it for 60 seconds, with 429 and
a Retry-After. 4 processes of 8 workers send what they can through 50 exclusive proxies, a request
in 2 seconds, for 10 minutes. All of that is 20 times as fast: 30 seconds. With leases for the
target pharox passes over what rests; without, each worker takes what is free.
"""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from statistics import median
from typing import Any, NamedTuple
from uuid import UUID

import pharox
from pharox import Outcome, Pace, PoolLimits, ProxyManager
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part
from scripts.benchmarks.server import connected, new_ledger, settled

FASTER = 20
PROXIES, PROCESSES, WORKERS = 50, 4, 8
TAKEN, REFUSED_FOR_S = 60, 60.0 / FASTER
REQUEST_S, CRAWL_S = 2.0 / FASTER, 600.0 / FASTER
SITE = "shop.example"
MANY, PAIRS_EACH = 100_000, 10
LEASES = 300
LIMITS = {
    "unlimited": None,
    "bounded": PoolLimits(leases_per_consumer=100),
    "paced": PoolLimits(leases_per_consumer=100, paces=(Pace(starts=10_000, seconds=1),)),
}


class Site:
    """A site that takes so many requests of each proxy, and then none for a while."""

    def __init__(self) -> None:
        self._taken: dict[UUID, int] = defaultdict(int)
        self._refused_until: dict[UUID, float] = {}

    def refuses(self, proxy_id: UUID) -> float | None:
        """Take a request. Return for how many seconds the proxy is refused, or None if not."""
        now = time.monotonic()
        left = self._refused_until.get(proxy_id, 0.0) - now
        if left > 0:
            return left
        self._taken[proxy_id] += 1
        if self._taken[proxy_id] <= TAKEN:
            return None
        self._taken[proxy_id] = 0
        self._refused_until[proxy_id] = now + REFUSED_FOR_S
        return REFUSED_FOR_S


class _Server(BaseManager):
    pass


_Server.register("Site", Site)


class Crawl(NamedTuple):
    """How many requests were sent, and how many of them refused."""

    requests: int
    refused: int


_CRAWLS = (
    Line("requests refused, for the target", "resting refused", "%", goal=goals.TARGETS_REFUSED),
    Line("requests refused, without it", "plain refused", "%"),
    Line("answers a second, for the target", "resting answers"),
    Line("answers a second, without it", "plain answers"),
)
_LEASES = (
    Line("for a target that nothing rests for", "fresh p50", "ms"),
    Line("for one that 90 % rest for", "resting p50", "ms"),
    Line(
        "the latter of the former",
        "resting p50",
        "",
        per="fresh p50",
        goal=goals.TARGETS_MANY_PAIRS,
    ),
)
_LIMITED = (
    Line("in a pool without limits", "unlimited p50", "ms"),
    Line("bounded for its consumer", "bounded p50", "ms"),
    Line("and paced for its proxy", "paced p50", "ms"),
    Line("the second of the first", "bounded p50", "", per="unlimited p50"),
    Line("the third of the first", "paced p50", "", per="unlimited p50"),
)


def prepare(bench: Bench) -> list[Part]:
    """Return the parts: the crawl, a lease where a million pairs rest, and one within limits."""
    url = ""

    def many_pairs() -> Figures:
        nonlocal url
        url = url or _with_many_pairs(bench)
        return _leases(url)

    title = f"2. A lease of {MANY:,} proxies while {MANY * PAIRS_EACH * 9 // 10:,} pairs rest"
    return [
        Part(
            "crawl",
            {"1. A site that refuses each proxy after 60 requests for 60 seconds": _CRAWLS},
            lambda: _crawls(bench),
        ),
        Part("leases", {title: _LEASES}, many_pairs),
        Part("limits", {"3. A lease within limits": _LIMITED}, lambda: _limited(bench)),
    ]


def _crawls(bench: Bench) -> Figures:
    figures: Figures = {}
    for name, target in (("resting", SITE), ("plain", None)):
        crawl = _crawl(bench, target)
        figures[f"{name} refused"] = 100 * crawl.refused / crawl.requests
        figures[f"{name} answers"] = (crawl.requests - crawl.refused) / CRAWL_S
    return figures


def _crawl(bench: Bench, target: str | None) -> Crawl:
    url = new_ledger(bench.url, "crawled", {"pool": PROXIES})
    settled(url)
    context = get_context("spawn")
    with _Server(ctx=context) as server, ProcessPoolExecutor(PROCESSES, context) as pool:
        site = server.Site()  # type: ignore[attr-defined] # as registered
        begins = time.time() + 8  # until all of them have started, on two cores
        futures = [
            pool.submit(_process, url, site, target, number, begins) for number in range(PROCESSES)
        ]
        crawls = [each.result() for each in futures]
    return Crawl(*map(sum, zip(*crawls, strict=True)))


def _process(url: str, site: Any, target: str | None, number: int, begins: float) -> Crawl:
    with closing(pharox.connect(url)) as storage, ThreadPoolExecutor(WORKERS) as pool:
        manager = ProxyManager(storage)
        storage.list_pools()
        time.sleep(max(0.0, begins - time.time()))

        def work(worker: int) -> Crawl:
            return _work(manager, site, target, f"w{number}-{worker}", begins + CRAWL_S)

        return Crawl(*map(sum, zip(*pool.map(work, range(WORKERS)), strict=True)))


def _work(manager: ProxyManager, site: Any, target: str | None, worker: str, until: float) -> Crawl:
    """Send requests until a time of the wall clock."""
    requests = refused = 0
    while (left := until - time.time()) > 0:
        lease = manager.acquire_proxy("pool", worker, 60, wait_seconds=left, target=target)
        if lease is None:
            break
        time.sleep(REQUEST_S)
        retry_after = site.refuses(lease.proxy_id)
        requests += 1
        if retry_after is None:
            outcome = Outcome.ok(SITE, status=200)
        else:
            refused += 1
            outcome = Outcome.blocked(SITE, status=429, retry_after=retry_after)
        manager.release_proxy(lease, outcome=outcome)
    return Crawl(requests, refused)


def _with_many_pairs(bench: Bench) -> str:
    """Return the URL of a ledger where most proxies, the first in the order, rest for targets."""
    url = new_ledger(bench.url, "resting", {"pool": MANY})
    with connected(url) as connection:
        connection.execute(
            """
            INSERT INTO pharox.target_outcomes
            SELECT pool_id, proxy_id, 't' || number || '.example', 0, 2, -2, 1,
                   now() + interval '1 day', 'blocked', 403, now()
            FROM (
                SELECT pool_id, proxy_id
                FROM pharox.available_proxies
                ORDER BY lease_rank, checked_at DESC, proxy_id
                LIMIT %s
            ) AS first, generate_series(1, %s) AS number
            """,
            (MANY * 9 // 10, PAIRS_EACH),
        )
    settled(url)
    return url


def _leases(url: str) -> Figures:
    """Return the time of a lease for either kind of target, in turns."""
    times: dict[str, list[float]] = {"fresh": [], "resting": []}
    with closing(pharox.connect(url)) as storage:
        manager = ProxyManager(storage)
        for _ in range(LEASES):
            for name, target in (("fresh", "fresh.example"), ("resting", "t1.example")):
                times[name].append(_timed(manager, "pool", target))
    return {f"{name} p50": 1000 * median(each) for name, each in times.items()}


def _limited(bench: Bench) -> Figures:
    """Return the time of a lease in pools with limits that are never reached, in turns."""
    url = new_ledger(bench.url, "limited", dict.fromkeys(LIMITS, 200))
    settled(url)
    times: dict[str, list[float]] = {name: [] for name in LIMITS}
    with closing(pharox.connect(url)) as storage:
        manager = ProxyManager(storage)
        for pool in storage.list_pools():
            storage.save_pool(pool.model_copy(update={"limits": LIMITS[pool.name]}))
        for _ in range(LEASES):
            for name in LIMITS:
                times[name].append(_timed(manager, name))
    return {f"{name} p50": 1000 * median(each) for name, each in times.items()}


def _timed(manager: ProxyManager, pool: str, target: str | None = None) -> float:
    begun = time.perf_counter()
    lease = manager.acquire_proxy(pool, "worker", target=target)
    took = time.perf_counter() - begun
    assert lease is not None
    manager.release_proxy(lease)
    return took
