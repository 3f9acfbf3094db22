"""Signed notes, checkpoints and proofs read as others write them, and no byte may be another."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharox import InMemoryStorage
from pharox.errors import ConflictError, InvalidInputError, PharoxError
from pharox.ledger.publishing import prove
from pharox.proof import (
    Checkpoint,
    EventProof,
    KeyKind,
    SigningKey,
    TreeHead,
    VerifierKey,
    new_checkpoint,
    parse_checkpoint,
    parse_note,
    read_checkpoints,
    signed_heads,
    write_keys,
)
from pharox.proof.checkpoints import entry
from pharox.proof.notes import Note
from tests.conftest import fill

PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SIGNS = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER_SAYS = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_NOTE = (
    f"{PETER_SAYS}\n\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
"""The example of Go's package golang.org/x/mod/sumdb/note, with its key."""


class TestNotes:
    def test_the_example_of_go_is_read_and_made_again(self) -> None:
        """Key, key id, signature and form are those of the package."""
        key = SigningKey.parse(PETER_SIGNS)
        assert (str(key.verifier), key.text()) == (PETER, PETER_SIGNS)
        note = parse_note(PETER_NOTE)
        assert VerifierKey.parse(PETER).has_signed(note)
        assert (note.text, note.signatures) == (PETER_SAYS, (key.sign(PETER_SAYS),))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no signature\n",
            PETER_NOTE.rstrip("\n"),
            PETER_NOTE.replace("x08go", "x08g"),
            PETER_NOTE.replace(" PeterNeumann", " Peter+Neumann"),
            PETER_NOTE + "more\n",
        ],
    )
    def test_what_is_no_note_is_refused(self, text: str) -> None:
        """With an error of ours."""
        with pytest.raises(InvalidInputError):
            parse_note(text)

    @pytest.mark.parametrize("text", ["", "\n", "a", "a\n\nb\n", "a\tb\n"])
    def test_what_cannot_be_signed_is_refused(self, text: str) -> None:
        """A note is lines, each ended and none empty."""
        with pytest.raises(InvalidInputError):
            Note(text)

    @pytest.mark.parametrize("key", [PETER[:-4], PETER.replace("c74f", "c74e"), "", "a+b", "a+b+c"])
    def test_a_damaged_key_is_refused(self, key: str) -> None:
        """Its id tells."""
        with pytest.raises(InvalidInputError):
            VerifierKey.parse(key)
        with pytest.raises(InvalidInputError):
            SigningKey.parse(key)

    def test_keys_are_kept_from_others(self, tmp_path: Path) -> None:
        """The signing key is its owner's alone, in no repr, and is never overwritten."""
        key = SigningKey.generate("example.com/log")
        path = tmp_path / "key"
        public = write_keys(key, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert VerifierKey.parse(public.read_text()) == key.verifier
        assert SigningKey.parse(path.read_text()).text() == key.text()
        assert key.text() not in repr(key)
        with pytest.raises(ConflictError, match="exists"):
            write_keys(key, path)

    @pytest.mark.parametrize("name", ["a b", "a+b", "", "a\nb"])
    def test_a_name_that_no_note_can_have_is_refused(self, name: str) -> None:
        """Spaces and plus signs end a name."""
        with pytest.raises(InvalidInputError):
            VerifierKey(name, b"\0" * 32)

    def test_a_witness_signs_a_time(self) -> None:
        """It is read from the cosignature, and covered by it."""
        witness = SigningKey.generate("witness.example/w1", KeyKind.WITNESS)
        at = datetime(2026, 1, 1, tzinfo=UTC)
        text = "example.com/log\n1\nAAAA\n"
        note = Note(text, (witness.sign(text, at),))
        assert witness.verifier.has_signed(note)
        assert witness.verifier.seen_at(note) == at
        (signature,) = note.signatures
        later = signature._replace(signature=b"\1" + signature.signature[1:])
        assert not witness.verifier.accepts(text, later)


@cache
def example() -> tuple[EventProof, VerifierKey]:
    storage = InMemoryStorage()
    fill(storage, 20)
    key = SigningKey.generate("example.com/log")
    checkpoint = new_checkpoint(storage.tree_head(), key)
    return prove(storage, 7, [checkpoint]), key.verifier


class TestProofs:
    def test_a_proof_is_text_that_proves_its_event(self) -> None:
        """The event is that of the log."""
        proof, key = example()
        event = EventProof.parse(str(proof)).check(key)
        assert (event.seq, event.type) == (7, "ProxyRegistered")

    @given(place=st.integers(0), change=st.integers(1, 255))
    def test_a_proof_with_a_changed_byte_is_refused(self, place: int, change: int) -> None:
        """Any byte of event, index, hashes, checkpoint and signature."""
        proof, key = example()
        content = bytearray(str(proof).encode())
        content[place % len(content)] ^= change
        try:
            with pytest.raises(PharoxError):
                EventProof.parse(content.decode()).check(key)
        except UnicodeDecodeError:
            pass  # the command says that it is no text

    def test_a_proof_of_another_log_is_refused(self) -> None:
        """Signed by somebody else, or by the key under another origin."""
        proof, _ = example()
        with pytest.raises(InvalidInputError, match="not signed by"):
            proof.check(SigningKey.generate("example.com/log").verifier)


class TestFiles:
    def test_a_file_of_checkpoints_is_read_in_order(self) -> None:
        """What is damaged is told, what is half written passed over, and a size that falls seen."""
        key = SigningKey.generate("example.com/log")
        good = [new_checkpoint(TreeHead(size, bytes([size]) * 32), key) for size in (3, 5, 4)]
        content = b"".join(map(entry, good))
        assert list(read_checkpoints(content + entry(good[0])[:-2])) == good
        heads, findings = signed_heads(content, key.verifier)
        assert heads == [each.head for each in good]
        assert [finding.key for finding in findings] == [{"number": 3}]
        with pytest.raises(InvalidInputError):
            signed_heads(b"", key.verifier)

    @given(place=st.integers(0), change=st.integers(1, 255))
    def test_a_checkpoint_with_a_changed_byte_is_found(self, place: int, change: int) -> None:
        """Wherever in the file: it is not signed, no checkpoint, or not there any more."""
        key, heads = _file_key(), [TreeHead(size, bytes([size]) * 32) for size in (3, 5)]
        content = bytearray(b"".join(entry(new_checkpoint(head, key)) for head in heads))
        content[place % len(content)] ^= change
        try:
            found, findings = signed_heads(bytes(content), key.verifier)
        except InvalidInputError:
            return
        assert findings or found != heads

    @pytest.mark.parametrize("body", ["a\n01\nAAAA\n", "a\n1\nAAAA\n", "a\n-1\n", "a\n1\n"])
    def test_what_is_no_checkpoint_is_refused(self, body: str) -> None:
        """A size has no leading zeros, a root 32 bytes."""
        key = SigningKey.generate("a")
        text = f"{body}\n{key.sign(body).line()}"
        with pytest.raises(InvalidInputError):
            parse_checkpoint(text)

    def test_a_checkpoint_may_have_more_lines_and_signatures(self) -> None:
        """As C2SP's extensions, and those of other keys."""
        key, other = SigningKey.generate("a"), SigningKey.generate("b")
        body = new_checkpoint(TreeHead(1, b"\0" * 32), key).note.text + "extension\n"
        checkpoint = Checkpoint(Note(body, (other.sign(body), key.sign(body))))
        parse_checkpoint(str(checkpoint)).check(key.verifier)


@cache
def _file_key() -> SigningKey:
    return SigningKey.generate("example.com/log")
