"""Run one sweep after another until a signal.

The first SIGINT or SIGTERM ends the stream of checks: running checks are cancelled,
and results found before are recorded and counted as usual.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
)
from contextlib import AbstractContextManager, aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from ..effects import call, run
from ..errors import InvalidInputError, PharoxError
from ..health import HealthChecker, HealthCheckOrchestrator, SweepSummary
from ..history.describing import counted
from ..manager.rotator import calling_due, fetch_in_thread
from ..models import (
    HealthCheckOptions,
    HealthCheckResult,
    HealthPolicy,
    ProxyStatus,
    utc_now,
)
from ..storage.postgres import PostgresStorage
from .repeating import Stop, repeat_until_stopped
from .showing import say

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

        calls: asyncio.Task[None] | None = None

        async def once() -> None:
            nonlocal calls
            # Links that take long hold up no checks: those of the next round are called then.
            if calls is None or calls.done():
                calls = asyncio.create_task(asyncio.to_thread(_call_links, storage, stop))
            report(await _sweep(storage, plan, orchestrator, stop, progress))

        try:
            return await repeat_until_stopped(stop, once, every)
        finally:
            if calls is not None:
                await calls  # What came of the calls that are under way is recorded.


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


def _call_links(storage: PostgresStorage, stop: Stop) -> None:
    """Call the links of mobile proxies that nobody called who should have."""
    program = calling_due(storage, fetch_in_thread, lambda: stop.signal is not None)
    try:
        answers = run(program, call)
    except PharoxError as error:
        say(f"links could not be called: {error}")
        return
    except Exception as error:  # The checks go on. Its text may have what is secret.
        say(f"links could not be called: {type(error).__name__}")
        return
    if answers:
        rotated = sum(answer.is_rotated for answer in answers)
        say(f"{rotated} of {counted(len(answers), 'link', 'links')} gave another exit")


def _expected(storage: PostgresStorage, plan: Plan) -> int | None:
    """Return roughly how many proxies to check, if that is easy to know."""
    if plan.stale_after is not None or plan.statuses is not None:
        return None
    stats = storage.list_pool_stats()
    return sum(pool.total_proxies for pool in stats if plan.pool in (None, pool.pool_name))
