"""Proxies and sites on loopback, good and hostile, in a process of their own.

As a program this module is all of them: it prints where each listens and serves
until its standard input ends. Being elsewhere, they leave the sockets that a
test counts alone.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
import struct
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes
from uuid import UUID

import trustme

from pharox.integrations.testing.proxies import pipe
from pharox.models import Proxy, ProxyCredentials, ProxyProtocol

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
USER, PASSWORD = "alice", "open sesame: p@ss/w%rd"
ONLY_THE_PROXY_KNOWS = "only.the.proxy.knows.test"
POOL_ID = UUID(int=1)
REAL = [
    ("pproxy-http", "http", ""),
    ("pproxy-http-password", "http", USER),
    ("pproxy-socks4", "socks4", ""),
    ("pproxy-socks5", "socks5", ""),
    ("pproxy-socks5-password", "socks5", USER),
    ("proxy.py-password", "http", USER),
    ("https-proxy", "https", ""),
]
"""The good proxies, each with its protocol and its user."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# The steps of a hostile proxy, beside bytes, which it sends.
HEAD, ANY, SILENT, CLOSE, RESET, DRIP, FLOOD = (
    "read a request's head",
    "read whatever comes",
    "say nothing any more",
    "close",
    "reset",
    "send one byte after another",
    "send without end",
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
SOCKS5_GRANTED = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
SOCKS4_GRANTED = b"\x00\x5a\x00\x00\x00\x00\x00\x00"

HOSTILE: dict[str, tuple[str | bytes, ...]] = {
    "silent": (SILENT,),
    "closes": (CLOSE,),
    "resets": (RESET,),
    "speaks-http": (ANY, OK),
    "http-answers": (HEAD, OK),
    "http-silent": (HEAD, SILENT),
    "http-silent-in-status": (HEAD, b"HTTP/1.1 20", SILENT),
    "http-silent-in-headers": (HEAD, b"HTTP/1.1 200 OK\r\nContent-Le", SILENT),
    "http-silent-in-body": (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", SILENT),
    "http-drips": (HEAD, b"HTTP/1.1 200 OK\r\nX: ", DRIP),
    "http-continues-forever": (HEAD, b"HTTP/1.1 100 Continue\r\n\r\n", FLOOD),
    "http-tiny-pieces": (
        HEAD,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"1\r\na\r\n",
        FLOOD,
    ),
    "http-closes": (HEAD, CLOSE),
    "http-closes-in-headers": (HEAD, b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE),
    "http-resets": (HEAD, RESET),
    "http-resets-in-body": (HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", RESET),
    "http-garbage": (HEAD, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "http-bad-header": (HEAD, b"HTTP/1.1 200 OK\r\n\x00: open sesame\r\n\r\n"),
    "http-giant-header": (HEAD, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
    "http-bad-chunk": (HEAD, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nopen\r\n"),
    "http-switches": (HEAD, b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "http-407": (HEAD, b"HTTP/1.1 407 alice open sesame\r\nContent-Length: 0\r\n\r\n"),
    "http-503": (HEAD, b"HTTP/1.1 503 alice open sesame\x1b[2J\r\nContent-Length: 0\r\n\r\n"),
    "http-odd-redirect": (HEAD, b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
    "http-bad-redirect": (HEAD, b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n"),
    "http-bad-name": (HEAD, b"HTTP/1.1 302 Found\r\nLocation: http://xn--a-.\xe9/\r\n\r\n"),
    "http-keeps": (
        HEAD,
        b"HTTP/1.1 302 Found\r\nLocation: /kept\r\nContent-Length: 2\r\n\r\nok",
        HEAD,
        OK,
        SILENT,
    ),
    "tunnel-silent": (HEAD, GRANTED, SILENT),
    "tunnel-closes": (HEAD, GRANTED, CLOSE),
    "tunnel-closes-in-tls": (HEAD, GRANTED, ANY, CLOSE),
    "tunnel-garbage": (HEAD, GRANTED, ANY, b"no TLS here" * 9),
    "tls-silent": (ANY, SILENT),
    "tls-drips": (ANY, b"\x16\x03\x03\x40\x00", DRIP),
    "socks5-silent-after-greeting": (ANY, SILENT),
    "socks5-silent-in-method": (ANY, b"\x05", SILENT),
    "socks5-silent-after-method": (ANY, b"\x05\x00", ANY, SILENT),
    "socks5-silent-after-password": (ANY, b"\x05\x02", ANY, SILENT),
    "socks5-silent-in-reply": (ANY, b"\x05\x00", ANY, SOCKS5_GRANTED[:6], SILENT),
    "socks5-silent-in-tunnel": (ANY, b"\x05\x00", ANY, SOCKS5_GRANTED, SILENT),
    "socks5-drips": (ANY, b"\x05\x00", ANY, b"\x05\x00\x00\x03\xff", DRIP),
    "socks5-closes-after-greeting": (ANY, CLOSE),
    "socks5-closes-in-method": (ANY, b"\x05", CLOSE),
    "socks5-closes-in-reply": (ANY, b"\x05\x00", ANY, SOCKS5_GRANTED[:6], CLOSE),
    "socks5-closes-in-tunnel": (ANY, b"\x05\x00", ANY, SOCKS5_GRANTED, CLOSE),
    "socks5-resets": (ANY, b"\x05\x00", ANY, RESET),
    "socks5-wrong-version": (ANY, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "socks5-wrong-method": (ANY, b"\x05\x01"),
    "socks5-unknown-method": (ANY, b"\x05\x77"),
    "socks5-no-method": (ANY, b"\x05\xff"),
    "socks5-refuses-password": (ANY, b"\x05\x02", ANY, b"\x01\x01"),
    "socks5-wrong-reply-version": (ANY, b"\x05\x00", ANY, b"\x04" + SOCKS5_GRANTED[1:]),
    "socks5-wrong-reserved": (ANY, b"\x05\x00", ANY, b"\x05\x00\x09" + SOCKS5_GRANTED[3:]),
    "socks5-wrong-address-type": (ANY, b"\x05\x00", ANY, b"\x05\x00\x00\x09" + b"\x00" * 6),
    "socks5-garbled-name": (ANY, b"\x05\x00", ANY, b"\x05\x00\x00\x03\x02\xff\xfe\x00\x00"),
    **{
        f"socks5-error-{code}": (ANY, b"\x05\x00", ANY, bytes([5, code]) + SOCKS5_GRANTED[2:])
        for code in (*range(1, 9), 0x99)
    },
    "socks4-silent-after-request": (ANY, SILENT),
    "socks4-silent-in-reply": (ANY, SOCKS4_GRANTED[:4], SILENT),
    "socks4-silent-in-tunnel": (ANY, SOCKS4_GRANTED, SILENT),
    "socks4-drips": (ANY, SOCKS4_GRANTED[:2], DRIP),
    "socks4-closes-after-request": (ANY, CLOSE),
    "socks4-closes-in-reply": (ANY, SOCKS4_GRANTED[:4], CLOSE),
    "socks4-wrong-version": (ANY, b"\x04" + SOCKS4_GRANTED[1:]),
    "socks4-unknown-code": (ANY, b"\x00\x00" + SOCKS4_GRANTED[2:]),
    "socks4-refuses": (ANY, b"\x00\x5b" + SOCKS4_GRANTED[2:]),
    "socks4-refuses-user": (ANY, b"\x00\x5d" + SOCKS4_GRANTED[2:]),
}


@dataclass(frozen=True)
class Zoo:
    """Where everything listens, and whom to trust to talk to it."""

    ports: dict[str, int]
    authority: str = field(repr=False)

    def proxy(
        self, name: str, protocol: str, user: str = "", password: str = PASSWORD, host: str = HOST
    ) -> Proxy:
        """Return a proxy that listens where ``name`` does."""
        return Proxy(
            host=host,
            port=self.ports[name],
            protocol=ProxyProtocol(protocol),
            pool_id=POOL_ID,
            credentials=ProxyCredentials.model_validate({"user": user, "password": password})
            if user
            else None,
        )

    def target(self, path: str) -> str:
        """Return the URL of a page that a client reaches without TLS."""
        return f"http://{HOST}:{self.ports['site']}{path}"

    def tls_target(self, path: str, site: str = "tls-site") -> str:
        """Return the URL of the same page behind TLS."""
        return f"https://{HOST}:{self.ports[site]}{path}"

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context that trusts the zoo's authority and nobody else."""
        return ssl.create_default_context(cadata=self.authority)


@contextmanager
def running_zoo() -> Iterator[Zoo]:
    """Run the zoo, and proxy.py beside it."""
    with (
        _running("tests.health.zoo") as line,
        _running("scripts.lib.demo_proxies", "proxy.py", "http", f"{USER}:{PASSWORD}") as port,
    ):
        found = json.loads(line)
        found["ports"]["proxy.py-password"] = int(port)
        yield Zoo(**found)


@contextmanager
def _running(*program: str) -> Iterator[str]:
    """Run a program that prints one line and serves until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-m", *program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline()
        process.communicate(timeout=10)


def _hostile(*steps: str | bytes) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = b""
        for step in steps:
            if isinstance(step, bytes):
                sent = step
                writer.write(sent)
                await writer.drain()
            elif step == HEAD:
                await reader.readuntil(b"\r\n\r\n")
            elif step == ANY:
                await reader.read(65_536)
            elif step == SILENT:
                await reader.read()
            elif step == RESET:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            elif step in (DRIP, FLOOD):
                await _go_on(writer, step, sent)

    return serve


@dataclass
class Page:
    """An answer of the site."""

    status: int = 200
    headers: list[str] = field(default_factory=list)
    body: bytes = b"ok"
    pause_s: float = 0.0
    goes_on: str = ""
    pieces: int = 0

    def packed(self) -> bytes:
        """Return the body, in chunks of so many bytes if it is to be in pieces."""
        if not self.pieces:
            return self.body
        cut = [self.body[n : n + self.pieces] for n in range(0, len(self.body), self.pieces)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*cut, b""])


def _page(path: str, headers: dict[str, str], port: int) -> Page:
    if path.startswith("/status/"):
        return Page(int(path.removeprefix("/status/")))
    if path.startswith("/says/"):
        return Page(body=unquote_to_bytes(path.removeprefix("/says/")))
    if path.startswith("/packs/"):
        packed = gzip.compress(unquote_to_bytes(path.removeprefix("/packs/")))
        return Page(headers=["Content-Encoding: gzip"], body=packed)
    endless = ["Connection: close", "Content-Length: 99999999999"]
    pages = {
        "/ok": Page(),
        "/slow": Page(pause_s=0.3),
        "/redirect-loop": Page(302, ["Location: /redirect-loop"]),
        "/redirect-once": Page(301, ["Location: /ok"]),
        "/redirect-elsewhere": Page(307, [f"Location: http://localhost:{port}/anonymous"]),
        "/redirect-here": Page(308, ["Location: /known"]),
        "/known": Page(200 if "authorization" in headers else 401),
        "/anonymous": Page(403 if headers.keys() & {"authorization", "cookie"} else 200),
        "/agent": Page(200 if headers["user-agent"].startswith("pharox/") else 299),
        **_MARKED,
        "/gzip-bomb": Page(headers=["Content-Encoding: gzip"], body=_BOMB),
        "/close-midway": Page(headers=["Connection: close", "Content-Length: 100"]),
        "/endless": Page(headers=endless, goes_on=FLOOD),
        "/drip": Page(headers=endless, goes_on=DRIP),
    }
    return pages[path]


_BOMB = gzip.compress(bytes(30_000_000))
_MARK = "served by the target of Zürich"
_CHARSETS = ("utf-8", "iso-8859-1", "utf-16", "shift_jis", "no-such-charset", "zip", "mbcs")


def _marked(*headers: str, body: bytes | None = None, pieces: int = 0) -> Page:
    return Page(
        headers=["X-Served-By: the target", "Vary: a", "Vary: b", *headers],
        body=_MARK.encode() if body is None else body,
        pieces=pieces,
    )


_MARKED = {
    "/marked": _marked("Content-Type: text/plain; charset=utf-8"),
    "/marked/plain": _marked(),
    "/marked/late": _marked(body=b"x" * 65_000 + _MARK.encode()),
    "/marked/in-pieces": _marked("Transfer-Encoding: chunked", pieces=3),
    "/marked/gzip": _marked("Content-Encoding: GZIP", body=gzip.compress(_MARK.encode())),
    "/marked/deflate": _marked("Content-Encoding: deflate", body=zlib.compress(_MARK.encode())),
    "/marked/raw-deflate": _marked(
        "Content-Encoding: deflate", body=zlib.compress(_MARK.encode(), wbits=-zlib.MAX_WBITS)
    ),
    "/marked/gzip-members": _marked(
        "Content-Encoding: gzip", body=b"".join(gzip.compress(c.encode()) for c in _MARK) + b"\0\0"
    ),
    "/marked/gzip-in-pieces": _marked(
        "Content-Encoding: gzip",
        "Transfer-Encoding: chunked",
        body=gzip.compress(_MARK.encode()),
        pieces=1,
    ),
    "/marked/no-gzip": _marked("Content-Encoding: gzip"),
    "/marked/br": _marked("Content-Encoding: br"),
    **{
        f"/marked/{charset}": _marked(
            f'Content-Type: text/html; charset="{charset}"',
            body=_MARK.replace("ü", "ユ").encode(charset)
            if charset == "shift_jis"
            else _MARK.encode(charset if charset in _CHARSETS[:4] else "utf-8"),
        )
        for charset in _CHARSETS
    },
}


async def _site(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve pages, one request after another on a connection."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
        headers = {name.lower(): value for name, _, value in lines}
        page = _page(head.split(" ")[1], headers, writer.get_extra_info("sockname")[1])
        await asyncio.sleep(page.pause_s)
        answer = [f"HTTP/1.1 {page.status} Said so", *page.headers]
        if not any(line.startswith(("Content-Length", "Transfer-")) for line in answer):
            answer.append(f"Content-Length: {len(page.body)}")
        writer.write("\r\n".join([*answer, "", ""]).encode() + page.packed())
        await writer.drain()
        if page.goes_on:
            await _go_on(writer, page.goes_on, b"x" * 65_536)
        if "Connection: close" in answer:
            return


async def _go_on(writer: asyncio.StreamWriter, how: str, data: bytes) -> None:
    """Send without end, or one byte after another."""
    while True:
        writer.write(data if how == FLOOD else b"x")
        await writer.drain()
        await asyncio.sleep(0 if how == FLOOD else 0.1)


async def _resolving_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be a SOCKS proxy that only goes to one name, and only for one user if it is SOCKS4."""
    if (await reader.readexactly(1)) == b"\x04":
        await reader.readexactly(7)
        user = (await reader.readuntil(b"\x00"))[:-1].decode()
        name = (await reader.readuntil(b"\x00"))[:-1].decode()
        granted = (user, name) == (USER, ONLY_THE_PROXY_KNOWS)
        writer.write(SOCKS4_GRANTED if granted else b"\x00\x5b" + SOCKS4_GRANTED[2:])
    else:
        (methods,) = await reader.readexactly(1)
        await reader.readexactly(methods)
        writer.write(b"\x05\x00")
        await reader.readexactly(3)
        kind, length = await reader.readexactly(2)
        name = (await reader.readexactly(length)).decode()
        granted = (kind, name) == (3, ONLY_THE_PROXY_KNOWS)
        await reader.readexactly(2)
        writer.write(SOCKS5_GRANTED if granted else b"\x05\x04" + SOCKS5_GRANTED[2:])
    await _hostile(HEAD, OK)(reader, writer)


def _front(port: int) -> Serve:
    """Hand everything on to a port: with TLS in front, an HTTP proxy is an HTTPS one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, towards = await asyncio.open_connection(HOST, port)
        await asyncio.gather(pipe(reader, towards), pipe(behind, writer))

    return serve


async def _listen(serve: Serve, context: ssl.SSLContext | None = None) -> int:
    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(quietly, HOST, 0, backlog=2048, ssl=context)
    _SERVERS.append(server)
    return int(server.sockets[0].getsockname()[1])


async def _listen_with_pproxy(url: str) -> int:
    import pproxy  # here, as it warns when it is compiled, and only the zoo's process may

    # Else who gave the password once need not give it again from the same address.
    server = await pproxy.Server(url).start_server({"rserver": [], "authtime": -1})
    _SERVERS.append(server)
    return int(server.sockets[0].getsockname()[1])


_SERVERS: list[Any] = []
"""An asyncio server lives as long as somebody knows it."""


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", HOST).configure_cert(context)
    return context


async def _serve() -> None:
    known, unknown = trustme.CA(), trustme.CA()
    ports = {name: await _listen(_hostile(*steps)) for name, steps in HOSTILE.items()}
    ports["site"] = await _listen(_site)
    ports["tls-site"] = await _listen(_site, _context(known))
    ports["untrusted-site"] = await _listen(_site, _context(unknown))
    ports["resolving-socks"] = await _listen(_resolving_socks)
    for protocol in ("http", "socks4", "socks5"):
        ports[f"pproxy-{protocol}"] = await _listen_with_pproxy(f"{protocol}://{HOST}:0/")
    for protocol in ("http", "socks5"):
        url = f"{protocol}://{HOST}:0/#{USER}:{PASSWORD}"
        ports[f"pproxy-{protocol}-password"] = await _listen_with_pproxy(url)
    front = _front(ports["pproxy-http"])
    ports["https-proxy"] = await _listen(front, _context(known))
    ports["untrusted-https-proxy"] = await _listen(front, _context(unknown))
    print(json.dumps({"ports": ports, "authority": known.cert_pem.bytes().decode()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve())
