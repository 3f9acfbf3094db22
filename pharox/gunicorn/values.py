"""Store the values of metrics in files that outlive their process.

This replaces ``MultiProcessValue`` of prometheus_client. The files have the same format; the
differences:

- a file's name identifies its process for good, while a pid may be reused;
- disk space is reserved before it is written to. Otherwise a memory-mapped file on a full disk
would end the process at the next count (SIGBUS). Values that find no room stay in memory and are
written as soon as there is room.
"""

from __future__ import annotations

import errno
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
    """A file of values, which raises OSError if the disk is full."""

    def __init__(self, path: Path) -> None:
        with path.open("ab") as file:
            os.fchmod(file.fileno(), 0o644)  # The process that serves may have another user.
            _reserve(file.fileno(), _ROOM)
        super().__init__(str(path))

    def has(self, key: str) -> bool:
        """Return whether a value has a place in the file."""
        return key in self._positions

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + _BESIDE_A_KEY > capacity:
            capacity *= 2
        if capacity > self._capacity:
            _reserve(self._f.fileno(), capacity)
        super()._init_value(key)


class Number:
    """The value of a series and its time, with the key from prometheus_client."""

    __slots__ = ("key", "prefix", "timestamp", "value")

    def __init__(self, prefix: str, key: str) -> None:
        self.prefix, self.key = prefix, key
        self.value = self.timestamp = 0.0


class Store:
    """The values of this process, their files, and the values that wait for room."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._start()

    def _start(self) -> None:
        self.lock = threading.Lock()
        self.numbers: dict[tuple[str, str], Number] = {}
        self._files: dict[str, ReservedDict] = {}
        self._waiting: dict[Number, None] = {}
        self._again_at = 0.0

    def forked(self) -> None:
        """Start empty in a forked process: the parent keeps its own values."""
        self.close()
        self._start()

    def close(self) -> None:
        """Close the files. Nothing may be counted afterwards."""
        for file in self._files.values():
            file.close()

    def number(self, prefix: str, key: str) -> Number:
        """Return the value of a series, which two metrics may share; it is shown from 0 on."""
        number = self.numbers.get((prefix, key))
        if number is None:
            number = self.numbers[prefix, key] = Number(prefix, key)
            self.write(number)
        return number

    def write(self, number: Number) -> None:
        """Write a value, or keep it until there is room."""
        file = self._files.get(number.prefix)
        if file is not None and file.has(number.key):
            file.write_value(number.key, number.value, number.timestamp)
        else:
            self._waiting[number] = None
        if self._waiting and time.monotonic() >= self._again_at:
            self._write_waiting()

    def _write_waiting(self) -> None:
        for number in list(self._waiting):
            try:
                self._file(number.prefix).write_value(number.key, number.value, number.timestamp)
            except OSError:
                self._again_at = time.monotonic() + _AGAIN_S
            else:
                del self._waiting[number]

    def flush(self) -> int:
        """Write the values that wait for room; return how many still wait."""
        with self.lock:
            self._write_waiting()
            return len(self._waiting)

    def _file(self, prefix: str) -> ReservedDict:
        file = self._files.get(prefix)
        if file is None:
            path = self.family.folder / f"{prefix}_{self.family.hold()}.db"
            file = self._files[prefix] = ReservedDict(path)
        return file


class Value:
    """A metric's value, with the interface that prometheus_client needs."""

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
        prefix = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        key = mmap_key(metric_name, name, list(labelnames), list(labelvalues), help_text)
        self._series = prefix, key
        with self.store.lock:
            self.store.number(*self._series)

    def inc(self, amount: float) -> None:
        """Add to the value."""
        with self.store.lock:
            number = self.store.number(*self._series)
            number.value += amount
            number.timestamp = 0.0
            self.store.write(number)

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Replace the value."""
        with self.store.lock:
            number = self.store.number(*self._series)
            number.value, number.timestamp = value, timestamp or 0.0
            self.store.write(number)

    def get(self) -> float:
        """Return the value in this process."""
        with self.store.lock:
            return self.store.number(*self._series).value

    def set_exemplar(self, exemplar: Any) -> None:
        """Do nothing: exemplars are not kept for several processes."""

    def get_exemplar(self) -> None:
        """Return None; see :meth:`set_exemplar`."""


def value_class(store: Store) -> type[Value]:
    """Return a value class that writes to a store."""
    return type("FamilyValue", (Value,), {"store": store, "folder": store.family.folder})


def _reserve(descriptor: int, size: int) -> None:
    reserve: Callable[[int, int, int], None] | None = getattr(os, "posix_fallocate", None)
    if reserve is None:  # macOS has none.
        return
    try:
        reserve(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # The file system has none.
            raise
