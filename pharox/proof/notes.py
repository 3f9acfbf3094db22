"""Signed notes and their keys, as Go's sumdb and C2SP's transparency logs have them.

    <text, a line or more>
    <empty line>
    — <key name> base64(4 bytes of the key's id || signature)

A signature covers the text with its last line feed. A verifier key (*vkey*) is one line,
``name+id+base64(type || public key)``; whoever has only that can check what the key has signed. Two
types are known, both Ed25519: the log's own, and a witness's *cosignature*, which covers its time
as well. Formats: c2sp.org/signed-note and c2sp.org/tlog-cosignature.

A signature by a key that nobody asked for says nothing, and is passed over.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ..errors import ConflictError, InvalidInputError

_CONTROL = re.compile(r"[\x00-\x1f]")
_MARK = "\N{EM DASH} "
_PRIVATE = "PRIVATE+KEY+"
_ID_BYTES, _KEY_BYTES, _TIME_BYTES, _SIGNATURE_BYTES = 4, 32, 8, 64


class KeyKind(IntEnum):
    """What a key signs, by the byte that its id covers."""

    LOG = 1
    """A note's text."""
    WITNESS = 4
    """A checkpoint, and when the witness saw it."""


class Signature(NamedTuple):
    """A line below a note: who signed, which of their keys, and the signature itself."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """Return the line, with its line feed."""
        return f"{_MARK}{self.name} {_text(self.key_id + self.signature)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text and its signatures.

    Raises
    ------
    InvalidInputError
        If the text is not a line or more, each ended, or has an empty line.
    """

    text: str
    signatures: tuple[Signature, ...] = ()

    def __post_init__(self) -> None:
        *lines, rest = self.text.split("\n")
        # No other control character either, as the format demands.
        if rest or not lines or "" in lines or any(map(_CONTROL.search, lines)):
            raise InvalidInputError("a note is lines of text, none of them empty")


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key, under the name of who signs with it.

    Raises
    ------
    InvalidInputError
        If the name or the key cannot be one.
    """

    name: str
    public: bytes
    kind: KeyKind = KeyKind.LOG
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public) != _KEY_BYTES:
            raise InvalidInputError("the public key is not one of Ed25519")
        covered = f"{self.name}\n".encode() + bytes([self.kind]) + self.public
        object.__setattr__(self, "id", sha256(covered).digest()[:_ID_BYTES])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key in a line ``name+id+key``.

        Raises
        ------
        InvalidInputError
            If it is not such a line, or the id is not the key's.
        """
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        try:
            kind, *public = _bytes(encoded)
            key = cls(name, bytes(public), KeyKind(kind))
        except ValueError as error:
            raise InvalidInputError(
                "this is not a verifier key of Ed25519, such as the file with .pub that "
                "`pharox checkpoint keygen` writes"
            ) from error
        if key.id.hex() != key_id:
            raise InvalidInputError(f"the verifier key of {name!r} is damaged: its id differs")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_text(bytes([self.kind]) + self.public)}"

    def has_signed(self, note: Note) -> bool:
        """Return whether a note has a valid signature of this key."""
        return any(self.accepts(note.text, each) for each in note.signatures)

    def accepts(self, text: str, signature: Signature) -> bool:
        """Return whether a signature is this key's and valid."""
        if (signature.name, signature.key_id) != (self.name, self.id):
            return False
        signed, covered = signature.signature, text.encode()
        if self.kind is KeyKind.WITNESS:
            if len(signed) != _TIME_BYTES + _SIGNATURE_BYTES:
                return False
            covered = _cosigned(text, int.from_bytes(signed[:_TIME_BYTES]))
            signed = signed[_TIME_BYTES:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signed, covered)
        except (InvalidSignature, ValueError):
            return False
        return True

    def seen_at(self, note: Note) -> datetime | None:
        """Return when this witness says that it saw a checkpoint, or None if it does not."""
        if self.kind is not KeyKind.WITNESS:
            return None
        times = [
            int.from_bytes(each.signature[:_TIME_BYTES])
            for each in note.signatures
            if self.accepts(note.text, each)
        ]
        with suppress(OverflowError, ValueError, OSError):
            return datetime.fromtimestamp(min(times), UTC)
        return None


class SigningKey:
    """A private key, under the name of who signs with it."""

    def __init__(self, name: str, seed: bytes, kind: KeyKind = KeyKind.LOG) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self.verifier = VerifierKey(name, self._key.public_key().public_bytes_raw(), kind)
        """The public key."""

    @classmethod
    def generate(cls, name: str | None = None, kind: KeyKind = KeyKind.LOG) -> Self:
        """Return a new key; without a name, under one that nobody else has."""
        seed = os.urandom(_KEY_BYTES)
        return cls(name or f"pharox/{os.urandom(8).hex()}", seed, kind)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key in a text as :meth:`text` returns it.

        Raises
        ------
        InvalidInputError
            If it is none, or damaged.
        """
        head, rest = text.strip()[: len(_PRIVATE)], text.strip()[len(_PRIVATE) :]
        name, _, tail = rest.partition("+")
        key_id, _, encoded = tail.partition("+")
        try:
            kind, *seed = _bytes(encoded)
            key = cls(name, bytes(seed), KeyKind(kind))
        except ValueError as error:
            raise InvalidInputError(
                "this is not a signing key, such as `pharox checkpoint keygen` makes"
            ) from error
        if head != _PRIVATE or key.verifier.id.hex() != key_id:
            raise InvalidInputError("the signing key is damaged")
        return key

    @property
    def name(self) -> str:
        """The name of who signs."""
        return self.verifier.name

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r})"

    def text(self) -> str:
        """Return the key as text, as Go's ``note`` package has it. It is a secret."""
        kind = bytes([self.verifier.kind])
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{_text(kind + self._seed)}"

    def sign(self, text: str, at: datetime | None = None) -> Signature:
        """Return a signature of a note's text; a witness says when it saw it.

        Parameters
        ----------
        at:
            When; a witness's key only.
        """
        if self.verifier.kind is not KeyKind.WITNESS:
            signed = self._key.sign(text.encode())
        else:
            seconds = int((at or datetime.now(UTC)).timestamp())
            signed = seconds.to_bytes(_TIME_BYTES) + self._key.sign(_cosigned(text, seconds))
        return Signature(self.name, self.verifier.id, signed)


def write_keys(key: SigningKey, path: Path) -> Path:
    """Write a signing key to a file that only its owner reads, and ``path.pub`` beside it.

    Returns
    -------
    Path
        That of the public key.

    Raises
    ------
    ConflictError
        If there is such a file: a key is never overwritten.
    OSError
        If they cannot be written.
    """
    public = path.with_name(f"{path.name}.pub")
    if os.path.lexists(public):  # before the private key is there without it
        raise ConflictError(f"{public} exists, and a key is never overwritten")
    for file, text, mode in ((path, key.text(), 0o600), (public, str(key.verifier), 0o644)):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise ConflictError(f"{file} exists, and a key is never overwritten") from error
        with open(descriptor, "w") as opened:
            opened.write(f"{text}\n")
            opened.flush()
            os.fsync(descriptor)
    return public


def note_text(note: Note) -> str:
    """Return a note as text: its own, an empty line, and its signatures."""
    return f"{note.text}\n{''.join(each.line() for each in note.signatures)}"


def parse_note(text: str) -> Note:
    """Return the note in a text.

    Raises
    ------
    InvalidInputError
        If it is none, or has no signature.
    """
    body, gap, rest = text.partition(f"\n\n{_MARK}")
    if not gap:
        raise InvalidInputError("this is not a signed note: it has no signature")
    return Note(f"{body}\n", parse_signatures(_MARK + rest))


def parse_signatures(text: str) -> tuple[Signature, ...]:
    """Return the signatures in lines of text.

    Raises
    ------
    InvalidInputError
        If a line is not a signature.
    """
    if not text.endswith("\n"):
        raise InvalidInputError("a signature's line has no end")
    return tuple(map(_signature, text[:-1].split("\n")))


def _signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_MARK).partition(" ")
    try:
        content = _bytes(encoded)
        _check_name(name)
    except ValueError as error:
        raise InvalidInputError(f"{line[:80]!r} is not a signature's line") from error
    if not line.startswith(_MARK) or len(content) <= _ID_BYTES:
        raise InvalidInputError(f"{line[:80]!r} is not a signature's line")
    return Signature(name, content[:_ID_BYTES], content[_ID_BYTES:])


def signed(text: str, keys: Iterable[SigningKey]) -> Note:
    """Return a text as a note that these keys have signed."""
    return Note(text, tuple(key.sign(text) for key in keys))


def _cosigned(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _check_name(name: str) -> None:
    if not name or "+" in name or any(each.isspace() or not each.isprintable() for each in name):
        raise InvalidInputError(
            f"{name!r} is not a key's name: give one without spaces and +, such as "
            "example.com/proxies",
            value=name,
        )


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    """Return what a text encodes; ValueError if another text is the same bytes' own."""
    content = base64.b64decode(text, validate=True)
    if _text(content) != text:
        raise binascii.Error("not in its canonical form")
    return content
