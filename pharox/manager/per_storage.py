"""One object for each storage, such as its keeper: made when first needed, and gone with it.

A forked child has threads and locks of its parent that nobody will ever release, so there each
object starts anew.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakKeyDictionary


class Restartable(Protocol):
    """What an object of a storage has to know."""

    @property
    def is_over(self) -> bool:
        """Whether its event loop has ended, so that it can do nothing any more."""

    def start_empty(self) -> None:
        """Forget everything, with no thread or timer."""


T = TypeVar("T", bound=Restartable)


class PerStorage(Generic[T]):
    """The objects of one kind, by their storages. It lasts as long as the process."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, T] = WeakKeyDictionary()
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._start_empty_in_child)

    def get(self, storage: Any) -> T | None:
        """Return a storage's object if there is one."""
        return self._known.get(storage)

    def of(self, storage: Any, kind: Callable[[Any], T]) -> T:
        """Return a storage's object, made of ``kind`` if there is none."""
        known = self._known.get(storage)
        if known is None:
            with self._lock:
                for other in [*self._known.values()]:
                    if other.is_over:  # What it has refers to its storage.
                        other.start_empty()
                known = self._known.get(storage)
                if known is None:
                    known = self._known[storage] = kind(storage)
        return known

    def _start_empty_in_child(self) -> None:
        self._lock = threading.Lock()
        for each in list(self._known.values()):
            each.start_empty()
