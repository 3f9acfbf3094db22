"""What is done before a storage is closed, by those who hold something that it is to record.

A storage knows nothing of managers. They say here what they have left to write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from ..effects import Calls

_of_storages: WeakKeyDictionary[Any, list[Callable[[], Calls[None]]]] = WeakKeyDictionary()


def before_close(storage: Any, program: Callable[[], Calls[None]]) -> None:
    """Run a program before a storage is closed. It must not raise, nor hold the storage."""
    _of_storages.setdefault(storage, []).append(program)


def finishing(storage: Any) -> Calls[None]:
    """Run what was asked for. Each storage does this first when it is closed."""
    for program in tuple(_of_storages.get(storage, ())):
        yield from program()
