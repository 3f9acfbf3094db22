"""Signed checkpoints of the log and proofs of its events, for those who need not trust its owner.

It needs no database. Storages give heads of their trees and proofs from them; see
``pharox.log.tree`` for the tree and ``pharox.ledger.publishing`` for who publishes.
"""

from pharox.log.tree import (
    Inclusion,
    TreeHead,
    leaf_hash,
    proves_consistency,
    proves_inclusion,
)

from .checkpoints import (
    Checkpoint,
    new_checkpoint,
    parse_checkpoint,
    read_checkpoints,
    signed_heads,
)
from .event_proofs import EventProof
from .notes import KeyKind, Note, Signature, SigningKey, VerifierKey, parse_note, write_keys

__all__ = [
    "Checkpoint",
    "EventProof",
    "Inclusion",
    "KeyKind",
    "Note",
    "Signature",
    "SigningKey",
    "TreeHead",
    "VerifierKey",
    "leaf_hash",
    "new_checkpoint",
    "parse_checkpoint",
    "parse_note",
    "proves_consistency",
    "proves_inclusion",
    "read_checkpoints",
    "signed_heads",
    "write_keys",
]
