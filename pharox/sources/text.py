"""Read a source's text through a window of bounded size.

Bytes that are not UTF-8 become lone surrogates, so they break only the entry that
contains them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator

from ..errors import SourceError

ENTRY_LIMIT = 1 << 16
"""How many characters one line or one JSON value may have."""

_UTF8 = ("utf-8-sig", "surrogateescape")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""The byte order marks of Excel's Unicode text."""

_BLANK = re.compile(r"\s*")


def text_of(content: bytes) -> str:
    """Return the text of a whole source, decoded as :class:`SourceText` does.

    Raises
    ------
    UnicodeDecodeError
        If it begins like UTF-16 but is not.
    """
    return content.decode(*_encoding_of(content))


def _encoding_of(start: bytes) -> tuple[str, str]:
    """Return the encoding that the first bytes show, and how to decode what is invalid."""
    return ("utf-16", "surrogatepass") if start.startswith(_UTF16) else _UTF8


class SourceText:
    """The text from ``at`` on; :meth:`fill` reads enough for one whole entry."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._start = b""
        self._is_ended = False
        self.window = ""
        self.at = 0

    def fill(self) -> bool:
        """Read until the window has more than one longest entry, or all; False at the end."""
        missing = ENTRY_LIMIT + 1 - (len(self.window) - self.at)
        if missing <= 0 or self._is_ended:
            return self.at < len(self.window)
        parts = [self.window[self.at :]]
        while missing > 0 and not self._is_ended:
            chunk = next(self._chunks, None)
            self._is_ended = chunk is None
            parts.append(self._decoded(chunk or b""))
            missing -= len(parts[-1])
        self.window, self.at = "".join(parts), 0
        return bool(self.window)

    def _decoded(self, chunk: bytes) -> str:
        """Decode a chunk in the encoding that the first bytes show."""
        if self._decoder is None:
            self._start += chunk
            if len(self._start) < len(codecs.BOM_UTF8) and not self._is_ended:
                return ""
            chunk = self._start
            kind, errors = _encoding_of(chunk)
            self._decoder = codecs.getincrementaldecoder(kind)(errors)
        try:
            return self._decoder.decode(chunk, final=self._is_ended)
        except UnicodeDecodeError:
            raise SourceError("the source begins like UTF-16 but is not valid UTF-16") from None

    def end(self) -> None:
        """Leave the rest unread."""
        self.window, self.at, self._is_ended = "", 0, True

    def ahead(self) -> str:
        """Return the next text: one character more than an entry may have, or all there is."""
        self.fill()
        return self.window[self.at : self.at + ENTRY_LIMIT + 1]

    def skip_blank(self) -> None:
        """Move on to the next character that is not white space, or to the end."""
        while self.fill():
            end = _BLANK.match(self.window, self.at).end()  # type: ignore[union-attr]
            if end == self.at:
                return
            self.at = end

    def take(self) -> str:
        """Skip white space and return the character after it, or "" at the end."""
        self.skip_blank()
        taken = self.window[self.at : self.at + 1]
        self.at += len(taken)
        return taken

    def lines(self) -> Iterator[tuple[int, str | None]]:
        """Yield the lines with their numbers; None for a line longer than the limit."""
        number = 0
        while True:
            number += 1
            end = self.window.find("\n", self.at)
            if end < 0:  # Use the text in the window before reading more.
                if not self.fill():
                    return
                end = self.window.find("\n", self.at)
            line = self.window[self.at :] if end < 0 else self.window[self.at : end]
            self.at += len(line) + (end >= 0)
            yield number, line if len(line) <= ENTRY_LIMIT else None
            if end < 0:
                self._skip_line()

    def _skip_line(self) -> None:
        while self.fill():
            end = self.window.find("\n", self.at)
            self.at = len(self.window) if end < 0 else end + 1
            if end >= 0:
                return
