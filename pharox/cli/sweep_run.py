"""Run one sweep after another until a signal.

The first SIGINT or SIGTERM ends the stream of checks: running checks are cancelled,
and results found before are recorded and counted as usual. A later signal has its
default effect.
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
from typing import Any, Self, TypeVar

import httpx

from ..errors import DatabaseUnavailableError, InvalidInputError
from ..health import HealthChecker, HealthCheckOrchestrator, SweepSummary
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
"""Signals within this time count as one: parents often forward what the terminal sent to both."""

Progress = Callable[[int | None], AbstractContextManager[Callable[[], None]]]
"""Shows the progress of about so many checks; yields the function to call after each."""


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
    """The result of a sweep; ``interrupted`` if a signal ended it."""

    pool: str | None
    started_at: datetime = field(default_factory=utc_now)
    seconds: float = 0
    interrupted: bool = False
    summary: SweepSummary = field(default_factory=SweepSummary)


def trusting(authorities: Path) -> ssl.SSLContext:
    """Return an SSL context that trusts the certificates in a file besides the default ones.

    Raises
    ------
    InvalidInputError
        If the file has none.
    """
    context = httpx.create_ssl_context()
    try:
        context.load_verify_locations(authorities)
    except (ssl.SSLError, OSError) as error:
        raise InvalidInputError(f"{authorities} has no readable certificates") from error
    return context


async def sweep_until_stopped(
    storage: PostgresStorage,
    plan: Plan,
    every: timedelta | None,
    progress: Progress,
    report: Callable[[Swept], None],
) -> int | None:
    """Sweep once, or at intervals until a signal; return the signal's number, or None.

    Parameters
    ----------
    every:
        The interval between the starts of two sweeps; the next one begins at once if
        a sweep took longer. None sweeps once.
    report:
        Called with the result of each sweep.

    Raises
    ------
    DatabaseUnavailableError
        If there is only one sweep; repeated sweeps try again.
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
    """Whether a signal requested the program to end; handles signals during a block."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._requested = asyncio.Event()

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
        self._requested.set()
        asyncio.get_running_loop().call_later(_ECHO_S, self._let_go)

    def _let_go(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)

    async def within(self, seconds: float) -> bool:
        """Wait for at most so many seconds, and return whether the end was requested."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._requested.wait()
        return self._requested.is_set()

    async def cutting(self, chunks: AsyncGenerator[list[T], None]) -> AsyncGenerator[list[T], None]:
        """Yield from ``chunks`` until the end is requested, then close it."""
        requested = asyncio.create_task(self._requested.wait())
        try:
            async with aclosing(chunks):
                while not self._requested.is_set() and (chunk := await _unless(requested, chunks)):
                    yield chunk
        finally:
            requested.cancel()


async def _unless(requested: asyncio.Task[bool], chunks: AsyncGenerator[list[T], None]) -> list[T]:
    """Return the next chunk; an empty one at the end, or if ``requested`` is done first."""
    chunk = asyncio.ensure_future(anext(chunks, []))
    try:
        await asyncio.wait({chunk, requested}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        chunk.cancel()
        await asyncio.wait({chunk})
    return [] if chunk.cancelled() else chunk.result()


class _StoppableChecker(HealthChecker):
    """A checker whose streams end when the end of the program is requested."""

    def __init__(self, stop: Stop, plan: Plan) -> None:
        super().__init__(plan.options, ssl_context=plan.ssl_context)
        self._stop = stop

    def stream_chunks(
        self, *arguments: Any, **options: Any
    ) -> AsyncGenerator[list[HealthCheckResult], None]:
        return self._stop.cutting(super().stream_chunks(*arguments, **options))


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
    """Return roughly how many proxies to check, if that is easy to know."""
    if plan.stale_after is not None or plan.statuses is not None:
        return None
    stats = storage.list_pool_stats()
    return sum(pool.total_proxies for pool in stats if plan.pool in (None, pool.pool_name))
