"""What every storage adapter must do, as tests to run over your own.

    from pharox.testing import StorageContract

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self):
            return MyStorage(...)

Each test gets a fresh, empty storage from the fixture ``storage``. Where the
storage's clock can be moved, override the fixture ``pass_time`` as well: it
returns a function that lets so many seconds go by, and waits for real if you
leave it. The suite runs unchanged over all four of pharox's own storages.

For a storage with coroutines it is ``AsyncStorageContract`` and the fixture
``async_storage``; that suite cancels tasks as well.
"""

from .awaiting import Awaited
from .cancelling import AsyncStorageContract, Interrupted
from .contract import (
    PassTime,
    StorageContract,
    checked,
    counts,
    lease_from,
    make_pool,
    make_proxy,
)

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
