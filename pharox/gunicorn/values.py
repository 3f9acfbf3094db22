"""Numbers of metrics, kept where the death of their process does not reach them.

This is what a metric of prometheus_client keeps its numbers in, in place of the
library's own ``MultiProcessValue``. The files have the same format; what differs:

- a file's name tells its process for good, while a pid may come again;
- room is reserved before it is written to. A file that is mapped into memory on a
  full disk would else end the process at the next count (SIGBUS). What finds no room
  is kept in memory and written as soon as there is some.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from .family import Family

_ROOM = 1 << 16
_BESIDE_A_KEY = 32
_AGAIN_S = 1.0


class ReservedDict(MmapedDict):
    """A file of numbers, which raises OSError where it finds no room."""

    def __init__(self, path: Path) -> None:
        with path.open("ab") as file:
            _reserve(file.fileno(), _ROOM)
        super().__init__(str(path))

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + _BESIDE_A_KEY > capacity:
            capacity *= 2
        if capacity > self._capacity:
            _reserve(self._f.fileno(), capacity)
        super()._init_value(key)


class Store:
    """The files of this process, and what waits for room in them."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._start()

    def _start(self) -> None:
        self.lock = threading.Lock()
        self._files: dict[str, ReservedDict] = {}
        self._waiting: dict[int, Value] = {}
        self._again_at = 0.0

    def forked(self) -> None:
        """Begin anew in a process that a fork has made."""
        self.close()
        self._start()

    def close(self) -> None:
        """Close the files; nothing may be counted after that."""
        for file in self._files.values():
            file.close()

    def write(self, value: Value) -> None:
        """Write a number, or keep it until there is room."""
        if self._waiting and time.monotonic() < self._again_at:
            self._waiting[id(value)] = value
            return
        for one in (*self._waiting.values(), value):
            try:
                self._file(one.prefix).write_value(one.key, one.number, one.timestamp)
            except OSError:
                self._waiting[id(value)] = value
                self._again_at = time.monotonic() + _AGAIN_S
                return
            self._waiting.pop(id(one), None)

    def flush(self) -> int:
        """Write what waits for room; return how many numbers still do."""
        with self.lock:
            self._again_at = 0.0
            for value in list(self._waiting.values()):
                self.write(value)
            return len(self._waiting)

    def _file(self, prefix: str) -> ReservedDict:
        file = self._files.get(prefix)
        if file is None:
            own = self.family.own or self.family.hold("process")
            name = f"{prefix}_{own.identity}.db"
            file = self._files[prefix] = ReservedDict(self.family.folder / name)
        return file


class Value:
    """A number of a metric, as prometheus_client asks for it."""

    _multiprocess = True
    store: ClassVar[Store]

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Sequence[str],
        labelvalues: Sequence[str],
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self.prefix = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self.key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        self.number = self.timestamp = 0.0
        self._process = os.getpid()
        with self.store.lock:
            self.store.write(self)  # so that it is shown from 0 on

    def inc(self, amount: float) -> None:
        """Add to the number."""
        with self.store.lock:
            self._own()
            self.number += amount
            self.timestamp = 0.0
            self.store.write(self)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the number."""
        with self.store.lock:
            self._own()
            self.number, self.timestamp = value, timestamp or 0.0
            self.store.write(self)

    def get(self) -> float:
        """Return the number as this process knows it."""
        with self.store.lock:
            self._own()
            return self.number

    def set_exemplar(self, exemplar: Any) -> None:
        """Do nothing: exemplars are not kept for several processes."""

    def get_exemplar(self) -> None:
        """Return None; see :meth:`set_exemplar`."""

    def _own(self) -> None:
        """Begin at 0 in a process that a fork has made: the parent's number is the parent's."""
        if self._process != (process := os.getpid()):
            self._process, self.number, self.timestamp = process, 0.0, 0.0


def value_class(store: Store) -> type[Value]:
    """Return the class that keeps its numbers in a store."""
    return type("FamilyValue", (Value,), {"store": store})


def _reserve(descriptor: int, size: int) -> None:
    reserve: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if reserve is not None:  # macOS has none.
        reserve(descriptor, 0, size)
