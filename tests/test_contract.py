"""All four storages, and plain adapters, keep the contract of ``pharox.testing``, unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pharox import (
    AsyncInMemoryStorage,
    HealthPolicy,
    IAsyncStorage,
    InMemoryStorage,
    InvalidInputError,
)
from pharox.storage.interface import IStorage
from pharox.storage.postgres import AsyncPostgresStorage, PostgresStorage
from pharox.testing import (
    AsyncStorageContract,
    PassTime,
    StorageContract,
    checked,
    make_pool,
    make_proxy,
)
from tests.conftest import SECRET_KEY, clock_of, open_async_engine


class TestInMemoryStorage(StorageContract):
    @pytest.fixture
    def storage(self) -> IStorage:
        return InMemoryStorage()

    @pytest.fixture
    def pass_time(self, storage: IStorage) -> PassTime:
        return clock_of(storage).advance


class TestPostgresStorage(StorageContract):
    @pytest.fixture
    def storage(self, postgres: PostgresStorage) -> IStorage:
        return postgres


class TestAsyncInMemoryStorage(AsyncStorageContract):
    @pytest.fixture
    def async_storage(self) -> IAsyncStorage:
        return AsyncInMemoryStorage()

    @pytest.fixture
    def pass_time(self, async_storage: AsyncInMemoryStorage) -> PassTime:
        return clock_of(async_storage.memory).advance


class TestAsyncPostgresStorage(AsyncStorageContract):
    @pytest.fixture
    def async_storage(self, database_url: str) -> IAsyncStorage:
        return AsyncPostgresStorage(open_async_engine(database_url), secret_keys=[SECRET_KEY])


def _implement(adapter: Any, interface: Any, method: Callable[[str], Any]) -> None:
    """Give an adapter the abstract methods of its interface, each made of its name."""
    for name in interface.__abstractmethods__:
        setattr(adapter, name, method(name))
    adapter.__abstractmethods__ = frozenset()


class Elsewhere(IStorage):
    """An adapter with the methods of 0.11.0 alone; all others are those of the interface."""

    def __init__(self) -> None:
        self.kept = InMemoryStorage()


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Elsewhere, *args: Any, **options: Any) -> Any:
        return getattr(self.kept, name)(*args, **options)

    return method


_implement(Elsewhere, IStorage, _passed_on)


class TestAdapterOfSomebody(StorageContract):
    @pytest.fixture
    def storage(self) -> IStorage:
        return Elsewhere()  # type: ignore[abstract]

    @pytest.fixture
    def pass_time(self, storage: Elsewhere) -> PassTime:
        return clock_of(storage.kept).advance

    def test_it_cannot_count_results_in_a_row(self, storage: IStorage) -> None:
        """A policy that it could not follow is refused, and nothing is recorded."""
        proxy = make_proxy(storage, make_pool(storage))
        policy = HealthPolicy(failures_before_inactive=2)
        with pytest.raises(InvalidInputError, match="Elsewhere does not count results"):
            storage.record_health_checks([checked(proxy)], policy)
        assert storage.get_last_health_result(proxy.id) is None


class AsyncElsewhere(IAsyncStorage):
    """An adapter with the coroutines of 0.11.0 alone, each of which waits before it begins."""

    def __init__(self) -> None:
        self.kept = InMemoryStorage()


def _passed_on_later(name: str) -> Callable[..., Any]:
    async def method(self: AsyncElsewhere, *args: Any, **options: Any) -> Any:
        await asyncio.sleep(0)
        return getattr(self.kept, name)(*args, **options)

    return method


_implement(AsyncElsewhere, IAsyncStorage, _passed_on_later)


class TestAsyncAdapterOfSomebody(AsyncStorageContract):
    @pytest.fixture
    def async_storage(self) -> IAsyncStorage:
        return AsyncElsewhere()  # type: ignore[abstract]

    @pytest.fixture
    def pass_time(self, async_storage: AsyncElsewhere) -> PassTime:
        return clock_of(async_storage.kept).advance
