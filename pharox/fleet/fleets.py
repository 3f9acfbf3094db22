"""Fleet and AsyncFleet: the ledgers, their directory, and one manager for all of them.

Connecting opens no connection, so a ledger that is down keeps nobody from the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from pharox.log import Extract

from ..effects import Calls, call, call_async, run, run_async
from ..events import Event
from ..history.audit import Entry
from ..manager import AsyncProxyManager, ProxyManager
from ..manager.leasing import if_given
from ..manager.reporting import REPORTED_FAILURES
from ..manager.ruling import OutcomeOf
from ..models import HealthPolicy, HeldLease, PoolMove, PoolPlace, PoolStatsSnapshot
from ..storage.closing import finishing
from .directory import Directory
from .ledgers import Ledger, open_ledger, open_ledger_async
from .managers import AsyncFleetManager, FleetManager
from .merging import (
    InLedger,
    LedgerStatus,
    Merged,
    counting,
    merged,
    reading_all,
    statuses,
    together,
    together_async,
)
from .moving import MoveOptions, cancelling_in, moving_in
from .past import Logs, Past, events_by_time, in_threads, log_of, story_by_time
from .reading import leases_of, moves_of, stats_of
from .settings import FleetSettings, read_settings

M = TypeVar("M")
T = TypeVar("T")
Given = str | Path | Mapping[str, Any] | FleetSettings


class AnyFleet(Generic[M]):
    """What both kinds of fleets are made of.

    Attributes
    ----------
    ledgers:
        All ledgers by name, in the order of the settings; each has a ``storage`` and a ``manager``.
    home:
        The one that keeps the directory.
    directory:
        Which pool is in which ledger.
    """

    def __init__(self, settings: FleetSettings, ledgers: Mapping[str, Ledger[Any, M]]) -> None:
        self.settings = settings
        self.ledgers = dict(ledgers)
        self.home = self.ledgers[settings.home]
        self.directory = Directory(self.home, self.ledgers)

    def reading(
        self,
        side_by_side: Callable[[Sequence[Calls[T]]], Any],
        program: Callable[[Ledger[Any, Any]], Calls[T]],
    ) -> Calls[dict[str, T | Exception]]:
        """Read every ledger, each within ``answer_timeout_s``, as :func:`.reading_all` does."""
        within_s = self.settings.answer_timeout_s
        return reading_all(self.ledgers, side_by_side, program, within_s)


class Fleet(AnyFleet[ProxyManager]):
    """Several ledgers, used as one. Make it with :meth:`connect`; threads can share it.

    ``manager`` leases from all of them, with the methods of :class:`pharox.ProxyManager`.
    """

    def __init__(
        self,
        settings: FleetSettings,
        ledgers: Mapping[str, Ledger[Any, ProxyManager]],
        **options: Any,
    ) -> None:
        super().__init__(settings, ledgers)
        self.manager = FleetManager(self, **options)

    @classmethod
    def connect(
        cls,
        settings: Given,
        *,
        reported_failures: HealthPolicy | None = REPORTED_FAILURES,
        outcome_of: OutcomeOf | None = None,
    ) -> Self:
        """Return the fleet of a file such as ``pharox.toml``, or of settings in a mapping.

        Parameters
        ----------
        settings:
            The path of a TOML file with a table ``[fleet]``, or what such a table has: ``home``,
            and ``ledgers`` by name, each a URL, a storage, or a mapping with ``url`` or
            ``url_env``, and ``schema``.
        reported_failures, outcome_of:
            As for :class:`pharox.ProxyManager`.

        Raises
        ------
        InvalidInputError
            If the file cannot be read, or a setting is not valid.
        """
        read = read_settings(settings)
        options: dict[str, Any] = {
            "reported_failures": reported_failures,
            "outcome_of": outcome_of,
        }
        ledgers = {name: open_ledger(name, read, **options) for name in read.ledgers}
        return cls(read, ledgers, **options)

    def locate(self, pool_name: str) -> str:
        """Return the ledger of a pool, as the directory has it now."""
        return run(self.directory.reading(pool_name), call).name

    def place(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
        """Record that a pool is in a ledger. Return whether the directory had said something else.

        Raises
        ------
        ConflictError
            If it is in another ledger than that, or than ``instead_of``.
        InvalidInputError
            If the settings have no ledger of this name.
        """
        return run(self.directory.placing(pool_name, ledger, instead_of=instead_of), call)

    def places(self) -> list[PoolPlace]:
        """Return the places of all pools that were placed, by the pools' names."""
        return run(self.directory.listing(), call)

    def move(self, pool_name: str, to: str, **options: Any) -> PoolMove:
        """Move a pool to another ledger, or go on with a move that was begun.

        It waits for the pool's leases to end; nobody gets a new one meanwhile.

        Parameters
        ----------
        to:
            The ledger.
        options:
            Those of :class:`pharox.fleet.MoveOptions`, such as ``timeout_seconds`` and
            ``revoke_after_seconds``.

        Raises
        ------
        ConflictError
            If it is there and was never moved, is moving elsewhere, or cannot come.
        MoveTimeoutError
            If leases are still held when the time is over.
        """
        program = moving_in(self, pool_name, to, MoveOptions(places=self, **options), time.sleep)
        return run(program, call)

    def cancel_move(self, pool_name: str) -> PoolMove:
        """Cancel a pool's move, so that it stays, as :func:`pharox.fleet.cancel_move` does."""
        return run(cancelling_in(self, pool_name, MoveOptions(places=self)), call)

    def status(self) -> list[LedgerStatus]:
        """Return all ledgers in numbers, and which of them do not answer."""
        found = run(self.reading(together, counting), call)
        return statuses(found, self.home.name)

    def stats(self) -> Merged[PoolStatsSnapshot]:
        """Return the statistics of all pools, by the pools' names."""
        found = run(self.reading(together, stats_of), call)
        return merged(found, lambda stats: stats.pool_name)

    def leases(
        self, pool_name: str | None = None, *, consumer_name: str | None = None
    ) -> Merged[HeldLease]:
        """Return all active leases, ledger by ledger, in the order of pool, proxy and lease.

        Parameters
        ----------
        pool_name, consumer_name:
            Only those of this pool, and of this consumer.
        """
        program = leases_of(pool_name, consumer_name)
        return merged(run(self.reading(together, program), call))

    def moves(self, pool_name: str | None = None) -> Merged[PoolMove]:
        """Return the moves of pools as each ledger has them, or those of one, the last one first.

        A move is in both of its ledgers, unless it has not come to the second.
        """
        found = run(self.reading(together, moves_of(pool_name)), call)
        return merged(found, lambda move: -move.changed_at.timestamp())

    def log(
        self,
        extract: Extract | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[Iterator[InLedger[Event]], dict[str, Exception]]:
        """Return the events of all ledgers by their times, and the ledgers that are missing.

        Each ledger's own events are in the order of its log. Those of two ledgers are merged by
        their times, which are of the clocks of two servers.

        Parameters
        ----------
        extract:
            What events must meet, such as a consumer.
        since, until:
            Only events from then on, and before then; with time zones.

        Returns
        -------
        tuple
            The events, read while they are asked for, each with its ledger; and why a ledger is
            not among them, by its name. One that fails later raises its error.
        """
        return events_by_time(self._logs(), _wanted(extract, since, until))

    def audit_consumer(
        self, name: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> tuple[Iterator[InLedger[Entry]], dict[str, Exception]]:
        """Return what a consumer leased and gave back in all ledgers, and each miss, by time.

        As :meth:`log`; the entries are those of the audit of one ledger.

        Raises
        ------
        ConsumerNotFoundError
            If no ledger knows it, and all of them answer.
        """
        return story_by_time(self._logs(), name, since, until)

    def _logs(self) -> Logs:
        logs = run(self.reading(together, log_of), call)
        return Logs(logs, self.settings.answer_timeout_s)

    def close(self) -> None:
        """Close the connections of all ledgers."""
        run(finishing(self.manager.storage), call)
        for ledger in self.ledgers.values():
            if hasattr(ledger.storage, "close"):
                ledger.storage.close()
            else:
                run(finishing(ledger.storage), call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncFleet(AnyFleet[AsyncProxyManager]):
    """As :class:`Fleet`, for asyncio. It belongs to the event loop that connected it."""

    def __init__(
        self,
        settings: FleetSettings,
        ledgers: Mapping[str, Ledger[Any, AsyncProxyManager]],
        **options: Any,
    ) -> None:
        super().__init__(settings, ledgers)
        self.manager = AsyncFleetManager(self, **options)

    @classmethod
    async def connect(
        cls,
        settings: Given,
        *,
        reported_failures: HealthPolicy | None = REPORTED_FAILURES,
        outcome_of: OutcomeOf | None = None,
    ) -> Self:
        """Do as :meth:`Fleet.connect`."""
        read = read_settings(settings)
        options: dict[str, Any] = {
            "reported_failures": reported_failures,
            "outcome_of": outcome_of,
        }
        ledgers = {name: await open_ledger_async(name, read, **options) for name in read.ledgers}
        return cls(read, ledgers, **options)

    async def locate(self, pool_name: str) -> str:
        """Do as :meth:`Fleet.locate`."""
        return (await run_async(self.directory.reading(pool_name), call_async)).name

    async def place(self, pool_name: str, ledger: str, *, instead_of: str | None = None) -> bool:
        """Do as :meth:`Fleet.place`."""
        program = self.directory.placing(pool_name, ledger, instead_of=instead_of)
        return await run_async(program, call_async)

    async def places(self) -> list[PoolPlace]:
        """Do as :meth:`Fleet.places`."""
        return await run_async(self.directory.listing(), call_async)

    async def move(self, pool_name: str, to: str, **options: Any) -> PoolMove:
        """Do as :meth:`Fleet.move`."""
        how = MoveOptions(places=self, **options)
        return await run_async(moving_in(self, pool_name, to, how, asyncio.sleep), call_async)

    async def cancel_move(self, pool_name: str) -> PoolMove:
        """Do as :meth:`Fleet.cancel_move`."""
        program = cancelling_in(self, pool_name, MoveOptions(places=self))
        return await run_async(program, call_async)

    async def status(self) -> list[LedgerStatus]:
        """Do as :meth:`Fleet.status`."""
        found = await run_async(self.reading(together_async, counting), call_async)
        return statuses(found, self.home.name)

    async def stats(self) -> Merged[PoolStatsSnapshot]:
        """Do as :meth:`Fleet.stats`."""
        found = await run_async(self.reading(together_async, stats_of), call_async)
        return merged(found, lambda stats: stats.pool_name)

    async def leases(
        self, pool_name: str | None = None, *, consumer_name: str | None = None
    ) -> Merged[HeldLease]:
        """Do as :meth:`Fleet.leases`."""
        program = leases_of(pool_name, consumer_name)
        return merged(await run_async(self.reading(together_async, program), call_async))

    async def moves(self, pool_name: str | None = None) -> Merged[PoolMove]:
        """Do as :meth:`Fleet.moves`."""
        found = await run_async(self.reading(together_async, moves_of(pool_name)), call_async)
        return merged(found, lambda move: -move.changed_at.timestamp())

    async def log(
        self,
        extract: Extract | None = None,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> tuple[AsyncIterator[InLedger[Event]], dict[str, Exception]]:
        """Do as :meth:`Fleet.log`, in threads."""
        wanted = _wanted(extract, since, until)
        return await self._past(lambda logs: events_by_time(logs, wanted))

    async def audit_consumer(
        self, name: str, *, since: datetime | None = None, until: datetime | None = None
    ) -> tuple[AsyncIterator[InLedger[Entry]], dict[str, Exception]]:
        """Do as :meth:`Fleet.audit_consumer`, in threads."""
        return await self._past(lambda logs: story_by_time(logs, name, since, until))

    async def _past(
        self, reading: Callable[[Logs], Past[T]]
    ) -> tuple[AsyncIterator[InLedger[T]], dict[str, Exception]]:
        found = await run_async(self.reading(together_async, log_of), call_async)
        logs = Logs(found, self.settings.answer_timeout_s)
        rows, missing = await asyncio.to_thread(reading, logs)
        return in_threads(rows), missing

    async def close(self) -> None:
        """Close the connections of all ledgers."""
        await run_async(finishing(self.manager.storage), call_async)
        for ledger in self.ledgers.values():
            if hasattr(ledger.storage, "close"):
                await ledger.storage.close()
            else:
                await run_async(finishing(ledger.storage), call_async)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _wanted(extract: Extract | None, since: datetime | None, until: datetime | None) -> Extract:
    return (extract or Extract())._replace(**if_given(since=since, until=until))
