"""When a connection breaks or hangs, the error says what is known and what is not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from pharox import (
    AnswerTimeoutError,
    AsyncProxyManager,
    DatabaseError,
    DatabaseUnavailableError,
    InvalidInputError,
    Lease,
    LeaseStatus,
    OutcomeUnknownError,
    PharoxError,
    ProxyManager,
    ProxyPool,
    connect,
    new_lease_id,
)
from pharox.storage.postgres import (
    AsyncPostgresStorage,
    PostgresStorage,
    cancellation_guard,
    deadline,
)
from pharox.testing import Awaited
from tests.conftest import SECRET_KEY, fill, types_of
from tests.faults.relay import CUTS, FREEZES, Fault, Relay, in_front_of

TIMEOUT_S = 0.4


@pytest.fixture
def relay(database_url: str, postgres: PostgresStorage) -> Iterator[Relay]:
    """A relay to the server, and two proxies in the ledger behind it."""
    fill(postgres, 2)
    with in_front_of(database_url) as relay:
        yield relay


class Caller:
    """A manager behind the relay; what it does is waited for, also if it is awaited."""

    def __init__(self, storage: Any, manager: Any, run: Callable[[Any], Any]) -> None:
        self.storage, self._manager, self._run = storage, manager, run

    def acquire(self, lease_id: UUID | None = None) -> Lease:
        lease: Lease = self._run(self._manager.acquire_proxy("pool", lease_id=lease_id))
        assert lease is not None
        return lease

    def release(self, lease: Lease) -> None:
        self._run(self._manager.release_proxy(lease))

    def warm_up(self) -> None:
        """Have the connection open and the schema checked: what comes next is one statement."""
        self.release(self.acquire())


@pytest.fixture(params=["blocking", "awaited"])
def caller(request: pytest.FixtureRequest, relay: Relay) -> Iterator[Caller]:
    """A caller of each kind, with one connection that it waits on for a moment only."""
    options: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT",
        "pool_size": 1,
        "max_overflow": 0,
        "connect_args": {"connect_timeout": 2},
    }
    limits: dict[str, Any] = {"secret_keys": [SECRET_KEY], "answer_timeout_s": TIMEOUT_S}
    if request.param == "blocking":
        blocking = PostgresStorage(create_engine(relay.url, **options), **limits)
        yield Caller(blocking, ProxyManager(blocking), lambda done: done)
        blocking.close()
        return
    storage = AsyncPostgresStorage(create_async_engine(relay.url, **options), **limits)
    with Awaited(storage) as awaited:
        yield Caller(awaited, AsyncProxyManager(storage), awaited.run)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is asked to cancel a statement has no more time either."""
    monkeypatch.setattr(deadline, "CANCEL_S", TIMEOUT_S)
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", TIMEOUT_S)


@pytest.mark.parametrize("fault", [*CUTS, *FREEZES])
def test_a_lease_in_doubt_is_found_by_its_id(
    caller: Caller, relay: Relay, postgres: PostgresStorage, fault: Fault
) -> None:
    """It is there if the server got the request; asking again under its id leases once."""
    caller.warm_up()
    relay.arm(fault)
    with pytest.raises(OutcomeUnknownError) as unknown:
        caller.acquire()
    relay.thaw()
    lease_id: UUID = unknown.value.lease_id  # type: ignore[attr-defined]
    assert str(lease_id) in str(unknown.value)
    if fault in (Fault.CUT_BEFORE_ANSWER, Fault.CUT_IN_ANSWER, Fault.FREEZE_BEFORE_ANSWER):
        assert postgres.get_lease(str(lease_id)) is not None
    if fault is Fault.CUT_BEFORE_REQUEST:
        assert postgres.get_lease(str(lease_id)) is None
    lease = caller.acquire(lease_id)
    assert lease.id == lease_id
    assert caller.acquire(lease_id) == lease
    assert types_of(postgres).count("LeaseAcquired") == 2  # with the one of the warm-up
    caller.release(lease)
    assert postgres.verify() == []


@pytest.mark.parametrize("fault", [*CUTS, *FREEZES])
def test_a_release_in_doubt_is_asked_for_again(
    caller: Caller, relay: Relay, postgres: PostgresStorage, fault: Fault
) -> None:
    """However often that is, the lease has ended once."""
    caller.warm_up()
    lease = caller.acquire()
    relay.arm(fault)
    with pytest.raises(OutcomeUnknownError) as unknown:
        caller.release(lease)
    relay.thaw()
    assert unknown.value.lease_id == lease.id  # type: ignore[attr-defined]
    caller.release(lease)
    assert lease.status is LeaseStatus.RELEASED
    assert types_of(postgres).count("LeaseReleased") == 2
    assert postgres.verify() == []


@pytest.mark.parametrize("fault", [*CUTS, *FREEZES])
def test_a_question_leaves_nothing_in_doubt(caller: Caller, relay: Relay, fault: Fault) -> None:
    """What only reads is known to have changed nothing."""
    caller.warm_up()
    relay.arm(fault)
    with pytest.raises(DatabaseUnavailableError) as told:
        caller.storage.get_pool_stats("pool")
    relay.thaw()
    assert not isinstance(told.value, OutcomeUnknownError)
    assert caller.storage.get_pool_stats("pool") is not None


@pytest.mark.parametrize("skip", range(4))
def test_a_transaction_is_in_doubt_from_its_commit_on(
    caller: Caller, relay: Relay, postgres: PostgresStorage, skip: int
) -> None:
    """What breaks before it is undone by the server, and told as such."""
    caller.warm_up()
    pool = postgres.get_pool_by_name("pool")
    assert pool is not None
    before = types_of(postgres)
    relay.arm(Fault.CUT_BEFORE_ANSWER, skip=skip)
    raised: PharoxError | None = None
    try:
        caller.storage.delete_pool(str(pool.id))
    except PharoxError as error:
        raised = error
    if types_of(postgres) == before:
        assert type(raised) is DatabaseUnavailableError
    elif not relay.is_armed:
        assert type(raised) is OutcomeUnknownError
        assert raised.lease_id is None  # type: ignore[attr-defined]
    assert postgres.verify() == []


def test_a_server_that_cannot_be_reached_has_done_nothing(caller: Caller, relay: Relay) -> None:
    """Connecting through a frozen network ends in time, and leaves nothing in doubt."""
    relay.freeze()
    with pytest.raises(DatabaseUnavailableError) as told:
        caller.acquire()
    relay.thaw()
    assert not isinstance(told.value, OutcomeUnknownError)
    caller.warm_up()


@contextmanager
def locked(storage: PostgresStorage, table: str) -> Iterator[None]:
    """Lock a table for a block, as a careless person at a prompt does."""
    engine = storage.engine.execution_options(isolation_level="READ COMMITTED")
    with engine.begin() as connection:
        connection.exec_driver_sql(f"LOCK TABLE pharox.{table} IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_statement_that_waits_for_too_long_is_cancelled(
    caller: Caller, postgres: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The server says that it is, so it is known that nothing was leased or released."""
    caller.warm_up()
    held = caller.acquire()
    before = types_of(postgres)
    with locked(postgres, "leases"):
        for ask in (caller.acquire, lambda: caller.release(held)):
            with pytest.raises(DatabaseError) as told:
                ask()
            assert isinstance(told.value, AnswerTimeoutError)
            assert f"answer_timeout_s ({TIMEOUT_S} s)" in str(told.value)
            assert isinstance(told.value.__cause__, psycopg.errors.QueryCanceled)
    assert "pharox.statement.late" in caplog.text
    assert types_of(postgres) == before
    caller.release(held)
    caller.warm_up()


@pytest.mark.parametrize("fault", [*CUTS, *FREEZES])
def test_an_attempt_under_an_id_is_in_doubt_as_any_other(
    caller: Caller, relay: Relay, postgres: PostgresStorage, fault: Fault
) -> None:
    """Wherever it breaks or freezes, the next attempt returns the one lease of that id."""
    caller.warm_up()
    mine = new_lease_id()
    relay.arm(fault)
    with pytest.raises(OutcomeUnknownError) as told:
        caller.acquire(mine)
    assert not relay.is_armed
    assert told.value.data["lease_id"] == mine
    lease = ProxyManager(postgres).acquire_proxy("pool", lease_id=mine)
    assert lease is not None
    relay.thaw()
    assert caller.acquire(mine) == lease
    assert types_of(postgres).count("LeaseAcquired") == 2  # with the one of the warm-up
    assert postgres.verify() == []


def test_an_id_is_granted_where_the_latest_is_seen_only(
    postgres: PostgresStorage, database_url: str
) -> None:
    """In a transaction that sees one moment an attempt could not see who was quicker."""
    options = {"options": "-c default_transaction_isolation=serializable"}
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT", connect_args=options)
    storage = PostgresStorage(engine, secret_keys=[SECRET_KEY])
    fill(postgres, 1)
    with pytest.raises(DatabaseError, match="READ COMMITTED"):
        ProxyManager(storage).acquire_proxy("pool", lease_id=new_lease_id())
    storage.close()


def test_an_answer_that_comes_late_counts(
    caller: Caller, relay: Relay, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that arrives while the statement is being cancelled is the answer."""
    monkeypatch.setattr(deadline, "CANCEL_S", 30.0)
    monkeypatch.setattr(cancellation_guard, "PATIENCE_S", 30.0)
    caller.warm_up()
    relay.arm(Fault.FREEZE_BEFORE_ANSWER)
    timer = threading.Timer(3 * TIMEOUT_S, relay.thaw)
    timer.start()
    lease = caller.acquire()
    timer.join()
    assert postgres.get_lease(str(lease.id)) == lease


def test_a_cancelled_task_has_the_doubt_as_its_cause(
    relay: Relay, postgres: PostgresStorage
) -> None:
    """A task that is cancelled is cancelled; what is not known then is not hidden."""
    engine = create_async_engine(relay.url, isolation_level="AUTOCOMMIT", pool_size=1)

    async def frozen_in_acquire() -> BaseException | None:
        async with AsyncPostgresStorage(engine, secret_keys=[SECRET_KEY]) as storage:
            manager = AsyncProxyManager(storage)
            async with manager.with_lease("pool"):
                pass
            relay.arm(Fault.FREEZE_BEFORE_REQUEST)
            task = asyncio.create_task(manager.acquire_proxy("pool"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await task
            relay.thaw()
            return cancelled.value.__cause__

    cause = asyncio.run(frozen_in_acquire())
    assert isinstance(cause, OutcomeUnknownError)
    assert cause.lease_id is not None  # type: ignore[attr-defined]
    assert postgres.verify() == []


def test_connections_find_out_that_a_server_is_gone(relay: Relay) -> None:
    """Those that ``connect`` opens have the kernel ask, so no wait lasts for hours."""
    storage = connect(relay.url.render_as_string(hide_password=False))
    lent = storage.engine.raw_connection()
    descriptor = lent.driver_connection.pgconn.socket  # type: ignore[union-attr]
    with socket.socket(fileno=socket.dup(descriptor)) as same:
        assert same.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        assert idle <= 60
    lent.close()
    storage.close()


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "5", True])
def test_a_time_out_that_makes_no_sense_is_refused(seconds: Any) -> None:
    """None is how to say that there is none."""
    with pytest.raises(InvalidInputError, match="answer_timeout_s"):
        connect("postgresql://u@127.0.0.1:1/none", answer_timeout_s=seconds)


def test_work_that_takes_long_has_no_time_out(
    caller: Caller, postgres: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving a pool waits for a lock for as long as somebody holds it."""
    caller.warm_up()
    lock = locked(postgres, "pools")
    lock.__enter__()
    timer = threading.Timer(3 * TIMEOUT_S, lambda: lock.__exit__(None, None, None))
    timer.start()
    caller.storage.save_pool(ProxyPool(name="later"))
    timer.join()
    assert postgres.get_pool_by_name("later") is not None
