"""Check that a response comes from the target, by a text and headers that only it sends.

A proxy can answer every request itself, with any status. The text is searched in the
body as it arrives. No more of the body is kept than the length of the text, and a
compressed body is unpacked only up to the size limit of the body.
"""

from __future__ import annotations

import codecs
import re
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from encodings.aliases import aliases

from ..failures import CheckFailedError
from ..models import CheckFailure

Headers = Sequence[tuple[bytes, bytes]]

_CHARSET = re.compile(r"""charset\s*=\s*["']?([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE)
_UNPACKED = ("gzip", "x-gzip", "deflate")
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_CODECS = {*aliases, *aliases.values()}
"""Known codecs; Python would search its modules for any other name, and cache it."""


def check_headers(headers: Headers, expected: Mapping[str, str | None]) -> None:
    """Raise :class:`CheckFailedError` if a header is missing or has an unexpected value."""
    for name, value in expected.items():
        found = _values_of(headers, name)
        if not found:
            raise _unexpected(f"the answer has no header {name}")
        if value and value not in found:
            raise _unexpected(f"the answer's header {name} has another value")


class PlainBody:
    """A body that arrives in pieces, unpacked up to a number of bytes.

    Parameters
    ----------
    headers:
        The response's headers, which name its compression.
    max_bytes:
        How much of it to unpack.
    """

    def __init__(self, headers: Headers, max_bytes: int) -> None:
        self._left, self._max_bytes = max_bytes, max_bytes
        self._unpacker = _unpacker_of(headers)

    @property
    def seen(self) -> int:
        """How many bytes have been unpacked."""
        return self._max_bytes - self._left

    @property
    def is_full(self) -> bool:
        """Whether no more is unpacked."""
        return self._left == 0

    def plain(self, piece: bytes) -> bytes:
        """Return the next piece, unpacked."""
        plain = self._unpacked(piece)[: self._left]
        self._left -= len(plain)
        return plain

    def _unpacked(self, piece: bytes) -> bytes:
        if self._unpacker is None:
            return piece
        plain = self._decompressed(self._unpacker, piece, self._left)
        while self._unpacker.eof and self._unpacker.unused_data and len(plain) < self._left:
            # A gzip body may have several members; data after the last one is ignored.
            piece = self._unpacker.unused_data
            self._unpacker = zlib.decompressobj(_GZIP_OR_ZLIB)
            with suppress(zlib.error):
                plain += self._unpacker.decompress(piece, self._left - len(plain))
        return plain

    def _decompressed(self, unpacker: zlib._Decompress, piece: bytes, most: int) -> bytes:
        try:
            return unpacker.decompress(piece, most)
        except zlib.error as error:
            if self._left < self._max_bytes:
                raise _unexpected("the answer's body cannot be decompressed") from error
        self._unpacker = zlib.decompressobj(
            -zlib.MAX_WBITS
        )  # Many servers send raw deflate, without a zlib header.
        try:
            return self._unpacker.decompress(piece, most)
        except zlib.error as error:
            raise _unexpected("the answer's body cannot be decompressed") from error


class TextSearch:
    """Searches a text in a body that arrives in pieces.

    Parameters
    ----------
    text:
        The text to search for.
    headers:
        The response's headers, which name its character set and compression.
    max_bytes:
        How far to search; a compressed body is unpacked up to this size.
    """

    def __init__(self, text: str, headers: Headers, max_bytes: int) -> None:
        self._text, self._body = text, PlainBody(headers, max_bytes)
        self._decoder = codecs.getincrementaldecoder(_codec_of(headers))("replace")
        self._found, self._kept = False, ""

    def feed(self, piece: bytes) -> None:
        """Search the next piece, together with the end of the piece before it."""
        if self._found or self._body.is_full:
            return
        seen = self._kept + self._decoder.decode(self._body.plain(piece))
        self._found = self._text in seen
        self._kept = seen[max(0, len(seen) - len(self._text) + 1) :]

    def check(self) -> None:
        """Raise :class:`CheckFailedError` if the text was not found."""
        if not self._found:
            raise _unexpected(
                f"the answer lacks the expected text in its first {self._body.seen} bytes"
            )


def _unexpected(message: str) -> CheckFailedError:
    return CheckFailedError(CheckFailure.UNEXPECTED_CONTENT, message)


def _values_of(headers: Headers, name: str) -> set[str]:
    """Return the values of a header, each decoded as Latin-1 and as UTF-8."""
    found = [value.strip() for known, value in headers if known.lower() == name.lower().encode()]
    return {value.decode("latin-1") for value in found} | {
        value.decode(errors="replace") for value in found
    }


def _codec_of(headers: Headers) -> str:
    """Return the codec of a response's character set; UTF-8 if it names none."""
    named = (_CHARSET.search(value) for value in _values_of(headers, "Content-Type"))
    charset = next((match[1].lower() for match in named if match), "utf-8")
    name = re.sub("[^a-z0-9]+", "_", charset)
    try:
        # Private to CPython; without it, a codec that is not for text fails in decoding.
        is_text = name in _CODECS and getattr(codecs.lookup(name), "_is_text_encoding", True)
    except LookupError:  # a codec of other systems
        is_text = False
    return name if is_text else "utf-8"


def _unpacker_of(headers: Headers) -> zlib._Decompress | None:
    """Return a decompressor for a response's body, or None if it is not compressed."""
    named = ",".join(_values_of(headers, "Content-Encoding")).lower().split(",")
    codings = {coding.strip() for coding in named} - {"", "identity"}
    if not codings:
        return None
    if len(codings) > 1 or not codings <= set(_UNPACKED):
        raise _unexpected("the answer has an unsupported Content-Encoding")
    return zlib.decompressobj(_GZIP_OR_ZLIB)
