"""The site of a lab: it answers for every host, as the proxy that a request came through is told.

It knows that proxy by the port of the connection, also within TLS.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from http import HTTPStatus

from .behaviour import Behaviour, Script, Verdict

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Seen:
    """A request that reached the site.

    Attributes
    ----------
    proxy:
        The name of the proxy that it came through; None if it came past all of them.
    method, url:
        What was asked for.
    verdict:
        What became of it.
    connection:
        A number of the client's connection to the proxy.
    """

    proxy: str | None
    method: str
    url: str
    verdict: Verdict
    connection: int


@dataclass
class Way:
    """How a request comes to the site: through which proxy, on which connection."""

    name: str | None
    script: Script
    connection: int


@dataclass(frozen=True)
class Request:
    """A request's head."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass
class Site:
    """What was asked so far, and the ways by which connections come."""

    seen: list[Seen] = field(default_factory=list)
    ways: dict[int, Way] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request after another on a connection."""
        is_tls = writer.get_extra_info("ssl_object") is not None
        port = writer.get_extra_info("peername")[1]
        while True:
            request = await read_request(reader)
            way = self.ways.get(port) or Way(None, Script(Behaviour()), port)
            scheme = "https" if is_tls else "http"
            url = f"{scheme}://{request.headers.get('host', '')}{request.target}"
            if not await self.answer(request, url, way, writer):
                return

    async def answer(
        self, request: Request, url: str, way: Way, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer a request, and return whether the connection goes on."""
        behaviour = way.script.behaviour
        verdict = way.script.decide(time.monotonic())
        self.seen.append(Seen(way.name, request.method, url, verdict, way.connection))
        await asyncio.sleep(behaviour.delay_s)
        status, headers = _status_of(url)
        if verdict is Verdict.REFUSED:
            status, headers = behaviour.status, []
            if behaviour.retry_after_s is not None:
                headers = [f"Retry-After: {behaviour.retry_after_s}"]
        body = f"{way.name} {url}\n".encode()
        head = [f"HTTP/1.1 {status} {_phrase(status)}", "Content-Type: text/plain", *headers]
        writer.write("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode())
        is_broken, middle = verdict is Verdict.BROKEN_OFF, len(body) // 2
        if request.method != "HEAD":
            writer.write(body[:middle])
            await writer.drain()
            await asyncio.sleep(behaviour.stall_s)
            writer.write(b"" if is_broken else body[middle:])
        await writer.drain()
        return not is_broken and request.headers.get("connection", "").lower() != "close"


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read a request with its body, of which nothing is kept."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "chunked" in headers.get("transfer-encoding", ""):
        await reader.readuntil(b"0\r\n\r\n")
    else:
        await reader.readexactly(int(headers.get("content-length", 0)))
    method, target, _ = first.split(" ", 2)
    return Request(method, target, headers)


def _status_of(url: str) -> tuple[int, list[str]]:
    """Return the status that a URL asks for, as in ``/status/503``, and headers that go with it."""
    _, _, rest = url.partition("://")
    _, _, path = rest.partition("/")
    kind, _, what = path.partition("/")
    if kind == "status" and what.isdecimal():
        return int(what), []
    if kind == "redirect":
        return 302, [f"Location: /{what}"]
    return 200, []


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
