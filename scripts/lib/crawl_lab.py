"""Proxies on loopback with scripted behaviour, and the sites behind them, in one process.

As a program this module is all of them: it prints where each listens and serves until its standard
input ends. Asked for a page of ``http`` a proxy answers itself, as if the site had, and says which
proxy, which connection and which login it was; asked to CONNECT, it makes a tunnel.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trustme

HOST = "127.0.0.1"
USER, PASSWORD = "alice", "open sesame: p@ss/w%rd"
KINDS = (
    "good",
    "good-2",
    "good-3",
    "password",
    "gateway",
    "refusing",
    "limiting",
    "captcha",
    "dying",
    "mortal",
    "silent",
    "no-tunnel",
)
SLOW_S = 30.0
MORTAL_PAGES = 20
"""After so many pages it dies: it takes no more connections."""


@dataclass(frozen=True)
class Lab:
    """Where everything listens."""

    ports: dict[str, int] = field(default_factory=dict)

    def url(self, kind: str, login: str = "") -> str:
        """Return the URL of a proxy, as in a list."""
        protocol = "socks5" if kind.startswith("socks5") else "http"
        return f"{protocol}://{login + '@' if login else ''}{HOST}:{self.ports[kind]}"


@contextmanager
def running_lab(site_delay_s: float = 0.0) -> Iterator[Lab]:
    """Run the lab for a block; sites answer after a delay."""
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.lib.crawl_lab", str(site_delay_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Lab(json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(10)


class _Proxy:
    """One proxy, of one kind."""

    def __init__(self, kind: str, site_delay_s: float) -> None:
        self.kind, self._delay_s = kind, site_delay_s
        self._connections, self._pages = count(1), count(1)
        self.server: asyncio.Server | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = (asyncio.CancelledError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with suppress(OSError, *ends):
            connection = next(self._connections)
            while await self._one(reader, writer, connection):
                pass
        writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        """Answer one request. Return whether the connection stays open."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
        }
        login = _login(headers.get("proxy-authorization", ""))
        if self.kind == "password" and login != f"{USER}:{PASSWORD}":
            return await _answer(writer, 407, b"who are you?")
        if self.kind == "silent":
            await asyncio.sleep(3600)
        if method == "CONNECT":
            if self.kind == "no-tunnel":
                return await _answer(writer, 502, b"no way")
            await _tunnel(target, reader, writer)
            return False
        return await self._page(writer, target, f"{connection}", login)

    async def _page(
        self, writer: asyncio.StreamWriter, target: str, connection: str, login: str
    ) -> bool:
        said = {"X-Proxy": self.kind, "X-Connection": connection, "X-Login": login}
        number = next(self._pages)
        # Not all take the same time, or all answers would come at the same moments.
        delay_s = self._delay_s * (0.5 + number * 0.618 % 1)
        await asyncio.sleep(SLOW_S if "/slow" in target else delay_s)
        if self.kind == "dying":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf of it")
            await writer.drain()
            return False
        if self.kind == "mortal" and number > MORTAL_PAGES:
            assert self.server is not None
            self.server.close()
            writer.transport.abort()
            return False
        status, body, headers = self._page_of(target)
        return await _answer(writer, status, body, {**said, **headers})

    def _page_of(self, target: str) -> tuple[int, bytes, dict[str, str]]:
        """Return the status, the body and the headers of a page."""
        if self.kind == "refusing":
            return 403, b"go away", {}
        if self.kind == "limiting":
            return 429, b"later", {"Retry-After": "600"}
        if self.kind == "captcha":
            page = gzip.compress(b"<html>please solve the captcha</html>")
            return 200, page, {"Content-Encoding": "gzip"}
        if "/redirect/" in target:
            return 302, b"", {"Location": target.replace("/redirect/", "/")}
        page = f"<html>{target} by {self.kind}{'.' * 2000}</html>".encode()
        return 200, page, {"Content-Type": "text/html"}


async def _answer(
    writer: asyncio.StreamWriter, status: int, body: bytes, headers: dict[str, str] | None = None
) -> bool:
    lines = [f"HTTP/1.1 {status} It is so", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()
    return True


def _login(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    return base64.b64decode(token).decode("latin-1") if scheme == "Basic" else ""


async def _tunnel(target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    host, _, port = target.rpartition(":")
    there = await asyncio.open_connection(host, int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await _both_ways(reader, writer, *there)


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    other_reader: asyncio.StreamReader,
    other_writer: asyncio.StreamWriter,
) -> None:
    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer))


async def _socks5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve SOCKS5 with a login; the site is this proxy, too."""
    with suppress(OSError, asyncio.IncompleteReadError):
        _, methods = await reader.readexactly(2)
        await reader.readexactly(methods)
        writer.write(b"\x05\x02")
        _, length = await reader.readexactly(2)
        user = await reader.readexactly(length)
        password = await reader.readexactly((await reader.readexactly(1))[0])
        is_known = (user.decode(), password.decode()) == (USER, PASSWORD)
        writer.write(b"\x01\x00" if is_known else b"\x01\x01")
        if not is_known:
            writer.close()
            return
        _, _, _, kind = await reader.readexactly(4)
        length = (await reader.readexactly(1))[0] if kind == 3 else 4
        name = await reader.readexactly(length)
        struct.unpack("!H", await reader.readexactly(2))
        writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            said = {"X-Proxy": "socks5", "X-Name": name.decode("latin-1") if kind == 3 else ""}
            await _answer(writer, 200, path.encode(), said)


async def _tls_site(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await _answer(writer, 200, head.split(" ", 2)[1].encode(), {"X-Proxy": "tunnel"})


async def _main(site_delay_s: float) -> None:
    ports: dict[str, int] = {}

    async def listen(name: str, serve: Any, **options: Any) -> asyncio.Server:
        server = await asyncio.start_server(serve, HOST, 0, **options)
        ports[name] = server.sockets[0].getsockname()[1]
        return server

    for kind in KINDS:
        proxy = _Proxy(kind, site_delay_s)
        proxy.server = await listen(kind, proxy.serve)
    await listen("socks5", _socks5)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(HOST).configure_cert(context)
    await listen("tls-site", _tls_site, ssl=context)
    nobody = await listen("nobody", _tls_site)
    nobody.close()
    print(json.dumps(ports), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0))
