"""The proxies of a lab: HTTP with CONNECT, and SOCKS5. Each leads to the lab's site alone."""

from __future__ import annotations

import asyncio
import ipaddress
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from urllib.parse import urlsplit

from .behaviour import Script
from .site import Site, Way, read_request

_TLS_HANDSHAKE = b"\x16"
_NO_LOGIN, _WITH_LOGIN, _NO_METHOD = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SOCKS_GRANTED = b"\x05\x00\x00\x01" + bytes(6)

_connections = count(1)


class LabProxy:
    """A proxy that behaves as its script says.

    Parameters
    ----------
    name:
        What the lab calls it.
    script:
        What becomes of its requests.
    site:
        What answers them.
    port_of_site:
        Where the site listens, with TLS or without.
    """

    def __init__(
        self, name: str, script: Script, site: Site, port_of_site: Callable[[bool], int]
    ) -> None:
        self.name, self._script, self._site = name, script, site
        self._port_of_site = port_of_site

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until either side ends it."""
        way = Way(self.name, self._script, next(_connections))
        protocol = self._script.behaviour.protocol
        serve = self._serve_socks if protocol == "socks5" else self._serve_http
        await serve(way, reader, writer)

    async def _serve_http(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while True:
            request = await read_request(reader)
            if not self._may_pass(request.headers.get("proxy-authorization", "")):
                writer.write(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n"
                    b'Proxy-Authenticate: Basic realm="lab"\r\n\r\n'
                )
                await writer.drain()
            elif request.method == "CONNECT":
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await self._tunnel(way, reader, writer)
                return
            else:
                url = urlsplit(request.target)._replace(fragment="").geturl()
                if not await self._site.answer(request, url, way, writer):
                    return

    def _may_pass(self, authorization: str) -> bool:
        behaviour = self._script.behaviour
        login = f"{behaviour.user}:{behaviour.password}"
        expected = f"Basic {b64encode(login.encode()).decode()}"
        return login == ":" or authorization == expected

    async def _serve_socks(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not await self._logged_in(reader, writer):
            return
        _version, _command, _, kind = await reader.readexactly(4)
        if kind == _NAME:
            (length,) = await reader.readexactly(1)
        else:
            sizes = {_IPV4: ipaddress.IPV4LENGTH, _IPV6: ipaddress.IPV6LENGTH}
            length = sizes[kind] // 8
        await reader.readexactly(length + 2)
        writer.write(_SOCKS_GRANTED)
        await self._tunnel(way, reader, writer)

    async def _logged_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Greet a SOCKS client, and return whether it may go on (RFC 1928 and 1929)."""
        behaviour = self._script.behaviour
        wanted = _WITH_LOGIN if behaviour.user or behaviour.password else _NO_LOGIN
        _version, number = await reader.readexactly(2)
        offered = await reader.readexactly(number)
        method = wanted if wanted in offered else _NO_METHOD
        writer.write(bytes([5, method]))
        if method != _WITH_LOGIN:
            await writer.drain()
            return method == _NO_LOGIN
        texts = []
        await reader.readexactly(1)
        for _ in range(2):
            (length,) = await reader.readexactly(1)
            texts.append((await reader.readexactly(length)).decode())
        is_right = texts == [behaviour.user, behaviour.password]
        writer.write(bytes([1, 0 if is_right else 1]))
        await writer.drain()
        return is_right

    async def _tunnel(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect a client with the site, with TLS if that is what the client begins with."""
        await writer.drain()
        first = await reader.read(65_536)
        port = self._port_of_site(first.startswith(_TLS_HANDSHAKE))
        from_site, to_site = await asyncio.open_connection("127.0.0.1", port)
        own_port = to_site.get_extra_info("sockname")[1]
        self._site.ways[own_port] = way
        try:
            to_site.write(first)
            await asyncio.gather(pipe(reader, to_site), pipe(from_site, writer))
        finally:
            to_site.close()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on what comes until it ends, and then end the other side."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
