"""A file of checkpoints, to which one process at a time adds.

A checkpoint counts as published once the disk has it. What a killed process left half at the end
is cut off by the next one; whoever reads meanwhile passes over it.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from ...errors import ConflictError, InvalidInputError
from ...proof.checkpoints import Checkpoint, complete_bytes, entry, read_checkpoints
from ...proof.notes import VerifierKey
from ..exporting.outputs import sync_folder, write_all


class CheckpointFile:
    """Adds checkpoints to the end of a file, and knows the last one.

    Parameters
    ----------
    path:
        The file, created if there is none.
    key:
        Who has signed what the file has.

    Raises
    ------
    ConflictError
        If another process writes it.
    InvalidInputError
        If it has anything but checkpoints of this key.
    OSError
        If it cannot be opened.
    """

    def __init__(self, path: Path | str, key: VerifierKey) -> None:
        self._path = Path(path)
        # O_NONBLOCK: a FIFO is to be refused, not waited for.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
        self._file = os.open(self._path, flags, 0o644)
        try:
            self.last = self._read(key)
            """The checkpoint that was published last."""
            sync_folder(self._path.absolute().parent)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return str(self._path)

    def publish(self, checkpoint: Checkpoint) -> None:
        """Add a checkpoint and have the disk keep it; on an error nothing of it stays."""
        size = os.fstat(self._file).st_size
        try:
            write_all(self._file, entry(checkpoint))
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):  # the next start does it
                os.ftruncate(self._file, size)
            raise
        self.last = checkpoint

    def close(self) -> None:
        """Close the file, for others to write."""
        os.close(self._file)

    def _read(self, key: VerifierKey) -> Checkpoint | None:
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise InvalidInputError(f"{self._path} is not a regular file")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"another process writes {self._path}") from error
        content = self._path.read_bytes()
        last = None
        for found in read_checkpoints(content):
            if isinstance(found, InvalidInputError):
                raise InvalidInputError(f"{self._path} is no file of checkpoints: {found}")
            found.check(key)
            last = found
        self._cut(content, key)
        return last

    def _cut(self, content: bytes, key: VerifierKey) -> None:
        """Cut off what follows the last checkpoint, if it is the beginning of one of this key."""
        complete = complete_bytes(content)
        # Zeros after a power failure: see `pharox.proof.checkpoints`.
        rest = content[complete:].rstrip(b"\0")
        begins = f"{key.name}\n".encode()
        if rest[: len(begins)] != begins[: len(rest)]:
            raise InvalidInputError(f"{self._path} ends with what is no checkpoint of {key.name!r}")
        if complete < len(content):
            os.ftruncate(self._file, complete)
            os.fsync(self._file)
