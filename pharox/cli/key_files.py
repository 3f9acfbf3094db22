"""Read the files of checkpoints, keys and proofs that a command is given."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import InvalidInputError


def read_file(path: Path) -> bytes:
    """Return a file's bytes; those of standard input for ``-``.

    Raises
    ------
    InvalidInputError
        If it cannot be read.
    """
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        raise InvalidInputError(f"{path} cannot be read: {why}") from error


def read_text(path: Path) -> str:
    """Return a file's text.

    Raises
    ------
    InvalidInputError
        If it cannot be read, or is none.
    """
    try:
        return read_file(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is no text") from error
