"""Prove an event by what was published."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from pharox.log.tree import Inclusion

from ...errors import CheckpointError, InvalidInputError
from ...proof.checkpoints import Checkpoint
from ...proof.event_proofs import EventProof


class ProvingLog(Protocol):
    """A storage that proves events."""

    def prove_inclusion(self, seq: int, size: int | None = None) -> Inclusion:
        """Return the proof that an event is among the first ``size`` events, or all."""


def prove(storage: ProvingLog, seq: int, checkpoints: Iterable[Checkpoint]) -> EventProof:
    """Return the proof of an event by the first of some checkpoints that covers it.

    Raises
    ------
    InvalidInputError
        If none of them does.
    CheckpointError
        If the log is not what was signed: no proof leads to the checkpoint.
    ArchivedError
        If the event was archived.
    """
    covering = [each for each in checkpoints if each.head.size >= seq]
    if not covering:
        raise InvalidInputError(
            f"no checkpoint covers event {seq} yet: run `pharox checkpoint publish` first", seq=seq
        )
    checkpoint = min(covering, key=lambda each: each.head.size)
    proof = EventProof(storage.prove_inclusion(seq, checkpoint.head.size), checkpoint)
    if not proof.is_consistent():
        raise CheckpointError(
            f"the log is not the one whose first {checkpoint.head.size} events were signed; "
            "`pharox verify --checkpoint` shows where it differs",
            size=checkpoint.head.size,
        )
    return proof
