"""One sweep after another, until a signal.

The first SIGINT or SIGTERM ends the stream of checks: those under way are
cancelled, and what had been found before is recorded and counted as ever. A
later one does what it does to any program.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
)
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar

import httpx

from ..errors import DatabaseUnavailableError, InvalidInputError
from ..health import HealthChecker, HealthCheckOrchestrator, SweepSummary
from ..health.checker import CONCURRENCY, Proxies
from ..models import (
    HealthCheckOptions,
    HealthCheckResult,
    HealthPolicy,
    ProxyStatus,
    utc_now,
)
from ..storage.postgres import PostgresStorage
from .showing import say

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 0.25
"""Signals so close together are one: many a parent passes on what the terminal sent to both."""

Progress = Callable[[int | None], AbstractContextManager[Callable[[], None]]]
"""Shows how a sweep of about so many checks goes on; yields what to call after each."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which proxies to check, how, and how many at once."""

    pool: str | None
    options: HealthCheckOptions
    policy: HealthPolicy
    stale_after: timedelta | None
    statuses: list[ProxyStatus] | None
    concurrency: int
    per_host: int | None
    ssl_context: ssl.SSLContext | None


@dataclass(slots=True)
class Swept:
    """What a sweep came to; ``interrupted`` if a signal ended it."""

    pool: str | None
    started_at: datetime = field(default_factory=utc_now)
    seconds: float = 0
    interrupted: bool = False
    summary: SweepSummary = field(default_factory=SweepSummary)


def trusting(authorities: Path) -> ssl.SSLContext:
    """Return a context for TLS that trusts the certificates in a file beside the usual ones.

    Raises
    ------
    InvalidInputError
        If there are none in it.
    """
    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError) as error:
        raise InvalidInputError(f"{authorities} has no certificates that can be read") from error
    return context


async def sweep_until_stopped(
    storage: PostgresStorage,
    plan: Plan,
    every: timedelta | None,
    progress: Progress,
    report: Callable[[Swept], None],
) -> int | None:
    """Sweep once, or at intervals until a signal; return its number, or None.

    Parameters
    ----------
    every:
        From the start of one sweep to that of the next, which begins at once if
        one took longer. None sweeps once.
    report:
        Called with each sweep that came to its end.

    Raises
    ------
    DatabaseUnavailableError
        If there is but one sweep; of several each is tried.
    """
    async with Stop() as stop:
        checker = _StoppableChecker(stop, plan)
        orchestrator = HealthCheckOrchestrator(storage, checker, policy=plan.policy)
        due_at = time.monotonic()
        while True:
            try:
                report(await _sweep(storage, plan, orchestrator, stop, progress))
            except DatabaseUnavailableError as error:
                if every is None:
                    raise
                say(str(error))
            if every is None:
                return stop.signal
            due_at = max(due_at + every.total_seconds(), time.monotonic())
            if await stop.within(due_at - time.monotonic()):
                return stop.signal


class Stop:
    """Whether the program was asked to end, and by which signal; listens for a block."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = asyncio.Event()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._ask, number)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.signal is not None:
            await asyncio.sleep(_ECHO_S)
        self._let_go()

    def _ask(self, number: int) -> None:
        self.signal = self.signal or number
        self._asked.set()
        asyncio.get_running_loop().call_later(_ECHO_S, self._let_go)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    async def within(self, seconds: float) -> bool:
        """Wait for so many seconds at most, and tell whether the end was asked for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        return self._asked.is_set()

    async def cutting(self, chunks: AsyncGenerator[list[T], None]) -> AsyncGenerator[list[T], None]:
        """Yield what ``chunks`` yields until the end is asked for, then close it."""
        asked = asyncio.create_task(self._asked.wait())
        try:
            async with aclosing(chunks):
                while not self._asked.is_set() and (chunk := await _unless(asked, chunks)):
                    yield chunk
        finally:
            asked.cancel()


async def _unless(asked: asyncio.Task[bool], chunks: AsyncGenerator[list[T], None]) -> list[T]:
    """Return the next chunk; none if there is no more, or if ``asked`` is done first."""
    chunk = asyncio.ensure_future(anext(chunks, []))
    try:
        await asyncio.wait({chunk, asked}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        chunk.cancel()
        await asyncio.wait({chunk})
    return [] if chunk.cancelled() else chunk.result()


class _StoppableChecker(HealthChecker):
    """A checker whose streams end when the program is asked to."""

    def __init__(self, stop: Stop, plan: Plan) -> None:
        super().__init__(plan.options, ssl_context=plan.ssl_context)
        self._stop = stop

    def stream_chunks(
        self,
        proxies: Proxies,
        options: HealthCheckOptions | None = None,
        *,
        concurrency: int = CONCURRENCY,
        per_host: int | None = None,
    ) -> AsyncGenerator[list[HealthCheckResult], None]:
        chunks = super().stream_chunks(proxies, options, concurrency=concurrency, per_host=per_host)
        return self._stop.cutting(chunks)


async def _sweep(
    storage: PostgresStorage,
    plan: Plan,
    orchestrator: HealthCheckOrchestrator,
    stop: Stop,
    progress: Progress,
) -> Swept:
    swept, begun = Swept(plan.pool), time.monotonic()
    due = orchestrator.due(plan.pool, stale_after=plan.stale_after, statuses=plan.statuses)
    shown = sys.stderr.isatty()
    total = await asyncio.to_thread(_expected, storage, plan) if shown else None
    outcomes = orchestrator.sweep(
        swept.summary.watch(due), concurrency=plan.concurrency, per_host=plan.per_host
    )
    with progress(total) as advance:
        async with aclosing(outcomes):
            async for outcome in outcomes:
                swept.summary.add(outcome)
                advance()
    swept.seconds = time.monotonic() - begun
    swept.interrupted = stop.signal is not None
    return swept


def _expected(storage: PostgresStorage, plan: Plan) -> int | None:
    """Return about how many proxies there are to check, if that is simple to tell."""
    if plan.stale_after is not None or plan.statuses is not None:
        return None
    stats = storage.list_pool_stats()
    return sum(pool.total_proxies for pool in stats if plan.pool in (None, pool.pool_name))
