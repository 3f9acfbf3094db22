"""The beginning of a response's body, as it comes through a client, to be judged by.

It is kept with its content coding and decoded in small pieces, until there are 64 KiB of it: a
kilobyte may become a megabyte. Several codings on top of each other could become far more, and
are not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx

from ..models import MOST_BODY_BYTES

_PIECE_BYTES = 1024
_OF_THE_CODING = ("content-encoding", "transfer-encoding")


class Beginning:
    """The first 64 KiB of the body of a response, as far as it was read."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> bool:
        """Keep a part of the body. Return whether there is enough of it."""
        self._parts.append(part[: MOST_BODY_BYTES - self._size])
        self._size += len(self._parts[-1])
        return self._size >= MOST_BODY_BYTES

    def response(self) -> httpx.Response:
        """Return the response with only this of its body, which is decoded."""
        kept = [
            (name, value)
            for name, value in self._response.headers.raw
            if name.lower().decode("latin-1") not in _OF_THE_CODING
        ]
        return httpx.Response(
            self._response.status_code,
            headers=kept,
            content=self._decoded(),
            request=self._response.request,
        )

    def _decoded(self) -> bytes:
        coding = self._response.headers.get("Content-Encoding", "")
        if "," in coding:
            return b""
        pieces = _Pieces(b"".join(self._parts))
        coded = httpx.Response(200, headers={"Content-Encoding": coding}, stream=pieces)
        found = b""
        try:
            for part in coded.iter_bytes():
                found += part
                if len(found) >= MOST_BODY_BYTES:
                    break
        except httpx.DecodingError:  # It is cut off, or is something else than it says.
            pass
        return found[:MOST_BODY_BYTES]


class _Pieces(httpx.SyncByteStream):
    """Bytes in small pieces, for a decoder that decodes one after the other."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._body), _PIECE_BYTES):
            yield self._body[start : start + _PIECE_BYTES]
