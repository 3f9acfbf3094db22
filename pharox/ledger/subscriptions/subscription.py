"""Run a subscription in this thread, in a thread of its own, or in an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import dataclass
from uuid import UUID

from pharox.errors import InvalidInputError, PoolNotFoundError
from pharox.log import Extract
from pharox.models.text import escape_unprintable
from pharox.storage.async_interface import IAsyncStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage

from ...history.sealed_log import beyond_the_end
from . import statements
from .drivers import AsyncioDriver, ThreadDriver
from .options import Start, SubscriptionOptions
from .reader import Reader, Reading

logger = logging.getLogger("pharox")


@dataclass(frozen=True)
class Subscription(SubscriptionOptions):
    """A named place in the log, and the handler of each event.

    Parameters
    ----------
    name:
        Readers of one name share the checkpoint, and one of them is active.
    handler:
        Gets a :class:`Delivery`, or a list of them with ``whole_batches``. Delivery
        is at least once: it may be called again with the same event, unless it
        writes ``in_transaction``. With :meth:`run_async` it may be a coroutine
        function.
    start:
        Where a new name begins; a known one continues from its checkpoint.
    types, pool, proxy_id:
        Only events of these types, this pool (its name, or its id as UUID), this proxy.
    key:
        Returns the key of an event: events of one key stay in order and wait behind
        a parked one. The proxy, else the pool, if None.
    batch_size:
        How many events to read at once, and to deliver at most with ``whole_batches``.
    whole_batches:
        Deliver events that were read together in one call.
    in_transaction:
        Deliver within the transaction that moves the checkpoint. What the
        handler writes through ``delivery.connection`` is written exactly once.
    attempts:
        How often to try an event before it is parked; None to try for ever, while
        all later events wait.
    pause:
        A wait strategy of tenacity for the seconds before another attempt.
    poll_s:
        How many seconds to wait for new events at most.
    temporary:
        Remove the subscription when its reader ends.

    Raises
    ------
    InvalidInputError
        If these are not valid.
    """

    def run(
        self, storage: IStorage, stop: threading.Event | None = None, *, follow: bool = True
    ) -> None:
        """Deliver events in this thread until ``stop`` is set.

        Without ``follow``, it ends after the events that there are at the call. While
        another process reads under this name, it waits to take over. While the database is
        away, it reconnects with growing pauses.

        Raises
        ------
        InvalidInputError
            If the storage is not in PostgreSQL, the handler a coroutine function,
            or ``start`` a seq beyond the end of the log.
        PoolNotFoundError
            If no pool has this name.
        DatabaseUnavailableError
            If the database is away at the start.
        ArchivedError
            If the next event may have been archived; see :func:`reset`.
        """
        self._read(self._prepared(storage), stop or threading.Event(), follow=follow)

    def running(self, storage: IStorage) -> Running:
        """Deliver events in a thread of its own, until the block ends or ``stop()`` is called.

        Events committed after this call returns are delivered, also to a new
        subscription that starts "now". Raises what :meth:`run` raises.
        """
        return Running(self, self._prepared(storage))

    async def run_async(
        self,
        storage: IStorage | IAsyncStorage,
        stop: asyncio.Event | None = None,
        *,
        follow: bool = True,
    ) -> None:
        """Do as :meth:`run`, in the running event loop.

        A handler that is no coroutine function runs in the loop too.
        """
        stop = stop or asyncio.Event()
        blocking = await for_threads(storage)
        reading = await asyncio.to_thread(self._prepared, blocking, may_be_async=True)
        try:
            reader = await asyncio.to_thread(_reader, reading, stop, follow)
            await AsyncioDriver(reading.storage, stop).run(reader.run())
        finally:
            await asyncio.to_thread(self._end, reading.storage)

    def _read(self, reading: Reading, stop: threading.Event, *, follow: bool = True) -> None:
        try:
            reader = _reader(reading, stop, follow)
            ThreadDriver(reading.storage, stop).run(reader.run())
        finally:
            self._end(reading.storage)

    def _end(self, storage: PostgresStorage) -> None:
        if self.temporary:
            with storage.session() as session:
                session.run(statements.remove(storage.schema), name=self.name)
                session.run(statements.forget_parked(storage.schema), name=self.name)

    def _prepared(self, storage: IStorage, *, may_be_async: bool = False) -> Reading:
        """Register the subscription if it is new, and return what a reader needs.

        Invalid options are refused before anything is registered.
        """
        if self.is_async and not may_be_async:
            raise InvalidInputError("the handler is a coroutine function: use run_async")
        checked = in_postgres(storage)
        extract = Extract(types=self.types, pool_id=self._pool_id(checked), proxy_id=self.proxy_id)
        checkpoint = checkpoint_before(self.start, checked)
        with checked.session() as session:
            session.run(statements.register(checked.schema), name=self.name, checkpoint=checkpoint)
        return Reading(self, checked, extract)

    def _pool_id(self, storage: PostgresStorage) -> UUID | None:
        if self.pool is None or isinstance(self.pool, UUID):
            return self.pool
        pool = storage.get_pool_by_name(self.pool)
        if pool is None:
            raise PoolNotFoundError(f"Pool {self.pool!r} not found.", pool_name=self.pool)
        return pool.id


@dataclass(frozen=True)
class BoundSubscription:
    """A subscription together with the storage that it reads."""

    subscription: Subscription
    storage: IStorage

    def run(self, stop: threading.Event | None = None, *, follow: bool = True) -> None:
        """Deliver events in this thread until ``stop`` is set, or those that there are."""
        self.subscription.run(self.storage, stop, follow=follow)

    def running(self) -> Running:
        """Deliver events in a thread of its own, until the block ends or ``stop()`` is called."""
        return self.subscription.running(self.storage)

    async def run_async(self, stop: asyncio.Event | None = None, *, follow: bool = True) -> None:
        """Deliver events in the running event loop until ``stop`` is set, or those there are."""
        await self.subscription.run_async(self.storage, stop, follow=follow)


class Running:
    """A subscription running in a thread; a context manager that stops it."""

    def __init__(self, subscription: Subscription, reading: Reading) -> None:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._read,
            args=(subscription, reading),
            name=f"pharox-subscription-{subscription.name}",
            daemon=True,
        )
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread still reads."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop after the running handler and wait for the thread; raise what ended it."""
        self._stop.set()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self, subscription: Subscription, reading: Reading) -> None:
        try:
            subscription._read(reading, self._stop)
        except BaseException as error:
            logger.exception("pharox.subscription.ended: %s", escape_unprintable(subscription.name))
            self._error = error


def _reader(reading: Reading, stop: threading.Event | asyncio.Event, follow: bool) -> Reader:
    """Return a reader that ends when ``stop`` is set, or has read what there is now."""
    if follow:
        return Reader(reading, stop.is_set)
    last = reading.storage.seal()
    reader = Reader(reading, lambda: stop.is_set() or reader.checkpoint >= last)
    return reader


async def for_threads(storage: IStorage | IAsyncStorage) -> IStorage:
    """Return a blocking storage of the same ledger.

    Raises
    ------
    InvalidInputError
        If the storage cannot keep subscriptions.
    """
    if isinstance(storage, AsyncPostgresStorage):
        return await storage.blocking()
    return in_postgres(storage)


def in_postgres(storage: IStorage | IAsyncStorage) -> PostgresStorage:
    """Return the storage if it can keep subscriptions, else raise InvalidInputError."""
    if not isinstance(storage, PostgresStorage):
        raise InvalidInputError(
            "subscriptions are kept in PostgreSQL; "
            "with another storage, register callbacks at the manager"
        )
    return storage


def checkpoint_before(start: Start, storage: PostgresStorage) -> int:
    """Return the seq of the last event before ``start``.

    Raises
    ------
    InvalidInputError
        If that is a seq beyond the end of the log.
    """
    last = storage.seal()
    if isinstance(start, int):
        if start > last + 1:
            raise beyond_the_end(start, last)
        return start - 1
    return last if start == "now" else 0
