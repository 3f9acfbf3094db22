"""The tree is that of RFC 6962, and what it proves nothing else does."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from pharox.log.tree import (
    EMPTY_ROOT,
    Frontier,
    Tree,
    TreeHead,
    consistency_spans,
    inclusion_spans,
    leaf_hash,
    node_hash,
    proves_consistency,
    proves_inclusion,
)

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
"""Those of certificate-transparency's reference tests, with the roots of their trees."""
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZES = st.integers(0, 300)


def naive_root(leaves: list[bytes]) -> bytes:
    """Return MTH of RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return node_hash(naive_root(leaves[:half]), naive_root(leaves[half:]))


def data(size: int) -> list[bytes]:
    return [number.to_bytes(2) for number in range(size)]


def tree_of(leaves: list[bytes]) -> Tree:
    return Tree(map(leaf_hash, leaves))


def head(size: int) -> TreeHead:
    return TreeHead(size, naive_root(data(size)))


def test_the_roots_are_those_of_the_reference_tests() -> None:
    """From the empty tree to eight leaves."""
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size, root in enumerate(ROOTS, 1):
        assert tree_of(LEAVES[:size]).root((0, size)).hex() == root


def test_every_leaf_of_a_small_tree_is_proven_at_its_place_alone() -> None:
    """For all sizes to 40, all leaves and all places."""
    for size in range(1, 41):
        leaves, tree, of = data(size), tree_of(data(size)), head(size)
        for index in range(size):
            proof = [tree.root(span) for span in inclusion_spans(index, size)]
            places = [
                place
                for place in range(size + 1)
                if proves_inclusion(leaf_hash(leaves[index]), place, of, proof)
            ]
            assert places == [index]


def test_every_small_tree_has_grown_from_each_smaller_one() -> None:
    """For all sizes to 40; and the proof is good for no other two trees."""
    for size in range(1, 41):
        tree = tree_of(data(size))
        for old in range(size + 1):
            proof = [tree.root(span) for span in consistency_spans(old, size)] if old else []
            assert proves_consistency(head(old), head(size), proof)
            if 0 < old < size:
                assert not proves_consistency(head(old), head(size - 1), proof)
                assert not proves_consistency(head(old - 1), head(size), proof)


@given(size=st.integers(1, 300), pick=st.integers(0), change=st.integers(0))
def test_a_proof_with_a_changed_byte_proves_nothing(size: int, pick: int, change: int) -> None:
    """Wherever it is in the hashes; nor with a hash more or less."""
    tree, index = tree_of(data(size)), pick % size
    leaf, of = leaf_hash(data(size)[index]), TreeHead(size, tree.root((0, size)))
    proof = [tree.root(span) for span in inclusion_spans(index, size)]
    assert proves_inclusion(leaf, index, of, proof)
    assert not proves_inclusion(leaf, index, of, [*proof, leaf])
    if proof:
        assert not proves_inclusion(leaf, index, of, proof[:-1])
        hashes = bytearray(b"".join(proof))
        hashes[change % len(hashes)] ^= 1 + change % 255
        changed = [bytes(hashes[place : place + 32]) for place in range(0, len(hashes), 32)]
        assert not proves_inclusion(leaf, index, of, changed)


@given(old=st.integers(1, 300), more=st.integers(1, 300), change=st.integers(0))
def test_a_log_that_was_changed_has_not_grown(old: int, more: int, change: int) -> None:
    """No leaf of the old tree may be another in the new one, and no byte of the proof."""
    size, leaves = old + more, data(old + more)
    tree = tree_of(leaves)
    before, after = (TreeHead(each, tree.root((0, each))) for each in (old, size))
    proof = [tree.root(span) for span in consistency_spans(old, size)]
    assert proves_consistency(before, after, proof)
    leaves[change % old] = b"changed"
    other = tree_of(leaves)
    forged = [other.root(span) for span in consistency_spans(old, size)]
    assert not proves_consistency(before, TreeHead(size, other.root((0, size))), forged)
    hashes = bytearray(b"".join(proof))
    hashes[change % len(hashes)] ^= 1 + change % 255
    changed = [bytes(hashes[place : place + 32]) for place in range(0, len(hashes), 32)]
    assert not proves_consistency(before, after, changed)


@given(SIZES)
def test_a_frontier_has_the_root_of_the_tree(size: int) -> None:
    """Leaf by leaf, and as the naive recursion has it."""
    frontier = Frontier()
    for leaf in data(size):
        frontier.append(leaf_hash(leaf))
    assert (frontier.size, frontier.root()) == head(size)
    assert tree_of(data(size)).root((0, size)) == frontier.root()
