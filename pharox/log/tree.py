"""The Merkle tree over the sealed log: its hashes, what a proof needs of it, and checking one.

The tree is that of RFC 6962 (section 2.1; RFC 9162 has the algorithms that check). The leaf of an
event is the digest that seals it, at the index ``seq - 1``:

    leaf(event)       = SHA-256(0x00 || SHA-256(canonical bytes of the event))
    node(left, right) = SHA-256(0x01 || left || right)

So a proof covers every column of an event and its place in the order, and is made from seals
alone. It does not cover ticks: when an event was sealed is said by the chain of roots only.

A complete subtree is a :class:`Node`, and its hash never changes. Storages keep those of every
eighth level, as C2SP's tlog-tiles does: the hash of any other node follows from 256 of them at the
most, and a proof reads two runs of 256 hashes for each level that is kept, however long the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

HEIGHT = 8
"""Each so many levels the hashes of complete subtrees are kept."""

EMPTY_ROOT = sha256().digest()
"""The root of a tree without leaves."""

Span = tuple[int, int]
"""A range of leaves by index, the end exclusive."""


class Node(NamedTuple):
    """A complete subtree: the one at ``number`` among those of ``2 ** level`` leaves."""

    level: int
    number: int


class TreeHead(NamedTuple):
    """The tree over the first ``size`` events, and its root: 32 bytes."""

    size: int
    root: bytes


class Inclusion(NamedTuple):
    """That an event is in the tree over the first ``size`` events.

    ``event`` are the bytes that its digest covers, as ``pharox.log.canonical`` makes them.
    ``hashes`` are those of the subtrees beside its path to the root, from the leaf up.
    """

    seq: int
    size: int
    event: bytes
    hashes: tuple[bytes, ...]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node over those of its halves."""
    return sha256(b"\1" + left + right).digest()


# What a head or a proof consists of


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Return the subtrees whose roots prove a leaf, from the leaf up."""
    spans = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _left(end - begin)
        if index < middle:
            spans.append((middle, end))
            end = middle
        else:
            spans.append((begin, middle))
            begin = middle
    return spans[::-1]


def consistency_spans(old: int, size: int) -> list[Span]:
    """Return the subtrees whose roots prove that a tree of ``old`` leaves, > 0, has grown."""
    spans = []
    begin, end = 0, size
    while end != old:
        middle = begin + _left(end - begin)
        if old <= middle:
            spans.append((middle, end))
            end = middle
        else:
            spans.append((begin, middle))
            begin = middle
    if begin:
        spans.append((begin, end))
    return spans[::-1]


def cover(span: Span) -> list[Node]:
    """Return the complete subtrees that a tree or its subtree consists of, from the left."""
    begin, end = span
    nodes = []
    while begin < end:
        level = (end - begin).bit_length() - 1
        nodes.append(Node(level, begin >> level))
        begin += 1 << level
    return nodes


def basis(node: Node) -> tuple[int, Span]:
    """Return a kept level, and the indexes there of the nodes that a node's hash follows from."""
    above = node.level % HEIGHT
    return node.level - above, (node.number << above, (node.number + 1) << above)


def hash_of(node: Node, known: Mapping[Node, bytes]) -> bytes:
    """Return the hash of a node from its own or those below it.

    Raises
    ------
    KeyError
        If there are not enough of them.
    """
    if (own := known.get(node)) is not None:
        return own
    if node.level == 0:
        raise KeyError(node)
    level, index = node.level - 1, 2 * node.number
    return node_hash(hash_of(Node(level, index), known), hash_of(Node(level, index + 1), known))


def root_of(span: Span, known: Mapping[Node, bytes]) -> bytes:
    """Return the root of a tree or its subtree; KeyError if the known hashes do not suffice."""
    return joined([hash_of(node, known) for node in cover(span)])


def joined(hashes: Sequence[bytes]) -> bytes:
    """Return the root over complete subtrees that grow smaller to the right."""
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


class Tree:
    """A tree that grows by leaves, with the hashes of all its nodes."""

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add a leaf, given its hash."""
        level = 0
        self._levels[0].append(leaf)
        while len(self._levels[level]) % 2 == 0:
            if len(self._levels) == level + 1:
                self._levels.append([])
            self._levels[level + 1].append(node_hash(*self._levels[level][-2:]))
            level += 1

    def root(self, span: Span) -> bytes:
        """Return the root of the tree or of a subtree."""
        return joined([self._levels[node.level][node.number] for node in cover(span)])


class Frontier:
    """A tree that grows by leaves, of which only what its root needs is kept.

    Parameters
    ----------
    size, hashes:
        The leaves that there are, and the hashes of the :func:`cover` of all of them.
    """

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self._hashes = list(hashes)

    def append(self, leaf: bytes) -> None:
        """Add a leaf, given its hash."""
        self._hashes.append(leaf)
        rest = self.size
        while rest & 1:
            right = self._hashes.pop()
            self._hashes[-1] = node_hash(self._hashes[-1], right)
            rest >>= 1
        self.size += 1

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        return joined(self._hashes)


# Checking


def proves_inclusion(leaf: bytes, index: int, head: TreeHead, hashes: Sequence[bytes]) -> bool:
    """Return whether hashes prove that a leaf, given its hash, is in a tree (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < head.size:
        return False
    place, last, root = index, head.size - 1, leaf
    for each in hashes:
        if last == 0:
            return False
        if place & 1 or place == last:
            root = node_hash(each, root)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            root = node_hash(root, each)
        place, last = place >> 1, last >> 1
    return last == 0 and root == head.root


def proves_consistency(old: TreeHead, new: TreeHead, hashes: Sequence[bytes]) -> bool:
    """Return whether hashes prove that a tree has grown to another (RFC 9162, 2.1.4.2)."""
    if not 0 <= old.size <= new.size:
        return False
    if old.size in (0, new.size):
        expected = EMPTY_ROOT if old.size == 0 else new.root
        return not hashes and old.root == expected
    path = iter(hashes)
    place, last = old.size - 1, new.size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    # The whole old tree is a node of the new one: its root is known, and not in the proof.
    first = old.root if place == 0 else next(path, None)
    if first is None:
        return False
    roots = _grown(first, place, last, path)
    return roots == (old.root, new.root)


def _grown(
    first: bytes, place: int, last: int, path: Iterator[bytes]
) -> tuple[bytes, bytes] | None:
    """Return the old and the new root that a path leads to, or None if it has another length."""
    old = new = first
    for each in path:
        if last == 0:
            return None
        if place & 1 or place == last:
            old, new = node_hash(each, old), node_hash(each, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = node_hash(new, each)
        place, last = place >> 1, last >> 1
    return (old, new) if last == 0 else None


def _left(count: int) -> int:
    """Return how many of ``count`` leaves, > 1, are in the left half: a power of two."""
    return 1 << ((count - 1).bit_length() - 1)
