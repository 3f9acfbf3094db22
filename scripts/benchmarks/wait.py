"""How long callers wait for a proxy, and how fair it is.

20 workers share 2 proxies, each job takes 0.1 s. With one place in a fair queue every
worker waits for the 18 others' jobs on 2 proxies, 0.9 s, and gets its share. ``retry`` is what
0.11.0 offers instead: to ask again after a pause that grows. A hand-over is from the
release to the waiter's return from its call, with nothing else going on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from statistics import median, quantiles
from typing import NamedTuple

import pharox
from pharox import AsyncProxyManager, Lease, ProxyManager
from scripts.benchmarks import goals
from scripts.benchmarks.parts import Bench, Figures, Line, Part, Tables
from scripts.benchmarks.server import connected, new_ledger, processor_s, settled

WORKERS, PROXIES, JOB_S = 20, 2, 0.1
SECONDS = 15.0
WAIT_S = 30.0
WAITERS = 1000
HAND_OVERS = 200

Job = tuple[str, float, float]
"""Who had a proxy: its worker, how long it waited for it, and when it had it."""


class Fairness(NamedTuple):
    """What the workers had."""

    p95: float
    longest: float
    fewest: int
    most: int
    misses: int
    busy: float


def _lines(name: str) -> tuple[Line, ...]:
    return (
        Line("p95 of the waits", f"{name} p95", "s", goal=goals.WAIT_P95),
        Line("longest wait", f"{name} longest", "s", goal=goals.WAIT_LONGEST),
        Line("fewest jobs of a worker", f"{name} fewest", "", goal=goals.WAIT_FEWEST),
        Line("most jobs of a worker", f"{name} most", "", goal=goals.WAIT_MOST),
        Line("misses in the log", f"{name} misses", "", goal=goals.NO_ERRORS),
        Line("of the time the proxies were in use", f"{name} busy", "", goal=goals.WAIT_BUSY),
    )


_RETRY = tuple(line._replace(goal=None) for line in _lines("retry"))
_HAND_OVER = tuple(
    line
    for where in ("the same process", "another process")
    for line in (
        Line(f"p50, to {where}", f"{where} p50", "ms", goal=goals.WAIT_HAND_OVER_P50),
        Line(f"p99, to {where}", f"{where} p99", "ms", goal=goals.WAIT_HAND_OVER_P99),
    )
)
_IDLE = (Line("of a core in the server", "idle server", "%", goal=goals.WAIT_IDLE),)


def prepare(bench: Bench) -> list[Part]:
    """Return the parts: three kinds of workers, the retry helper, hand-overs, and who is idle."""
    ways: dict[str, Callable[[str], Fairness]] = {
        "threads": _threads,
        "tasks": lambda url: asyncio.run(_tasks(url)),
        "processes": _processes,
        "retry": _retrying,
    }

    def measured(name: str) -> Callable[[], Figures]:
        def measure() -> Figures:
            url = _ledger(bench, PROXIES)
            return {f"{name} {what}": n for what, n in ways[name](url)._asdict().items()}

        return measure

    titles: dict[str, Tables] = {
        "threads": {"1. 20 threads that wait for 2 proxies": _lines("threads")},
        "tasks": {"2. 20 tasks that wait for 2 proxies": _lines("tasks")},
        "processes": {"3. 20 processes that wait for 2 proxies": _lines("processes")},
        "retry": {"4. 20 threads that retry as with 0.11.0": _RETRY},
    }
    return [
        *(Part(name, table, measured(name)) for name, table in titles.items()),
        Part(
            "hand-over",
            {"5. From a release to the waiter's return": _HAND_OVER},
            lambda: _hand_overs(bench),
        ),
        Part(
            "idle",
            {"6. 1,000 waiters of one process, and nothing else": _IDLE},
            lambda: _idle(bench),
        ),
    ]


def _ledger(bench: Bench, proxies: int) -> str:
    url = new_ledger(bench.url, "waited", {"pool": proxies})
    settled(url)
    return url


# Workers


def _work(manager: ProxyManager, worker: str, until: float, **options: float) -> list[Job]:
    """Lease and work until a time of the wall clock."""
    jobs = []
    while (begun := time.time()) < until:
        lease = manager.acquire_proxy("pool", worker, **options)  # type: ignore[arg-type]
        if lease is not None:
            jobs.append(_job(worker, begun))
            time.sleep(JOB_S)
            manager.release_proxy(lease)
    return jobs


def _job(worker: str, begun: float) -> Job:
    now = time.time()
    return worker, now - begun, now


def _threads(url: str) -> Fairness:
    until = time.time() + SECONDS
    with closing(pharox.connect(url)) as storage, ThreadPoolExecutor(WORKERS) as pool:
        manager = ProxyManager(storage)
        futures = [
            pool.submit(_work, manager, f"w{n}", until, wait_seconds=WAIT_S) for n in range(WORKERS)
        ]
        return _judged(url, [job for each in futures for job in each.result()], until)


async def _tasks(url: str) -> Fairness:
    until = time.time() + SECONDS
    jobs: list[Job] = []

    async def work(manager: AsyncProxyManager, worker: str) -> None:
        while (begun := time.time()) < until:
            lease = await manager.acquire_proxy("pool", worker, wait_seconds=WAIT_S)
            if lease is not None:
                jobs.append(_job(worker, begun))
                await asyncio.sleep(JOB_S)
                await manager.release_proxy(lease)

    async with await pharox.connect_async(url) as storage:
        manager = AsyncProxyManager(storage)
        await asyncio.gather(*(work(manager, f"w{n}") for n in range(WORKERS)))
    return _judged(url, jobs, until)


def _process(url: str, worker: str, begins: float, until: float) -> list[Job]:
    with closing(pharox.connect(url)) as storage:
        manager = ProxyManager(storage)
        storage.list_pools()
        time.sleep(max(0.0, begins - time.time()))
        return _work(manager, worker, until, wait_seconds=WAIT_S)


def _processes(url: str) -> Fairness:
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        begins = time.time() + 25  # until all of them have started, on two cores
        until = begins + SECONDS
        futures = [pool.submit(_process, url, f"w{n}", begins, until) for n in range(WORKERS)]
        return _judged(url, [job for each in futures for job in each.result()], until)


def _retrying(url: str) -> Fairness:
    until = time.time() + SECONDS
    jobs: list[Job] = []

    def work(manager: ProxyManager, worker: str) -> None:
        while (begun := time.time()) < until:
            lease = manager.acquire_proxy_with_retry(
                "pool", worker, max_attempts=10_000, backoff_seconds=0.05, max_backoff_seconds=2
            )
            if lease is not None:
                jobs.append(_job(worker, begun))
                time.sleep(JOB_S)
                manager.release_proxy(lease)

    with closing(pharox.connect(url)) as storage, ThreadPoolExecutor(WORKERS) as pool:
        manager = ProxyManager(storage)
        for each in [pool.submit(work, manager, f"w{n}") for n in range(WORKERS)]:
            each.result()
    return _judged(url, jobs, until)


def _judged(url: str, jobs: Sequence[Job], until: float) -> Fairness:
    """Return what the workers had, counting the jobs that began in time."""
    waits = sorted(wait for _, wait, _ in jobs)
    counted = [(worker, at) for worker, _, at in jobs if at < until]
    grants = Counter(worker for worker, _ in counted)
    with connected(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pharox.events WHERE type = 'AcquireMissed'"
        ).fetchone()
    assert row is not None
    return Fairness(
        p95=quantiles(waits, n=20)[-1],
        longest=waits[-1],
        fewest=min(grants.values()) if len(grants) == WORKERS else 0,
        most=max(grants.values()),
        misses=int(row[0]),
        busy=len(counted) * JOB_S / PROXIES / SECONDS,
    )


# Hand-overs


def _hand_overs(bench: Bench) -> Figures:
    url = _ledger(bench, 1)
    figures: Figures = {}
    with (
        closing(pharox.connect(url)) as storage,
        closing(pharox.connect(url)) as other,  # a storage of its own is as another process
        ThreadPoolExecutor(1) as pool,
    ):
        releasing, waiting = ProxyManager(storage), ProxyManager(other)
        for where, taker in (("the same process", releasing), ("another process", waiting)):
            times = [_hand_over(releasing, taker, pool) for _ in range(HAND_OVERS)]
            figures[f"{where} p50"] = 1000 * median(times)
            figures[f"{where} p99"] = 1000 * quantiles(times, n=100)[-1]
    return figures


def _hand_over(giver: ProxyManager, taker: ProxyManager, pool: ThreadPoolExecutor) -> float:
    held = giver.acquire_proxy("pool", "giver")
    assert held is not None

    def take() -> tuple[Lease | None, float]:
        lease = taker.acquire_proxy("pool", "taker", wait_seconds=WAIT_S)
        return lease, time.perf_counter()

    taking = pool.submit(take)
    time.sleep(0.02)  # until it waits
    begun = time.perf_counter()
    giver.release_proxy(held)
    lease, taken = taking.result()
    assert lease is not None
    taker.release_proxy(lease)
    return taken - begun


# Idle waiters


def _idle(bench: Bench) -> Figures:
    url = _ledger(bench, 1)
    return {"idle server": asyncio.run(_wait_idly(url, max(bench.seconds, 10.0)))}


async def _wait_idly(url: str, seconds: float) -> float:
    async with await pharox.connect_async(url) as storage:
        manager = AsyncProxyManager(storage)
        held = await manager.acquire_proxy("pool", "holder", duration_seconds=600)
        assert held is not None
        waiting = [
            asyncio.create_task(manager.acquire_proxy("pool", f"w{n % 50}", wait_seconds=600))
            for n in range(WAITERS)
        ]
        await asyncio.sleep(5)
        begun, spent = time.monotonic(), processor_s(url)
        await asyncio.sleep(seconds)
        spent, passed = processor_s(url) - spent, time.monotonic() - begun
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return 100 * spent / passed
