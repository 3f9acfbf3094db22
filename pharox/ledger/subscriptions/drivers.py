"""Run a reader's program over a psycopg connection, in a thread or in asyncio.

Both drivers connect as the storage's engine does, outside of its pool: a reader keeps
its connection, and listens on it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import suppress
from typing import Any, TypeVar

import psycopg

from pharox.effects import run, run_async
from pharox.storage.postgres import PostgresStorage
from pharox.storage.postgres.async_driver import make_fit_async
from pharox.storage.postgres.driver import Rows, make_fit, parameters_of
from pharox.storage.postgres.sql import Query

from .effects import AwaitNotice, Call, Connect, Effect, InTransaction, Pause, Program, Together

T = TypeVar("T")


class ThreadDriver:
    """Runs a program in the calling thread."""

    def __init__(self, storage: PostgresStorage, stop: threading.Event) -> None:
        self._storage = storage
        self._stop = stop
        self._connection: psycopg.Connection[Any] | None = None

    def run(self, program: Program[T]) -> T:
        """Run a program to its end, close the connection, and return what it returns."""
        try:
            return run(program, self._do)
        finally:
            self._close()

    def _do(self, effect: Effect) -> Any:
        match effect:
            case Pause(seconds):
                return self._stop.wait(seconds)
            case Call(handler, argument):
                return _without_awaiting(handler(argument))
            case Connect():
                self._close()
                parameters = connection_parameters(self._storage)
                self._connection = psycopg.Connection.connect(**parameters)
                make_fit(self._connection, ours=True)
                return self._connection
        assert self._connection is not None  # noqa: S101 - a reader connects first
        return self._ask(self._connection, effect)

    def _ask(self, connection: psycopg.Connection[Any], effect: Effect) -> Any:
        match effect:
            case Query():
                return _rows(self._execute(connection, effect), effect)
            case Together(queries):
                with connection.pipeline():
                    cursors = [self._execute(connection, query) for query in queries]
                return [_rows(*pair) for pair in zip(cursors, queries, strict=True)]
            case InTransaction(program):
                with connection.transaction():
                    return run(program, self._do)
            case AwaitNotice(seconds):
                return list(connection.notifies(timeout=seconds, stop_after=1))

    def _execute(self, connection: psycopg.Connection[Any], query: Query) -> psycopg.RawCursor[Any]:
        cursor = psycopg.RawCursor(connection)
        arguments = query.statement.arguments(query.values, 0)
        return cursor.execute(query.statement.text, arguments, prepare=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class AsyncioDriver:
    """Runs a program in a coroutine."""

    def __init__(self, storage: PostgresStorage, stop: asyncio.Event) -> None:
        self._storage = storage
        self._stop = stop
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def run(self, program: Program[T]) -> T:
        """Run a program to its end, close the connection, and return what it returns."""
        try:
            return await run_async(program, self._do)
        finally:
            await self._close()

    async def _do(self, effect: Effect) -> Any:
        match effect:
            case Pause(seconds):
                return await self._pause(seconds)
            case Call(handler, argument):
                answer = handler(argument)
                return await answer if inspect.isawaitable(answer) else answer
            case Connect():
                await self._close()
                parameters = await asyncio.to_thread(connection_parameters, self._storage)
                self._connection = await psycopg.AsyncConnection.connect(**parameters)
                await make_fit_async(self._connection, ours=True)
                return self._connection
        assert self._connection is not None  # noqa: S101 - a reader connects first
        return await self._ask(self._connection, effect)

    async def _ask(self, connection: psycopg.AsyncConnection[Any], effect: Effect) -> Any:
        match effect:
            case Query():
                return await _rows_async(await self._execute(connection, effect), effect)
            case Together(queries):
                async with connection.pipeline():
                    cursors = [await self._execute(connection, query) for query in queries]
                pairs = zip(cursors, queries, strict=True)
                return [await _rows_async(*pair) for pair in pairs]
            case InTransaction(program):
                async with connection.transaction():
                    return await run_async(program, self._do)
            case AwaitNotice(seconds):
                notices = connection.notifies(timeout=seconds, stop_after=1)
                return [notice async for notice in notices]

    async def _execute(
        self, connection: psycopg.AsyncConnection[Any], query: Query
    ) -> psycopg.AsyncRawCursor[Any]:
        cursor = psycopg.AsyncRawCursor(connection)
        arguments = query.statement.arguments(query.values, 0)
        return await cursor.execute(query.statement.text, arguments, prepare=False)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _close(self) -> None:
        if self._connection is not None:
            await self._connection.close()


def _rows(cursor: psycopg.RawCursor[Any], query: Query) -> Rows:
    return query.statement.rows(cursor.fetchall() if cursor.description else [])


async def _rows_async(cursor: psycopg.AsyncRawCursor[Any], query: Query) -> Rows:
    return query.statement.rows(await cursor.fetchall() if cursor.description else [])


def _without_awaiting(answer: Any) -> Any:
    """Return a handler's answer; raise if it is a coroutine, which has not run yet."""
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("the handler returned a coroutine: use run_async")
    return answer


def connection_parameters(storage: PostgresStorage) -> dict[str, Any]:
    """Return the libpq parameters of a connection of the engine's pool.

    Raises
    ------
    DatabaseUnavailableError
        If the engine cannot provide a connection.
    """
    with storage._driver.connection() as connection:
        connection.execute("SELECT 1")  # removes a broken connection from the pool
        return parameters_of(connection)
