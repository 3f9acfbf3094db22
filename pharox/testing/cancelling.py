"""Cancel a task at any step, and test what an async storage must still do then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

import pytest

from ..models import Lease, LeaseStatus
from ..storage.async_interface import IAsyncStorage
from ..storage.requests import AcquireRequest, AcquireSetRequest, ReleaseRequest
from .awaiting import Awaited
from .contract import StorageContract, counts
from .making import lease_from, make_pool, make_proxy

T = TypeVar("T")


class Interrupted(Generic[T]):
    """An awaitable whose task is cancelled at certain steps.

    A step ends wherever the awaitable waits, counted from 1. The cancellation comes
    while it waits or, with ``as_it_wakes``, at the moment when its wait is over.

    Attributes
    ----------
    steps:
        How many times it has waited so far.
    """

    def __init__(
        self, awaitable: Awaitable[T], at: Collection[int], *, as_it_wakes: bool = False
    ) -> None:
        self._awaitable = awaitable
        self._at = at
        self._as_it_wakes = as_it_wakes
        self.steps = 0

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._awaitable.__await__()
        go_on: Callable[[Any], Any] = inner.send
        answer: Any = None
        while True:
            try:
                waited_for = go_on(answer)
            except StopIteration as end:
                result: T = end.value
                return result
            self.steps += 1
            if self.steps in self._at:
                self._cancel(waited_for)
            try:
                go_on, answer = inner.send, (yield waited_for)
            except BaseException as error:
                go_on, answer = inner.throw, error

    def _cancel(self, waited_for: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if self._as_it_wakes and waited_for is not None:
            waited_for.add_done_callback(lambda _: task.cancel())
        else:
            asyncio.get_running_loop().call_soon(task.cancel)


def each_cancellation(
    storage: Any, ask: Callable[[], Awaitable[Any]], *, as_it_wakes: bool
) -> Iterator[None]:
    """Cancel what is asked at its first step, then at its second, until none is left.

    Yields after each cancellation.
    """
    for step in count(1):
        asked = Interrupted(ask(), [step], as_it_wakes=as_it_wakes)
        if not storage.is_cancelled(asked):
            break
        yield
    assert asked.steps < step


class AsyncStorageContract(StorageContract):
    """What every async storage must do. Give it an ``async_storage`` fixture."""

    @pytest.fixture
    def async_storage(self) -> IAsyncStorage:
        """Return a fresh, empty storage, created while no loop runs; override this."""
        raise NotImplementedError("override the fixture `async_storage`")

    @pytest.fixture
    def storage(self, async_storage: IAsyncStorage) -> Any:
        """Return the storage wrapped for tests that do not await."""
        with Awaited(async_storage) as storage:
            yield storage

    @pytest.mark.parametrize("as_it_wakes", [False, True])
    def test_a_cancelled_acquisition_leaves_no_lease(
        self, storage: Any, *, as_it_wakes: bool
    ) -> None:
        """Wherever a task is cancelled while it acquires, nothing is leased afterwards."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        request = AcquireRequest(pool.name, "worker")
        ask = partial(storage.awaitable.acquire_lease, request)
        for _ in each_cancellation(storage, ask, as_it_wakes=as_it_wakes):
            assert counts(storage, pool) == (1, 1, 1, 0, 0)
        assert counts(storage, pool) == (1, 1, 0, 1, 1)

    @pytest.mark.parametrize("as_it_wakes", [False, True])
    def test_a_cancelled_set_leaves_no_lease(self, storage: Any, *, as_it_wakes: bool) -> None:
        """Wherever a task is cancelled while it acquires several, nothing is leased afterwards."""
        pool = make_pool(storage)
        for _ in range(2):
            make_proxy(storage, pool)
        request = AcquireSetRequest(pool.name, "worker", 2)
        ask = partial(storage.awaitable.acquire_set, request)
        for _ in each_cancellation(storage, ask, as_it_wakes=as_it_wakes):
            assert counts(storage, pool) == (2, 2, 2, 0, 0)
        assert counts(storage, pool) == (2, 2, 0, 2, 2)

    def test_a_cancelled_batch_gives_back_and_leases_nothing(self, storage: Any) -> None:
        """Wherever a task is cancelled, its batch's releases are done and its leases are gone."""
        pool = make_pool(storage)
        for _ in range(2):
            make_proxy(storage, pool)
        for step in count(1):
            held: Lease = lease_from(storage, pool)
            commands = [AcquireRequest(pool.name, "worker"), ReleaseRequest(held)]
            asked = Interrupted(storage.awaitable.run_batch(commands), [step])
            if not storage.is_cancelled(asked):
                break
            assert held.status is LeaseStatus.RELEASED
            assert counts(storage, pool) == (2, 2, 2, 0, 0)
        assert asked.steps < step
        assert counts(storage, pool) == (2, 2, 1, 1, 1)

    @pytest.mark.parametrize("as_it_wakes", [False, True])
    def test_a_cancelled_release_releases(self, storage: Any, *, as_it_wakes: bool) -> None:
        """Wherever a task is cancelled while it releases, the lease has ended afterwards."""
        pool = make_pool(storage)
        make_proxy(storage, pool)
        for step in count(1):
            lease: Lease = lease_from(storage, pool)
            asked = Interrupted(
                storage.awaitable.return_lease(lease), [step], as_it_wakes=as_it_wakes
            )
            cancelled = storage.is_cancelled(asked)
            assert lease.status is LeaseStatus.RELEASED
            assert counts(storage, pool) == (1, 1, 1, 0, 0)
            if not cancelled:
                break
