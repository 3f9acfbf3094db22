"""Callers of one process that lease as fast as possible: threads, tasks, or one with sets.

Each function runs in a new process. It returns the cycles between a common start and a deadline,
and the processor time that they took here and in the server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from statistics import fmean, quantiles
from typing import Any, Concatenate, NamedTuple, ParamSpec

import pharox
from pharox import AsyncProxyManager, Lease, ProxyManager
from scripts.benchmarks.server import connected, processor_s

P = ParamSpec("P")

INSERT = "INSERT INTO floor (v) VALUES (1)"
"""One commit of a floor, into the table of :func:`make_floor`."""

HAS_SETS = hasattr(ProxyManager, "acquire_proxies")
"""Whether a manager leases sets. Without that, a set is leased one by one."""

_PATIENCE_S = 60
WARM, WARM_SETS = 20, 5
"""Cycles of each caller, and sets, before the start: plans are prepared, caches filled."""

_group: Barrier | None = None


class Run(NamedTuple):
    """The result of callers; a cycle is a proxy that was leased and released.

    ``p50_ms`` and ``p99_ms`` are those of a call that acquires, or of a floor's
    commit. ``amiss`` counts misses and errors.
    """

    seconds: float
    cycles: int
    amiss: int
    cpu_s: float
    server_s: float
    p50_ms: float
    p99_ms: float

    @property
    def rate(self) -> float:
        """Cycles a second."""
        return self.cycles / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Processor time of a cycle in the callers' processes."""
        return 1000 * self.cpu_s / self.cycles

    @property
    def server_ms(self) -> float:
        """Processor time of a cycle in the server."""
        return 1000 * self.server_s / self.cycles


def threads(url: str, pool: str, callers: int, seconds: float) -> Run:
    """Lease from threads that share a manager."""
    meter = _Meter(url)
    storage = pharox.connect(url)
    manager = ProxyManager(storage)
    _listen(manager)
    ready = threading.Barrier(callers, meter.start)

    def work(consumer: str) -> None:
        for _ in range(WARM):
            _cycle(manager, pool, consumer)
        ready.wait(_PATIENCE_S)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            meter.note(*_cycle(manager, pool, consumer))

    started = [
        threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(callers)
    ]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    run = meter.stop(seconds)
    storage.close()
    return run


def tasks(url: str, pool: str, callers: int, seconds: float) -> Run:
    """Lease from tasks that share a manager."""
    return asyncio.run(_tasks(url, pool, callers, seconds))


def sets(url: str, pool: str, size: int, seconds: float) -> Run:
    """Lease sets of so many proxies from one thread."""
    meter = _Meter(url)
    storage = pharox.connect(url)
    manager = ProxyManager(storage)
    _listen(manager)
    for _ in range(WARM_SETS):
        _release_set(manager, _acquire_set(manager, pool, size))
    meter.start()
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        leases = _acquire_set(manager, pool, size)
        acquired_s = time.monotonic() - began
        _release_set(manager, leases)
        meter.note("cycles", acquired_s, len(leases))
    run = meter.stop(seconds)
    storage.close()
    return run


def inserts(url: str, seconds: float) -> Run:
    """Commit two single-row INSERTs a cycle, through bare psycopg."""
    meter = _Meter(url)
    with connected(url) as connection:
        for _ in range(2 * WARM):
            connection.execute(INSERT)
        meter.start()
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            connection.execute(INSERT)
            committed_s = time.monotonic() - began
            connection.execute(INSERT)
            meter.note("cycles", committed_s)
        return meter.stop(seconds)


def in_processes(
    processes: int,
    function: Callable[Concatenate[str, P], Run],
    url: str,
    *arguments: P.args,
    **named: P.kwargs,
) -> Run:
    """Run a function in several new processes that start together; return their joint result."""
    runs = side_by_side([partial(function, url, *arguments, **named)] * processes)
    return Run(
        seconds=fmean(run.seconds for run in runs),
        cycles=sum(run.cycles for run in runs),
        amiss=sum(run.amiss for run in runs),
        cpu_s=sum(run.cpu_s for run in runs),
        server_s=fmean(run.server_s for run in runs),  # each of them saw the whole server
        p50_ms=fmean(run.p50_ms for run in runs),
        p99_ms=fmean(run.p99_ms for run in runs),
    )


def side_by_side(calls: Sequence[Callable[[], Run]]) -> list[Run]:
    """Run each of these in a new process, all from a common start; return their results."""
    context = get_context("spawn")
    group = context.Barrier(len(calls))
    with ProcessPoolExecutor(len(calls), context, _join, (group,)) as pool:
        return [asked.result() for asked in [pool.submit(call) for call in calls]]


def make_floor(url: str) -> None:
    """Make the table of a floor."""
    with connected(url) as connection:
        connection.execute("CREATE TABLE floor (id bigserial PRIMARY KEY, v int)")


class _Meter:
    """Counts cycles and processor time between a start and a stop."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._counts: Counter[str] = Counter()
        self._acquired_s: list[float] = []

    def start(self) -> None:
        """Begin together with the other processes of the group."""
        if _group is not None:
            _group.wait(_PATIENCE_S)
        self._server_s, self._cpu_s = processor_s(self._url), time.process_time()

    def note(self, outcome: str, acquired_s: float, cycles: int = 1) -> None:
        """Count the result of a call, and the time that the acquisition took."""
        self._counts[outcome] += cycles
        self._acquired_s.append(acquired_s)

    def stop(self, seconds: float) -> Run:
        """Return the result since the start."""
        cpu_s = time.process_time() - self._cpu_s
        cuts = quantiles(self._acquired_s, n=100)
        return Run(
            seconds=seconds,
            cycles=self._counts["cycles"],
            amiss=self._counts["misses"] + self._counts["errors"],
            cpu_s=cpu_s,
            server_s=processor_s(self._url) - self._server_s,
            p50_ms=1000 * cuts[49],
            p99_ms=1000 * cuts[98],
        )


def _join(group: Barrier) -> None:
    global _group  # noqa: PLW0603 - how an initializer hands something to its process
    _group = group


def _listen(manager: ProxyManager | AsyncProxyManager) -> None:
    """Listen as a worker that reports metrics would."""
    manager.register_acquire_callback(lambda payload: payload.duration_ms)
    manager.register_release_callback(lambda payload: payload.lease_duration_ms)


def _cycle(manager: ProxyManager, pool: str, consumer: str) -> tuple[str, float]:
    began = time.monotonic()
    try:
        lease = manager.acquire_proxy(pool, consumer)
        acquired_s = time.monotonic() - began
        if lease is None:
            return "misses", acquired_s
        manager.release_proxy(lease)
    except Exception:
        return "errors", time.monotonic() - began
    return "cycles", acquired_s


async def _tasks(url: str, pool: str, callers: int, seconds: float) -> Run:
    meter = _Meter(url)
    storage = await pharox.connect_async(url)
    manager = AsyncProxyManager(storage)
    _listen(manager)

    async def warm(consumer: str) -> None:
        for _ in range(WARM):
            await _async_cycle(manager, pool, consumer)

    async def work(consumer: str) -> None:
        while time.monotonic() < until:
            meter.note(*await _async_cycle(manager, pool, consumer))

    consumers = [f"worker-{number}" for number in range(callers)]
    await asyncio.gather(*map(warm, consumers))
    meter.start()
    until = time.monotonic() + seconds
    await asyncio.gather(*map(work, consumers))
    run = meter.stop(seconds)
    await storage.close()
    return run


async def _async_cycle(manager: AsyncProxyManager, pool: str, consumer: str) -> tuple[str, float]:
    began = time.monotonic()
    try:
        lease = await manager.acquire_proxy(pool, consumer)
        acquired_s = time.monotonic() - began
        if lease is None:
            return "misses", acquired_s
        await manager.release_proxy(lease)
    except Exception:
        return "errors", time.monotonic() - began
    return "cycles", acquired_s


def _acquire_set(manager: Any, pool: str, size: int) -> list[Lease]:
    if HAS_SETS:
        leases: list[Lease] = manager.acquire_proxies(pool, size)
        return leases
    return [lease for _ in range(size) if (lease := manager.acquire_proxy(pool)) is not None]


def _release_set(manager: Any, leases: list[Lease]) -> None:
    if HAS_SETS:
        manager.release_proxies(leases)
        return
    for lease in leases:
        manager.release_proxy(lease)
