"""uvicorn's protocol over httptools, with a bound for headers, and with an answer in one write."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .problems import HEADERS_TOO_LARGE, Problem

MAX_HEADER_BYTES = 32 * 1024
"""How large the headers of a request may be, with its first line and the trailers of its body."""

_MOST_HELD_BYTES = 64 * 1024

_BODY = to_json(Problem(HEADERS_TOO_LARGE).members())
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
) % (len(_BODY), _BODY)

_AROUND = len(b": \r\n")


class _TooLargeError(Exception):
    """Ends the parsing of a request whose headers are too large."""


class JoinedWrites(asyncio.Transport):
    """A transport that writes an answer's head together with its body.

    uvicorn writes one after the other, and each write wakes the client: a sixth of what a request
    cost. What is written is held until the event loop has done what is ready, or is much.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._call_soon = asyncio.get_running_loop().call_soon

    def write(self, data: Any) -> None:
        """Write bytes, in this turn of the loop or at its end."""
        if not self._held:
            self._call_soon(self._flush)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _MOST_HELD_BYTES:  # So that a slow client is noticed meanwhile.
            self._flush()

    def close(self) -> None:
        """Close it once all is written."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Return whether it is closed, or being closed."""
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        """Read nothing until told to."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        if held and not self._transport.is_closing():
            self._transport.write(b"".join(held))


class BoundedProtocol(HttpToolsProtocol):
    """Closes a connection whose headers are too large, before they fill the memory.

    The parser tells of a header once it is whole, and keeps what is not. So two things are counted:
    what it tells of, for each request, and what has arrived that it has not told of.
    """

    _in_headers = True
    _is_too_large = False
    _told = False
    _seen_bytes = 0
    _kept_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(JoinedWrites(transport))

    def on_message_begin(self) -> None:
        """Begin to count the bytes of a request's headers."""
        self._in_headers, self._seen_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count a part of the path."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer after a body in chunks, which nobody reads."""
        self._count(len(name) + len(value) + _AROUND)
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Note that a body follows, which the application bounds."""
        self._in_headers, self._told = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._told = True
        super().on_body(body)

    def data_received(self, data: bytes) -> None:
        """Read bytes from the network."""
        self._told = False
        self._kept_bytes += len(data)
        super().data_received(data)
        if self._told:  # Of a body, whose bytes are none of these.
            self._kept_bytes = 0
        if self._kept_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._refuse()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or is too large."""
        if self._is_too_large:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _count(self, number: int) -> None:
        self._seen_bytes += number
        self._kept_bytes = max(0, self._kept_bytes - number)
        if self._seen_bytes > MAX_HEADER_BYTES:
            self._is_too_large = True
            raise _TooLargeError  # The parser stops here, and has a bad request answered.

    def _refuse(self) -> None:
        """Close the connection, with an answer unless another one is under way or was given."""
        if self._in_headers and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(_REFUSAL)
        self.transport.close()
