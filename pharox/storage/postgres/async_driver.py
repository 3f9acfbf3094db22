"""Run the programs of :mod:`.driver` over connections of an async engine.

The same programs, the same answers and errors; what differs is that a task may
be cancelled at any time. Until a statement is sent nothing has happened, and a
cancellation ends the command. From then on each statement is waited for
(:mod:`.cancellation_guard`), and the command says how it may end: between two of its
steps, only as a whole, or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import PoolProxiedConnection
from sqlalchemy.util import greenlet_spawn

from projections.pool_stats import SLOTS

from ... import effects
from ...errors import DatabaseUnavailableError, InvalidInputError
from ..combining import Batch
from .cancellation_guard import CancellationGuard, forget
from .driver import (
    CommitUncertainty,
    Program,
    Rows,
    Step,
    add_partition_statement,
    lacks_partition,
    parameters_of,
    query_of,
)
from .refusals import no_connection, pool_exhausted, translate_errors
from .sessions import FITS, OURS, fitting
from .sql import Query

T = TypeVar("T")
logger = logging.getLogger("pharox")

Stops = Literal["between steps", "before the first step", "never"]
"""When a cancellation may still stop a command."""


class AsyncDriver:
    """Runs programs, one connection of the engine at a time for each task that calls.

    Parameters
    ----------
    prepare:
        Whether statements are prepared; if None, unless a pooler is between.
    """

    def __init__(self, engine: AsyncEngine, schema: str, *, prepare: bool | None = None) -> None:
        self._engine = engine
        self._prepare = prepare
        self._ours = bool(engine.get_execution_options().get(OURS))
        self._add_partition = add_partition_statement(schema)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(
        self,
        program: Program[T],
        *,
        stops: Stops = "between steps",
        within_s: float | None = None,
    ) -> tuple[T, asyncio.CancelledError | None]:
        """Run a program to its end.

        Parameters
        ----------
        stops:
            When a cancellation may still stop it.
        within_s:
            How many seconds the server has for each answer; any number if None.

        Returns
        -------
        tuple
            What the program returns, and the cancellation that came too late to
            stop it, if there was one: to be raised by whoever has undone what
            must not last.

        Raises
        ------
        asyncio.CancelledError
            If it was stopped; what was not committed was rolled back.
        """
        self._check_loop()
        guard = CancellationGuard(certain=stops == "never", within_s=within_s)
        obeying = guard if stops == "between steps" else CancellationGuard()
        try:
            outcome = await self._run(program, guard, obeying)
        except Exception as error:
            if guard.cancelled is None:
                raise
            logger.warning("pharox.command.failed: of a cancelled task: %s", error)
            raise guard.cancelled from error
        return outcome, guard.cancelled

    async def _run(
        self, program: Program[T], guard: CancellationGuard, obeying: CancellationGuard
    ) -> T:
        async def work(connection: psycopg.AsyncConnection[Any]) -> T:
            cursor = psycopg.AsyncRawCursor(connection)
            slot = connection.info.backend_pid % SLOTS
            return await effects.run_async(
                program, lambda asked: self._ask(cursor, slot, asked, obeying)
            )

        return await self._with_connection(work, guard)

    async def run_batch(
        self, program: Program[T], batch: Batch[Any], *, within_s: float | None
    ) -> T:
        """Run a program for the callers of a batch, of whom the leading task is one.

        A batch of one caller is stopped as a command of its own would be. Otherwise others
        wait for it too, so the leader's cancellation is noted and the batch is seen through;
        once all callers were cancelled the server is asked to cancel it, as for one.
        """
        self._check_loop()
        is_shared = len(batch.commands) > 1
        guard = CancellationGuard(
            certain=batch.certain or is_shared,
            within_s=within_s,
            is_abandoned=batch.abandoned if is_shared else None,
        )
        try:
            outcome = await self._run(program, guard, CancellationGuard())
        except Exception as error:
            if guard.cancelled is not None:
                logger.warning("pharox.command.failed: of a cancelled task: %s", error)
            raise
        finally:
            if guard.cancelled is not None:
                batch.note(guard.cancelled)
        return outcome

    async def connection_parameters(self) -> dict[str, Any]:
        """Return what to connect with, as the engine's own connections do."""
        self._check_loop()

        async def work(connection: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
            return parameters_of(connection)

        guard = CancellationGuard()
        parameters = await self._with_connection(work, guard)
        guard.obey()
        return parameters

    def _check_loop(self) -> None:
        """Raise an error in another event loop than the first: connections and queues are its."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise InvalidInputError(
                "a storage belongs to the event loop in which it was first used; "
                "make another one, with an engine of its own"
            )

    async def _ask(
        self,
        cursor: psycopg.AsyncRawCursor[Any],
        slot: int,
        asked: Query | Sequence[Step],
        obeying: CancellationGuard,
    ) -> Rows | list[Rows]:
        try:
            return await _answer(cursor, slot, asked, obeying)
        except psycopg.IntegrityError as error:
            if not lacks_partition(error):
                raise
        await cursor.execute(self._add_partition)
        return await self._ask(cursor, slot, asked, obeying)

    async def _with_connection(
        self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]], guard: CancellationGuard
    ) -> T:
        """Do something with a connection in autocommit mode; say what goes wrong in our words."""
        lent = await self._checked_out(guard)
        connection: psycopg.AsyncConnection[Any] = lent.driver_connection  # type: ignore[assignment]
        was_autocommit = connection.autocommit
        guard.teach(connection)
        try:
            with translate_errors(connection), guard.translating_timeout():
                if not was_autocommit:
                    await connection.set_autocommit(True)
                if FITS not in lent.info:
                    await make_fit_async(connection, ours=self._ours, prepare=self._prepare)
                    lent.info[FITS] = True
                return await work(connection)
        except DatabaseUnavailableError:
            with guard:
                await self._engine.dispose()  # the others of the pool were cut too, most likely
            raise
        finally:
            try:
                with guard:
                    await _tidied(lent, connection, autocommit=was_autocommit)
            finally:
                forget(connection)
                with guard:
                    await greenlet_spawn(lent.close)

    async def _checked_out(self, guard: CancellationGuard) -> PoolProxiedConnection:
        """Take a connection of the pool; who must have one goes on waiting when cancelled."""
        with guard:
            return await self._from_the_pool()
        if not guard.certain:
            guard.obey()
        while True:
            lending = await guard.outlast(self._from_the_pool())
            if not lending.cancelled():  # as a loop that shuts down cancels it, once
                return lending.result()

    async def _from_the_pool(self) -> PoolProxiedConnection:
        try:
            return await greenlet_spawn(self._engine.sync_engine.raw_connection)
        except exc.TimeoutError as error:
            raise pool_exhausted("tasks") from error
        except (exc.DBAPIError, psycopg.Error) as error:
            raise no_connection(error) from error


async def make_fit_async(
    connection: psycopg.AsyncConnection[Any], *, ours: bool, prepare: bool | None = None
) -> None:
    """Make a connection fit for the ledger, or raise an error that says why it is not."""

    async def first_row(asked: str) -> tuple[Any, ...] | None:
        cursor = await connection.execute(asked.encode(), prepare=False)
        return await cursor.fetchone() if cursor.description else None

    await effects.run_async(fitting(connection, ours=ours, prepare=prepare), first_row)


async def _tidied(
    lent: PoolProxiedConnection, connection: psycopg.AsyncConnection[Any], *, autocommit: bool
) -> None:
    """Leave a connection as it was, or leave it to nobody."""
    if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
        await greenlet_spawn(lent.invalidate)
    elif not autocommit:
        await connection.set_autocommit(False)


async def _answer(
    cursor: psycopg.AsyncRawCursor[Any],
    slot: int,
    asked: Query | Sequence[Step],
    obeying: CancellationGuard,
) -> Rows | list[Rows]:
    if isinstance(asked, Query):
        obeying.obey()
        with CommitUncertainty(cursor.connection, asked):
            return await _rows(cursor, asked, slot)
    answers: list[Rows] = []
    with CommitUncertainty(cursor.connection) as doubt:
        async with cursor.connection.transaction():
            for step in asked:
                obeying.obey()
                query = query_of(step, answers)
                answers.append([] if query is None else await _rows(cursor, query, slot))
                doubt.about(query)
            doubt.begins()
    return answers


async def _rows(cursor: psycopg.AsyncRawCursor[Any], query: Query, slot: int) -> Rows:
    statement, values = query
    await cursor.execute(statement.text, statement.arguments(values, slot))
    return statement.rows(await cursor.fetchall())
