"""Both storages keep the contract that ``pharox.testing`` publishes, unchanged."""

from __future__ import annotations

import pytest

from pharox import InMemoryStorage
from pharox.storage.interface import IStorage
from pharox.storage.postgres import PostgresStorage
from pharox.testing import PassTime, StorageContract
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
