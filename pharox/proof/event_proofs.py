"""Proofs that an event is in a log, which anybody checks offline (c2sp.org/tlog-proof).

    c2sp.org/tlog-proof@v1
    extra <the bytes that the event's digest covers, in base64>
    index <seq - 1>
    <hashes of the tree, in base64, a line each>

    <a signed checkpoint>

Who checks needs the proof and the log's verifier key. The event that is shown is parsed from the
bytes that were proven, so nothing in the file is taken on trust.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from hashlib import sha256

from pharox.log.canonical import row_of
from pharox.log.rows import event_from_row
from pharox.log.tree import Inclusion, leaf_hash, proves_inclusion

from ..errors import InvalidInputError
from ..events import Event
from .checkpoints import Checkpoint, parse_checkpoint
from .notes import VerifierKey

HEADER = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class EventProof:
    """That an event was in a log when it had as many events as a checkpoint says."""

    inclusion: Inclusion
    checkpoint: Checkpoint

    @classmethod
    def parse(cls, text: str) -> EventProof:
        """Return the proof in a text.

        Raises
        ------
        InvalidInputError
            If it is none.
        """
        head, gap, rest = text.partition("\n\n")
        header, *lines = head.split("\n")
        if header != HEADER or not gap:
            raise InvalidInputError("this is not a proof, such as `pharox prove` writes")
        checkpoint = parse_checkpoint(rest)
        if len(lines) < 2 or not lines[0].startswith("extra "):
            raise InvalidInputError("the proof has no event")
        if not (index := _INDEX.fullmatch(lines[1])):
            raise InvalidInputError("the proof does not say which event it is of")
        event, *hashes = map(_decoded, (lines[0].removeprefix("extra "), *lines[2:]))
        size = checkpoint.head.size
        return cls(Inclusion(int(index[1]) + 1, size, event, tuple(hashes)), checkpoint)

    def __str__(self) -> str:
        lines = (
            HEADER,
            f"extra {_encoded(self.inclusion.event)}",
            f"index {self.inclusion.seq - 1}",
            *map(_encoded, self.inclusion.hashes),
            "",
        )
        return "\n".join(lines) + f"\n{self.checkpoint}"

    def check(self, key: VerifierKey) -> Event:
        """Return the event if it is proven by a checkpoint that the key has signed.

        Raises
        ------
        InvalidInputError
            If it is not proven, with the reason.
        UndecodableEventError, EventVersionError
            If it is proven, and this pharox cannot read it.
        """
        self.checkpoint.check(key)
        if not self.is_consistent():
            raise InvalidInputError(
                f"this event is not number {self.inclusion.seq} of the log that was signed",
                seq=self.inclusion.seq,
            )
        return event_from_row({**row_of(self.inclusion.event), "seq": self.inclusion.seq})

    def is_consistent(self) -> bool:
        """Return whether the hashes lead from the event to the root of the checkpoint."""
        leaf = leaf_hash(sha256(self.inclusion.event).digest())
        head = self.checkpoint.head
        return proves_inclusion(leaf, self.inclusion.seq - 1, head, self.inclusion.hashes)


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(text: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidInputError(f"{text[:80]!r} in the proof is not base64") from error
    if _encoded(content) != text:
        raise InvalidInputError(f"{text[:80]!r} in the proof is not base64 in its canonical form")
    return content
