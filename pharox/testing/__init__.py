"""The contract of storage adapters, as tests to run with your own adapter.

    from pharox.testing import StorageContract

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self):
            return MyStorage(...)

Each test gets a fresh, empty storage from the fixture ``storage``. If the storage's
clock can be moved, override the fixture ``pass_time`` as well: it returns a function
that advances the clock by so many seconds. The default really waits. The suite runs
unchanged over all four of pharox's own storages.

For an async storage use ``AsyncStorageContract`` and the fixture ``async_storage``;
that suite also cancels tasks.
"""

from .awaiting import Awaited
from .cancelling import AsyncStorageContract, Interrupted
from .contract import StorageContract, checked, counts
from .making import PassTime, lease_from, make_pool, make_proxy

__all__ = [
    "AsyncStorageContract",
    "Awaited",
    "Interrupted",
    "PassTime",
    "StorageContract",
    "checked",
    "counts",
    "lease_from",
    "make_pool",
    "make_proxy",
]
