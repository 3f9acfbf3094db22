"""Checkpoints: what the log was when it had so many events, signed (c2sp.org/tlog-checkpoint).

    <origin: which log this is, the name of its key>
    <size>
    <root of the tree, in base64>

    — <origin> <signature>

A file of checkpoints has one after another, each with an empty line behind it, so that a person can
read it and a process only ever adds to it. What a killed process left half at its end is no
checkpoint. An object of a store is one checkpoint without that line, and a file may be put together
of such objects.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pharox.log.signed_heads import CHECKPOINT
from pharox.log.tree import TreeHead
from projections import Finding

from ..errors import InvalidInputError
from .notes import Note, SigningKey, VerifierKey, note_text, parse_note, signed

_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_ROOT_BYTES = 32
_MARK = "\N{EM DASH} ".encode()
"""What a signature's line begins with."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed head of a log's tree.

    Parameters
    ----------
    note:
        What was signed, and the signatures; not checked here, see :meth:`check`.

    Raises
    ------
    InvalidInputError
        If the note is no checkpoint.
    """

    note: Note

    def __post_init__(self) -> None:
        _ = self.head

    @property
    def origin(self) -> str:
        """Which log this is of."""
        return self.note.text.split("\n")[0]

    @property
    def head(self) -> TreeHead:
        """The size and the root of the tree."""
        lines = self.note.text.split("\n")
        if len(lines) < 4 or not _SIZE.fullmatch(lines[1]):
            raise InvalidInputError("this is not a checkpoint: its second line is no size")
        try:
            root = base64.b64decode(lines[2], validate=True)
        except ValueError as error:
            raise InvalidInputError(
                "this is not a checkpoint: its third line is no root"
            ) from error
        if len(root) != _ROOT_BYTES or base64.b64encode(root).decode() != lines[2]:
            raise InvalidInputError("this is not a checkpoint: its third line is no root")
        return TreeHead(int(lines[1]), root)

    def check(self, key: VerifierKey) -> None:
        """Raise unless the key's owner has signed this checkpoint as one of their log.

        Raises
        ------
        InvalidInputError
            If not.
        """
        if not key.has_signed(self.note):
            raise InvalidInputError(
                f"the checkpoint of {self.head.size} events is not signed by {key.name!r}"
            )
        if self.origin != key.name:
            raise InvalidInputError(
                f"the checkpoint is of the log {self.origin!r}, not of {key.name!r}"
            )

    def __str__(self) -> str:
        return note_text(self.note)


def new_checkpoint(head: TreeHead, key: SigningKey) -> Checkpoint:
    """Return a head as a checkpoint of the log that a key signs for."""
    root = base64.b64encode(head.root).decode()
    return Checkpoint(signed(f"{key.name}\n{head.size}\n{root}\n", [key]))


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint in a text.

    Raises
    ------
    InvalidInputError
        If it is none.
    """
    return Checkpoint(parse_note(text))


def entry(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as a file has it."""
    return f"{checkpoint}\n".encode()


def complete_bytes(content: bytes) -> int:
    """Return where the last complete entry of a file of checkpoints ends."""
    return max((end for _, end in _entries(content)), default=0)


def read_checkpoints(content: bytes) -> Iterator[Checkpoint | InvalidInputError]:
    """Yield the checkpoints of a file in its order; for a damaged one, why it is none.

    What follows the last complete entry is passed over: a process was killed while it wrote.
    """
    for begin, end in _entries(content):
        try:
            yield parse_checkpoint(_without_gap(content[begin:end]).decode())
        except UnicodeDecodeError:
            yield InvalidInputError("a checkpoint has bytes that are no text")
        except InvalidInputError as error:
            yield error


def signed_heads(content: bytes, key: VerifierKey) -> tuple[list[TreeHead], list[Finding]]:
    """Return the heads in a file that a key has signed, and what is wrong with the file.

    Parameters
    ----------
    content:
        The bytes of a file of checkpoints.

    Raises
    ------
    InvalidInputError
        If there is no checkpoint in it.
    """
    heads: list[TreeHead] = []
    findings = []
    number = 0
    for number, found in enumerate(read_checkpoints(content), 1):
        try:
            head = _signed_head(found, key)
        except InvalidInputError as error:
            findings.append(_wrong(number, str(error)))
            continue
        if heads and head.size < heads[-1].size:
            findings.append(_wrong(number, f"{head.size} events after {heads[-1].size}"))
        heads.append(head)
    if not number:
        raise InvalidInputError("the file has no checkpoint")
    return heads, findings


def _signed_head(found: Checkpoint | InvalidInputError, key: VerifierKey) -> TreeHead:
    if isinstance(found, InvalidInputError):
        raise found
    found.check(key)
    return found.head


def _wrong(number: int, why: str) -> Finding:
    return Finding(CHECKPOINT, {"number": number}, {"problem": why}, {"problem": None})


def _without_gap(content: bytes) -> bytes:
    return content[:-1] if content.endswith(b"\n\n") else content


def _entries(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each entry begins and ends, the empty line behind it included."""
    # After a power failure a file may end with zeros that were never written.
    content = content.rstrip(b"\0")
    begin = at = 0
    is_signed = False
    while end := content.find(b"\n", at) + 1:
        line, following = content[at:end], content[end : end + len(_MARK)]
        if line == b"\n":
            # At the end of the file there may be the beginning of a signature, or nothing yet.
            is_over = is_signed or not _MARK.startswith(following)
            is_signed = not is_over
        else:
            goes_on = following.startswith(b"\n") or _MARK[: len(following)] == following
            is_over = is_signed and not (following and goes_on)
        if is_over:
            yield begin, end
            begin, is_signed = end, False
        at = end
