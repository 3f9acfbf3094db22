"""Both storages, and a plain adapter, keep the contract of ``pharox.testing``, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pharox import HealthPolicy, InMemoryStorage, InvalidInputError
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.testing import PassTime, StorageContract, checked, make_pool, make_proxy
from tests.conftest import clock_of


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


class Elsewhere(IStorage):
    """An adapter with the methods of 0.11.0 alone; all others are those of the interface."""

    def __init__(self) -> None:
        self.kept = InMemoryStorage()


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Elsewhere, *args: Any, **options: Any) -> Any:
        return getattr(self.kept, name)(*args, **options)

    return method


for _name in IStorage.__abstractmethods__:
    setattr(Elsewhere, _name, _passed_on(_name))
Elsewhere.__abstractmethods__ = frozenset()


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
        with pytest.raises(InvalidInputError, match="Elsewhere counts no results"):
            storage.record_health_checks([checked(proxy)], policy)
        assert storage.get_last_health_result(proxy.id) is None
