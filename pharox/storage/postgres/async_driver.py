"""Run the programs of :mod:`.driver` over connections of an async engine.

Programs, answers and errors are the same, but a task may be cancelled at any time.
Before the first statement is sent, a cancellation simply ends the command. Once a
statement is sent, its answer is awaited (:mod:`.cancellation_guard`). The command says
when a cancellation may stop it: between two steps, before the first step, or never.
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
from ...errors import DatabaseError, DatabaseUnavailableError, InvalidInputError
from ..combining import Batch
from .cancellation_guard import CancellationGuard, forget
from .disposing import dispose_async
from .driver import (
    ATTEMPTS,
    CommitUncertainty,
    Program,
    Rows,
    Step,
    add_partition_statement,
    lacks_partition,
    may_repeat,
    parameters_of,
    query_of,
)
from .refusals import no_connection, pool_exhausted, translate_errors
from .sessions import FITS, OURS, fitting
from .sql import Query

T = TypeVar("T")
logger = logging.getLogger("pharox")

Stops = Literal["between steps", "before the first step", "never"]
"""When a cancellation may stop a command."""


class AsyncDriver:
    """Runs programs, each on one connection of the engine.

    Parameters
    ----------
    prepare:
        Whether to prepare statements; if None, unless there is a pooler.
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
            When a cancellation may stop it.
        within_s:
            How many seconds the server has for each answer; no limit if None.

        Returns
        -------
        tuple
            The program's result, and the cancellation that came too late to stop it,
            or None. The caller raises the cancellation after it has undone the program
            if needed.

        Raises
        ------
        asyncio.CancelledError
            If it was stopped. What was not committed was rolled back.
        """
        self._check_loop()
        # ``guard`` notes cancellations during statements; ``obeying`` raises them between steps.
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
                program, lambda request: self._ask(cursor, slot, request, obeying)
            )

        return await self._with_connection(work, guard)

    async def run_batch(
        self, program: Program[T], batch: Batch[Any], *, within_s: float | None
    ) -> T:
        """Run a program for the callers of a batch, in the leading task.

        A cancellation stops a batch of one caller as it stops a single command. If other callers
        wait too, the leader's cancellation is noted and the batch goes on. Once all
        callers are cancelled, the server is asked to cancel the statement.
        """
        self._check_loop()
        is_shared = len(batch.commands) > 1
        # A shared batch must not end with its leader, only once all its callers are cancelled.
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
        """Return the connection parameters of the engine's connections."""
        self._check_loop()

        async def work(connection: psycopg.AsyncConnection[Any]) -> dict[str, Any]:
            return parameters_of(connection)

        guard = CancellationGuard()
        parameters = await self._with_connection(work, guard)
        guard.obey()
        return parameters

    async def listen(self, channel: str) -> psycopg.AsyncConnection[Any]:
        """Open a connection outside of the pool that listens to a channel.

        Raises
        ------
        DatabaseError
            If a pooler lends its session to others.
        """
        parameters = await self.connection_parameters()
        try:
            connection = await psycopg.AsyncConnection.connect(**parameters)
        except psycopg.Error as error:
            raise no_connection(error) from error
        try:
            if connection.info.backend_pid != await _pid(connection):
                raise DatabaseError("a pooler lends the session to others")
            await connection.execute(f"LISTEN {channel}".encode())
        except BaseException:
            await connection.close()
            raise
        return connection

    def _check_loop(self) -> None:
        """Raise an error outside of the first call's event loop: connections belong to it."""
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if loop is not self._loop:
            raise InvalidInputError(
                "a storage belongs to the event loop that first used it; create another storage, "
                "with its own engine"
            )

    async def _ask(
        self,
        cursor: psycopg.AsyncRawCursor[Any],
        slot: int,
        request: Query | Sequence[Step],
        obeying: CancellationGuard,
        attempts: int = ATTEMPTS,
    ) -> Rows | list[Rows]:
        refused: psycopg.Error
        try:
            return await _answer(cursor, slot, request, obeying)
        except (psycopg.IntegrityError, psycopg.errors.DeadlockDetected) as error:
            if not may_repeat(error, attempts):
                raise
            refused = error
        if lacks_partition(refused):
            await cursor.execute(self._add_partition)
        else:
            attempts -= 1
        return await self._ask(cursor, slot, request, obeying, attempts)

    async def _with_connection(
        self, work: Callable[[psycopg.AsyncConnection[Any]], Awaitable[T]], guard: CancellationGuard
    ) -> T:
        """Run ``work`` with a connection in autocommit mode, and translate its errors."""
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
                await dispose_async(self._engine)  # the pool's others are probably broken too
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
        """Check out a connection of the pool. A certain command waits even if cancelled."""
        with guard:
            return await self._from_the_pool()
        if not guard.certain:
            guard.obey()
        while True:
            lending = await guard.outlast(self._from_the_pool())
            if not lending.cancelled():  # a loop that shuts down cancels it once
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
    """Prepare a connection for the ledger, or raise an error that says why it is unsuitable."""

    async def first_row(statement: str) -> tuple[Any, ...] | None:
        cursor = await connection.execute(statement.encode(), prepare=False)
        return await cursor.fetchone() if cursor.description else None

    await effects.run_async(fitting(connection, ours=ours, prepare=prepare), first_row)


async def _pid(connection: psycopg.AsyncConnection[Any]) -> int | None:
    cursor = await connection.execute(b"SELECT pg_backend_pid()", prepare=False)
    row = await cursor.fetchone()
    return None if row is None else row[0]


async def _tidied(
    lent: PoolProxiedConnection, connection: psycopg.AsyncConnection[Any], *, autocommit: bool
) -> None:
    """Restore the state of a connection, or invalidate it."""
    if connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
        await greenlet_spawn(lent.invalidate)
    elif not autocommit:
        await connection.set_autocommit(False)


async def _answer(
    cursor: psycopg.AsyncRawCursor[Any],
    slot: int,
    request: Query | Sequence[Step],
    obeying: CancellationGuard,
) -> Rows | list[Rows]:
    if isinstance(request, Query):
        obeying.obey()
        with CommitUncertainty(cursor.connection, request):
            return await _rows(cursor, request, slot)
    answers: list[Rows] = []
    with CommitUncertainty(cursor.connection) as doubt:
        async with cursor.connection.transaction():
            for step in request:
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
