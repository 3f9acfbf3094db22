"""Headers are bounded, wherever in a request they stand, and nothing else is taken for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from uvicorn.server import ServerState

from pharox.api.http_protocol import MAX_HEADER_BYTES, BoundedProtocol
from pharox.api.serving import config_of

POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
LINE = b"x: " + b"y" * 1000 + b"\r\n"


class Wire(asyncio.Transport):
    """What a server writes, and whether it has closed."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.writes = 0
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)
        self.writes += 1

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        """Go on: what is sent here is sent anyway."""

    def resume_reading(self) -> None:
        """Go on."""


async def _refuses(scope: Any, receive: Any, send: Any) -> None:
    del scope, receive  # As a request without a token is refused, whose body is not read.
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def answered(parts: Iterable[bytes]) -> tuple[BoundedProtocol, Wire]:
    """Send these parts to a server, until it closes the connection."""

    async def run() -> tuple[BoundedProtocol, Wire]:
        config = config_of(_refuses)
        config.load()
        protocol, wire = BoundedProtocol(config, ServerState(), app_state={}), Wire()
        protocol.connection_made(wire)
        for part in parts:
            if wire.is_closed:
                break
            protocol.data_received(part)
            await asyncio.sleep(0)
        for task in [*protocol.tasks]:
            await task
        protocol.connection_lost(ConnectionResetError())
        return protocol, wire

    return asyncio.run(run())


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET / HTTP/1.1\r\n" + LINE * 40 + b"\r\n"],
        [b"GET / HTTP/1.1\r\n", *[LINE] * 40],
        [b"GET / HTTP/1.1\r\nx: ", *[b"y" * 1000] * 40],
        [b"GET /", *[b"y" * 1000] * 40],
        [b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000],
    ],
    ids=["at once", "line by line", "one that does not end", "a path", "the beginning of one"],
)
def test_headers_beyond_the_bound_are_refused(parts: list[bytes]) -> None:
    """Without a look at the request."""
    _, wire = answered(parts)
    assert wire.is_closed
    assert wire.written.count(b"HTTP/1.1 ") == 1
    assert wire.written.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "trailers",
    [[LINE] * 1000, [b"x: ", *[b"y" * 1000] * 1000]],
    ids=["line by line", "one that does not end"],
)
def test_trailers_are_bounded_too(trailers: list[bytes]) -> None:
    """They come after the answer, maybe, which is not given twice, and are not kept."""
    protocol, wire = answered([POST, b"0\r\n", *trailers])
    assert wire.is_closed
    assert wire.written.count(b"HTTP/1.1 ") == 1
    assert wire.written.startswith(b"HTTP/1.1 401 ")
    assert sum(len(name) + len(value) for name, value in protocol.headers) < MAX_HEADER_BYTES


def test_a_body_is_no_header() -> None:
    """Not even if the next request's first bytes arrive with it."""
    size = 2 * MAX_HEADER_BYTES
    first = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size
    following = b"GET / HTTP/1.1\r\nHost: x"
    _, wire = answered([first, b"x" * size + following, b"\r\n\r\n"])
    assert not wire.is_closed
    assert wire.written.count(b"HTTP/1.1 401 ") == 2


def test_an_answer_is_one_write() -> None:
    """A head of its own would wake the client in vain. Nothing is written after a close."""
    _, wire = answered([b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"] * 2)
    assert wire.written.count(b"HTTP/1.1 401 ") == wire.writes == 2
    _, wire = answered([b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
    assert (wire.writes, wire.is_closed) == (1, True)
    assert wire.written.endswith(b"\r\n\r\n0\r\n\r\n")
