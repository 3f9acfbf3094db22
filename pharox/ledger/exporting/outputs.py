"""Where lines go: a file that survives a crash, or a pipe.

A file's lines count as written once the disk has them. A process that is killed may leave
half a line at the end; the next one cuts it off, as its event is written again. A file
that was moved away, as logrotate does, is begun anew.

A line that fits into ``PIPE_BUF`` (4,096 bytes) goes into a pipe as a whole or not at
all, also when the process is killed. What becomes of it behind the pipe is not known here.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pharox.errors import ConflictError, InvalidInputError
from pharox.models.text import escape_unprintable

from .cloud_events import BEGINNING

STALLED_S = 1.0
"""How long a pipe may take no line before the exporter gives the database's lock back."""

_BLOCK = 65_536


class Output(Protocol):
    """What an exporter writes to."""

    batches: bool
    """Whether it takes all lines that were read together, or one at a time."""

    def write(self, lines: Sequence[bytes]) -> None:
        """Write all lines or raise; return once they are where they should be.

        Raises
        ------
        StalledError
            If it takes nothing at the moment. Nothing was written.
        ConflictError, InvalidInputError
            If it has become a file that is not to be written.
        OSError
            If it cannot be written.
        """

    def check(self) -> None:
        """Raise :class:`OSError` if it will take no more lines."""


class StalledError(Exception):
    """Nobody reads the pipe at the moment, and it is full."""


class LineFile:
    """A file of lines, which one process at a time writes.

    Parameters
    ----------
    path:
        The file, created if there is none. Lines are added to its end.

    Raises
    ------
    ConflictError
        If another process writes it.
    InvalidInputError
        If it is no regular file, or does not end as an export does.
    OSError
        If it cannot be opened.
    """

    batches = True

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self.cut_bytes = 0
        """How many bytes of half a line were cut off the file's end."""
        self._file: int | None = self._open()

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines and have the disk keep them; on an error none of them stays."""
        file = self._current()
        size = os.fstat(file).st_size
        try:
            write_all(file, b"".join(lines))
            os.fsync(file)
        except OSError:
            with suppress(OSError):  # the next start does it
                os.ftruncate(file, size)
            raise

    def check(self) -> None:
        """Do nothing: a file tells when it is written."""

    def close(self) -> None:
        """Close the file, for others to write. A later write opens it again."""
        # Forgotten first: a number that was closed may be another file's by then.
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _current(self) -> int:
        """Return the descriptor of the file that has the path now, and open it if need be."""
        if self._file is None or self._was_moved(self._file):
            file = self._open()
            self.close()
            self._file = file
        return self._file

    def _open(self) -> int:
        # O_NONBLOCK: a FIFO is to be refused, not waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise InvalidInputError(f"{self._shown} is not a regular file")
            self._lock(file)
            self._cut_half_line(file)
            sync_folder(self._path.absolute().parent)
        except BaseException:
            os.close(file)
            raise
        return file

    def _lock(self, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another process writes {self._shown}") from error

    def _cut_half_line(self, file: int) -> None:
        size = os.fstat(file).st_size
        rest = _after_last_line(file, size)
        # After a power failure a file may end with zeros that were never written.
        begun = rest.rstrip(b"\0")
        if not BEGINNING.startswith(begun[: len(BEGINNING)]):
            raise InvalidInputError(
                f"{self._shown} ends with half a line that is not of an export; give another file"
            )
        if rest:
            os.ftruncate(file, size - len(rest))
            os.fsync(file)
        self.cut_bytes = len(rest)

    def _was_moved(self, file: int) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return True
        return not os.path.samestat(found, os.fstat(file))

    @property
    def _shown(self) -> str:
        return escape_unprintable(str(self._path))


class LinePipe:
    """A file descriptor whose other end somebody reads, such as standard output."""

    batches = False

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._end = select.poll()
        self._end.register(descriptor, 0)

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines once there is room for them."""
        for line in lines:
            if not self._poll.poll(STALLED_S * 1000):
                raise StalledError(f"nobody has read for {STALLED_S:g} s")
            write_all(self._descriptor, line)

    def check(self) -> None:
        """Raise BrokenPipeError if nobody can read any more."""
        if any(state & select.POLLERR for _, state in self._end.poll(0)):
            raise BrokenPipeError


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it, also to a descriptor that takes it piece by piece."""
    rest = memoryview(content)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # somebody else made the pipe non-blocking
            select.select([], [descriptor], [])


def _after_last_line(descriptor: int, size: int) -> bytes:
    """Return what follows the last line feed of a file."""
    rest = b""
    while (at := size - len(rest)) > 0:
        block = os.pread(descriptor, min(_BLOCK, at), max(0, at - _BLOCK))
        before, feed, after = block.rpartition(b"\n")
        rest = (after if feed else before + after) + rest
        if feed:
            break
    return rest


def sync_folder(folder: Path) -> None:
    """Have the disk keep the name of a file that was created in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
