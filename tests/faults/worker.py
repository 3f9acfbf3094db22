"""Workers that lease, expire, seal and rebuild in a loop, until they are killed or told to stop.

They are forked from a server that has imported this module, so that each is
there in milliseconds, with the statements it needs compiled.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from pharox import (
    AsyncProxyManager,
    ConflictError,
    DatabaseError,
    Lease,
    LeaseEndedError,
    LeaseStatus,
    OutcomeUnknownError,
    ProxyManager,
    ProxyStatus,
    new_lease_id,
)
from pharox.ledger.rebuild import rebuild
from pharox.storage.postgres import (
    AsyncPostgresStorage,
    PostgresStorage,
    cancellation_guard,
    deadline,
)
from pharox.testing import Awaited
from tests.conftest import SECRET_KEY, open_async_engine, open_engine
from tests.faults.diary import DOUBTED, HELD, RELEASED, Diary
from tests.ledger.following import until

T = TypeVar("T")

POOL = "pool"
SCARCE = "scarce"
CROWD = 4
WAIT_S = 30
LEASE_S = 1
"""Long enough to be released in time, and short enough to be waited for."""


class Worker:
    """One worker: a storage, a diary, and what to do until it is stopped."""

    def __init__(
        self,
        storage: Any,
        manager: Any,
        run: Callable[[Any], Any],
        sleep: Callable[[float], None],
        path: Path,
        stop: Event,
    ) -> None:
        self.storage, self._manager, self._run, self._sleep = storage, manager, run, sleep
        self.diary, self._name = Diary(path), path.stem
        self._choose = random.Random(path.name)
        self._stop = stop

    def lease(self) -> None:
        """Acquire and release, sometimes only acquire."""
        lease_id = new_lease_id()
        lease = self.until_known(lease_id, lambda: self._acquire(lease_id))
        if lease is None:
            return
        self.diary.hold(lease)
        time.sleep(self._choose.choice([0, 0, 0.002]))
        if self._choose.random() < 0.1:  # left to run out
            return
        self.until_known(lease.id, lambda: self._run(self._manager.release_proxy(lease)))
        if lease.status is LeaseStatus.RELEASED:
            self.diary.note(RELEASED, lease.id)

    def ban(self) -> None:
        """Ban a proxy for a moment, and lease, which ends the bans that are over."""
        seconds = self._choose.uniform(0.001, 0.1)
        try:
            pool = self.storage.get_pool_by_name(POOL)
            proxy = self._choose.choice(self.storage.list_proxies(str(pool.id)))
            self.storage.set_status(proxy.id, ProxyStatus.BANNED, for_seconds=seconds)
        except DatabaseError:
            self._stop.wait(0.05)
        self.lease()

    def wait(self) -> None:
        """Wait for one of few proxies, and hold it for a moment."""
        self._wait_and_hold(self._choose.uniform(0, 0.05), keep_alive=False)

    def crowd(self) -> None:
        """Wait in several threads at once, for as many proxies."""
        with ThreadPoolExecutor(CROWD) as threads:
            for done in [threads.submit(self.wait) for _ in range(CROWD)]:
                done.result()

    def pair(self) -> None:
        """Wait for two of few proxies at once, and hold them for a moment."""
        leases = self._run(
            self._manager.acquire_proxies(SCARCE, 2, self._name, LEASE_S, wait_seconds=WAIT_S)
        )
        for lease in leases:
            self.diary.hold(lease)
        self._run(self._manager.release_proxies(leases))

    def hold(self) -> None:
        """Wait for one of few proxies, and hold it until it is released or has run out."""
        self._wait_and_hold(self._choose.uniform(0.2, 1.2) * LEASE_S, keep_alive=False)

    def keep(self) -> None:
        """Wait for one of few proxies, and keep it, sometimes for longer than it lasts."""
        self._wait_and_hold(
            self._choose.choice([0.1, 1.5 * LEASE_S, 2.5 * LEASE_S]), keep_alive=True
        )

    def _wait_and_hold(self, seconds: float, *, keep_alive: bool) -> None:
        lease_id, begun = new_lease_id(), time.monotonic()
        options = {"lease_id": lease_id, "wait_seconds": WAIT_S, "keep_alive": keep_alive}

        def ask() -> Any:
            return self._run(self._manager.acquire_proxy(SCARCE, self._name, LEASE_S, **options))

        lease = self.until_known(lease_id, ask)
        if lease is None:
            waited_s = time.monotonic() - begun
            assert self._stop.is_set() or waited_s < WAIT_S + 10, f"a miss after {waited_s} s"
            return
        self.diary.hold(lease)
        self._sleep(seconds)
        self.until_known(lease.id, lambda: self._run(self._manager.release_proxy(lease)))
        if lease.status is LeaseStatus.RELEASED:
            self.diary.note(RELEASED, lease.id)

    def expire(self) -> None:
        """Take back what has run out."""
        self._run(self._manager.cleanup_expired_leases())

    def seal(self) -> None:
        """Seal what is new."""
        self.storage.seal()

    def rebuild(self) -> None:
        """Rebuild read models, unless somebody else is at it."""
        try:
            rebuild(self.storage, ["leases", "pool_stats"])
        except (ConflictError, DatabaseError):
            time.sleep(0.01)

    def until_known(self, lease_id: UUID, ask: Callable[[], T]) -> T | None:
        """Ask again and again while the database is away or left it open what it did."""
        while True:
            try:
                return ask()
            except OutcomeUnknownError:
                self.diary.note(DOUBTED, lease_id)
            except LeaseEndedError:  # granted while nobody could be told, and run out since
                return None
            except DatabaseError:
                pass
            if self._stop.wait(0.05):
                return None

    def _acquire(self, lease_id: UUID) -> Lease | None:
        lease: Lease | None = self._run(
            self._manager.acquire_proxy(POOL, "w", LEASE_S, lease_id=lease_id)
        )
        return lease


@dataclass(frozen=True)
class Task:
    """What a worker is to do, and how."""

    url: str
    path: Path
    role: str = "lease"
    answer_timeout_s: float = 30.0
    awaits: bool = False


def work(task: Task, begun: Event, stop: Event) -> None:
    """Do one thing again and again."""
    # A server that is asked to cancel a statement has no more time than for an answer.
    deadline.CANCEL_S = cancellation_guard.PATIENCE_S = min(
        deadline.CANCEL_S, task.answer_timeout_s
    )
    with _working(task, stop) as worker:
        act = getattr(worker, task.role)
        act()
        begun.set()
        while not stop.is_set():
            act()


@contextmanager
def _working(task: Task, stop: Event) -> Iterator[Worker]:
    options: dict[str, Any] = {
        "secret_keys": [SECRET_KEY],
        "answer_timeout_s": task.answer_timeout_s,
    }
    if task.awaits:
        awaitable = AsyncPostgresStorage(open_async_engine(task.url), **options)
        with Awaited(awaitable) as awaited:

            def sleep(seconds: float) -> None:
                awaited.run(asyncio.sleep(seconds))  # The loop's keeper goes on meanwhile.

            manager = AsyncProxyManager(awaitable)
            yield Worker(awaited, manager, awaited.run, sleep, task.path, stop)
    else:
        storage = PostgresStorage(open_engine(task.url), **options)
        yield Worker(storage, ProxyManager(storage), lambda done: done, time.sleep, task.path, stop)


_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload([__name__])


class Running:
    """A worker's process."""

    def __init__(self, url: str, folder: Path, role: str = "lease", **how: Any) -> None:
        self._begun, self._stop = _processes.Event(), _processes.Event()
        self._diary = folder / f"{new_lease_id()}.diary"
        task = Task(url, self._diary, role, **how)
        self.process: BaseProcess = _processes.Process(
            target=work, args=(task, self._begun, self._stop)
        )
        self.process.start()

    def wait_until_begun(self, timeout_s: float = 60) -> None:
        """Wait until the worker has done its work once."""
        assert self._begun.wait(timeout_s), "the worker has not begun"

    def wait_until_holding(self) -> None:
        """Wait until the worker has been told of a lease."""
        until(lambda: self._diary.exists() and HELD in self._diary.read_text(), 2 * WAIT_S)

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """Let it finish what it is at, and end."""
        self._stop.set()
        self.process.join(timeout=60)
        assert self.process.exitcode == 0, self.process.exitcode


def stop_all(workers: Iterable[Running]) -> None:
    """Let workers finish, and wait until the leases that they left have run out."""
    for worker in workers:
        worker.stop()
    time.sleep(LEASE_S)
