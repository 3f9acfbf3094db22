"""What verification finds where a log is not what was signed of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from projections import Finding

from .tree import TreeHead

CHECKPOINT = "checkpoint"
"""The check of these findings."""


def contradictions(heads: Iterable[TreeHead]) -> Iterator[Finding]:
    """Yield heads of one size with several roots: the log was two logs when it was signed."""
    for size, alike in groupby(sorted(heads), key=lambda head: head.size):
        roots = sorted({head.root.hex() for head in alike})
        if len(roots) > 1:
            yield Finding(CHECKPOINT, {"size": size}, {"roots": len(roots)}, {"roots": 1})


def difference(size: int, found: bytes, expected: bytes, matched: int) -> Finding:
    """Return the finding of a root that differs; up to ``matched`` events are as signed."""
    return Finding(
        CHECKPOINT,
        {"size": size, "first_changed": f"{matched + 1}..{size}"},
        {"root": found.hex()},
        {"root": expected.hex()},
    )


def shorter(head: TreeHead, size: int) -> Finding:
    """Return the finding of a log that has fewer events than were signed."""
    return Finding(CHECKPOINT, {"size": head.size}, {"events": size}, {"events": head.size})
