"""Run a command's program on connections of an engine.

A program is a generator: it yields queries and receives their rows. It
does not know about connections, so an async driver can run the same program. A
single query is one statement and one commit. A list of steps is one transaction;
a step may be a function that takes the rows so far and returns a query, or None to
skip it. The server's errors are raised inside the program, at the ``yield``. If
the log has no partition yet for an appended event, the driver adds one and
repeats the query.

Work that reads much, or in many steps, opens a :class:`Session` instead: one
transaction on one connection.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import exc
from sqlalchemy.engine import Engine

from projections.pool_stats import SLOTS

from ... import effects
from ...errors import DatabaseError, DatabaseUnavailableError, OutcomeUnknownError
from .deadline import answering_within
from .disposing import dispose
from .refusals import AnyConnection, no_connection, pool_exhausted, translate_errors, with_advice
from .sessions import FITS, OURS, fitting
from .sql import Query, Statement, quoted

T = TypeVar("T")
Rows = list[dict[str, Any]]
Step = Query | Callable[[Sequence[Rows]], Query | None]
Program = Generator[Query | Sequence[Step], Any, T]

ATTEMPTS = 4
"""How often a query is sent at most that the server ends as a deadlock."""

_FIRST_PAGE = 64
"""How many rows of a stream are fetched first."""

_PROBES = 3
"""How many probes must succeed before a pooler is assumed to keep a client's session."""


class Driver:
    """Runs programs, each on one connection of the engine.

    Parameters
    ----------
    prepare:
        Whether to prepare statements; if None, unless there is a pooler.
    """

    def __init__(self, engine: Engine, schema: str, *, prepare: bool | None = None) -> None:
        self._engine = engine
        self._prepare = prepare
        self._ours = bool(engine.get_execution_options().get(OURS))
        self._add_partition = add_partition_statement(schema)

    def run(self, program: Program[T], *, within_s: float | None = None) -> T:
        """Run a program to its end and return what it returns.

        Parameters
        ----------
        within_s:
            How many seconds the server has for each answer; no limit if None.
        """
        with self.connection(within_s) as connection:
            cursor = psycopg.RawCursor(connection)
            slot = connection.info.backend_pid % SLOTS
            return effects.run(program, lambda request: self._ask(cursor, slot, request))

    def _ask(
        self,
        cursor: psycopg.RawCursor[Any],
        slot: int,
        request: Query | Sequence[Step],
        attempts: int = ATTEMPTS,
    ) -> Rows | list[Rows]:
        refused: psycopg.Error
        try:
            return _answer(cursor, slot, request)
        except (psycopg.IntegrityError, psycopg.errors.DeadlockDetected) as error:
            if not may_repeat(error, attempts):
                raise
            refused = error
        if lacks_partition(refused):
            cursor.execute(self._add_partition)
        else:
            attempts -= 1
        return self._ask(cursor, slot, request, attempts)

    @contextmanager
    def session(self, *, snapshot: bool = False, keep: bool = True) -> Iterator[Session]:
        """Open a transaction for a ``with`` block.

        With ``snapshot`` all statements see the same snapshot. Without ``keep`` the transaction
        is rolled back at the end.
        """
        with self.connection() as connection, connection.transaction(force_rollback=not keep):
            if snapshot:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            yield Session(connection)

    @contextmanager
    def own_session(self) -> Iterator[Session]:
        """Open a connection in autocommit mode for a ``with`` block, outside of the pool.

        It has the parameters of the pool's connections.
        """
        with self.connection() as lent:
            parameters = parameters_of(lent)
        try:
            connection = psycopg.connect(**parameters)
        except psycopg.Error as error:
            raise no_connection(error) from error
        with translate_errors(connection), connection:
            make_fit(connection, ours=True, prepare=self._prepare)
            yield Session(connection)

    def listen(self, channel: str) -> psycopg.Connection[Any]:
        """Open a connection outside of the pool that listens to a channel.

        Raises
        ------
        DatabaseError
            If a pooler lends its session to others.
        """
        with self.connection() as lent:
            parameters = parameters_of(lent)
        try:
            connection = psycopg.connect(**parameters)
        except psycopg.Error as error:
            raise no_connection(error) from error
        try:
            check_own_session(connection)
            connection.execute(f"LISTEN {channel}".encode())
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def connection(self, within_s: float | None = None) -> Iterator[psycopg.Connection[Any]]:
        """Lend a psycopg connection in autocommit mode, and translate its errors.

        The server has ``within_s`` seconds for each answer; no limit if None.
        """
        try:
            lent = self._engine.raw_connection()
        except exc.TimeoutError as error:
            raise pool_exhausted("threads") from error
        except (exc.DBAPIError, psycopg.Error) as error:
            raise no_connection(error) from error
        connection: psycopg.Connection[Any] = lent.driver_connection  # type: ignore[assignment]
        was_autocommit = connection.autocommit
        try:
            with translate_errors(connection), answering_within(connection, within_s):
                if not was_autocommit:
                    connection.autocommit = True
                if FITS not in lent.info:
                    make_fit(connection, ours=self._ours, prepare=self._prepare)
                    lent.info[FITS] = True
                yield connection
        except DatabaseUnavailableError:
            dispose(self._engine)  # the pool's others are probably broken too
            raise
        finally:
            if connection.closed:
                lent.invalidate()
            elif not was_autocommit:
                connection.autocommit = False
            lent.close()


def make_fit(
    connection: psycopg.Connection[Any], *, ours: bool, prepare: bool | None = None
) -> None:
    """Prepare a connection for the ledger, or raise an error that says why it is unsuitable."""
    effects.run(
        fitting(connection, ours=ours, prepare=prepare),
        lambda statement: first_row(connection, statement),
    )


def first_row(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...] | None:
    """Run a statement without parameters, and return its first row, or None."""
    cursor = connection.execute(statement.encode(), prepare=False)
    return cursor.fetchone() if cursor.description else None


def add_partition_statement(schema: str) -> bytes:
    """Return the SQL that adds a missing partition to the log."""
    return f"SELECT {quoted(schema)}.add_partition()".encode()


def parameters_of(connection: AnyConnection) -> dict[str, Any]:
    """Return the parameters of a connection, with autocommit, to open another like it."""
    password = connection.info.password
    return {
        **connection.info.get_parameters(),
        **({"password": password} if password else {}),
        "prepare_threshold": connection.prepare_threshold,
        "autocommit": True,
    }


def check_own_session(connection: psycopg.Connection[Any]) -> None:
    """Raise an error if a pooler lends a connection's session to others between two statements.

    Another client begins a transaction meanwhile. A session pooler keeps our session for us. A
    transaction pooler gives our session to that client, or another one to us.

    Parameters
    ----------
    connection:
        A connection in autocommit mode.

    Raises
    ------
    DatabaseError
        If the session changed, so that session state would be lost.
    """
    pid = _pid(connection)
    if pid == connection.info.backend_pid:
        return  # no pooler: it would have reported a process id of its own
    try:
        other = psycopg.connect(**{**parameters_of(connection), "autocommit": False})
    except psycopg.Error as error:
        raise no_connection(error) from error
    with closing(other):
        for _ in range(_PROBES):
            if _pid(other) == pid or _pid(connection) != pid:
                raise DatabaseError(
                    "this needs its own session, and the pooler gives sessions to others after "
                    "each transaction: connect to PostgreSQL directly, or to a pooler in session "
                    "mode"
                )
            other.rollback()


def _pid(connection: psycopg.Connection[Any]) -> int | None:
    row = first_row(connection, "SELECT pg_backend_pid()")
    return None if row is None else row[0]


class Session:
    """One transaction on one connection; made by :meth:`Driver.session`."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self._cursor = psycopg.RawCursor(connection)

    def rows(self, statement: Statement, **values: Any) -> Rows:
        """Run a statement and return all its rows."""
        return _rows(self._cursor, Query(statement, values), 0)

    def run(self, statement: Statement, **values: Any) -> int:
        """Run a statement without result rows, and return how many rows it changed."""
        self._cursor.execute(statement.text, statement.arguments(values, 0))
        return self._cursor.rowcount

    def take_room(self) -> None:
        """Allow sorts, hashes and temporary tables more memory, until the transaction ends.

        Outside of a transaction this lasts as long as the session.
        """
        in_transaction = self.connection.info.transaction_status == TransactionStatus.INTRANS
        self.connection.execute("SELECT set_config('work_mem', '128MB', %s)", (in_transaction,))
        with suppress(psycopg.errors.InvalidParameterValue), self.connection.transaction():
            # PostgreSQL rejects this once the session has used temporary tables.
            setting = "SELECT set_config('temp_buffers', '128MB', %s)"
            self.connection.execute(setting, (in_transaction,))

    def stream(
        self, statement: Statement, page: int = 2000, *, few: bool = False, **values: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of a statement, fetching a page at a time from the server.

        The server plans for a fast first row; with ``few``, for a fast last row.
        """
        if few:
            self.connection.execute("SET LOCAL cursor_tuple_fraction = 1")
        cursor = psycopg.RawServerCursor(self.connection, "pharox_stream")
        try:
            cursor.execute(statement.text, statement.arguments(values, 0))
            # Many readers want the first row, or few: they need not wait for a whole page.
            size = min(page, _FIRST_PAGE)
            while rows := cursor.fetchmany(size):
                for row in rows:
                    yield dict(zip(statement.columns, row, strict=True))
                if len(rows) < size:
                    break
                size = page
        finally:
            _close(cursor)


def _close(cursor: psycopg.RawServerCursor[Any]) -> None:
    try:
        cursor.close()
    except psycopg.Error:
        cursor.close()  # the connection is broken, so this sends nothing
        raise


def _answer(
    cursor: psycopg.RawCursor[Any], slot: int, request: Query | Sequence[Step]
) -> Rows | list[Rows]:
    if isinstance(request, Query):
        with CommitUncertainty(cursor.connection, request):
            return _rows(cursor, request, slot)
    answers: list[Rows] = []
    with CommitUncertainty(cursor.connection) as doubt, cursor.connection.transaction():
        for step in request:
            query = query_of(step, answers)
            answers.append([] if query is None else _rows(cursor, query, slot))
            doubt.about(query)
        doubt.begins()
    return answers


def may_repeat(error: psycopg.Error, attempts: int) -> bool:
    """Return whether a refused query can be sent again, as nothing of it was done.

    Commands take their locks in an order, but connections that share a slot may meet in the
    counters of several pools (decision 0050). The server ends one of them, and it begins anew.
    """
    is_deadlock = isinstance(error, psycopg.errors.DeadlockDetected)
    return lacks_partition(error) or (is_deadlock and attempts > 1)


class CommitUncertainty:
    """Raises an error if a connection breaks in a block and the commit is uncertain.

    The outcome of a single statement is uncertain once it is sent. That of a transaction is
    uncertain only once COMMIT is sent: the server rolls back open transactions.
    """

    def __init__(self, connection: AnyConnection, sent: Query | None = None) -> None:
        self._connection = connection
        self._was_closed = connection.closed  # nothing is sent on a closed connection
        self._written: list[Query] = []
        self._has_begun = sent is not None
        self.about(sent)

    def about(self, query: Query | None) -> None:
        """Record a query that is to be committed."""
        if query is not None and query.statement.writes:
            self._written.append(query)

    def begins(self) -> None:
        """Record that COMMIT is sent next."""
        self._has_begun = True

    def __enter__(self) -> CommitUncertainty:
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if self._was_closed or not self._connection.closed:
            return
        if not (self._written and self._has_begun):
            return
        if isinstance(error, psycopg.Error):
            raise outcome_unknown(error, self._written) from error


def outcome_unknown(error: psycopg.Error, written: Sequence[Query]) -> OutcomeUnknownError:
    """Return the error for a connection that broke before a commit was confirmed."""
    ids = (query.values.get("lease_id") for query in written)
    lease_id = next((each for each in ids if each is not None), None)
    of_what = "" if lease_id is None else f" of lease {lease_id}"
    return OutcomeUnknownError(
        f"the connection broke before the answer, so it is not known what was committed{of_what}: "
        f"{with_advice(error)}",
        lease_id=lease_id,
    )


def query_of(step: Step, answers: Sequence[Rows]) -> Query | None:
    """Return the query of a step, given the rows of the steps before it."""
    return step if isinstance(step, Query) else step(answers)


def lacks_partition(error: psycopg.Error) -> bool:
    """Return whether an append failed because there is no partition for its position."""
    missing = isinstance(error, psycopg.errors.CheckViolation)
    return missing and error.diag.constraint_name is None and error.diag.table_name == "events"


def _rows(cursor: psycopg.RawCursor[Any], query: Query, slot: int) -> Rows:
    statement, values = query
    cursor.execute(statement.text, statement.arguments(values, slot))
    return statement.rows(cursor.fetchall())
