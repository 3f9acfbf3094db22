"""Lease over HTTP as fast as it goes, with the least that a client needs.

    api_clients.py SOCKET TOKEN POOL CLIENTS SECONDS

Each client keeps a connection, acquires, and releases. Requests are written, and answers read, as
bytes: what a client costs is its own affair, and shares the cores with the server here. Prints one
JSON object: cycles, errors, processor time, and percentiles of a cycle.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

_LENGTH = b"content-length: "
_ID = b'"lease_id":"'


class Client:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str
    ) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"Host: x\r\nAuthorization: Bearer {token}\r\nContent-Length: ".encode()

    async def ask(self, path: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Return the first line of the answer, and its body."""
        self._writer.write(
            b"POST /api/v1%b HTTP/1.1\r\n%b%d\r\n\r\n%b" % (path, self._head, len(body), body)
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        begin = head.index(_LENGTH) + len(_LENGTH)
        length = int(head[begin : head.index(b"\r", begin)])
        return head, await self._reader.readexactly(length)


async def main() -> None:
    path, token, pool, clients, seconds = sys.argv[1:]
    asked = json.dumps({"pool": pool}).encode()
    counts: Counter[str] = Counter(cycles=0, errors=0)
    took: list[float] = []

    async def work(until: float) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        client = Client(reader, writer, token)
        while (began := time.monotonic()) < until:
            head, body = await client.ask(b"/acquire", asked)
            if b" 201 " not in head:
                counts["errors"] += 1
                continue
            begin = body.index(_ID) + len(_ID)
            release = b'{"lease_id":"%b"}' % body[begin : begin + 36]
            head, _ = await client.ask(b"/release", release)
            counts["cycles" if b" 200 " in head else "errors"] += 1
            took.append(time.monotonic() - began)
        writer.close()

    async def all_of_them(duration: float) -> None:
        until = time.monotonic() + duration
        async with asyncio.TaskGroup() as group:
            for _ in range(int(clients)):
                group.create_task(work(until))

    await all_of_them(1)  # connections are opened, plans prepared, caches filled
    counts.clear()
    took.clear()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began_s = time.process_time()
    await all_of_them(float(seconds))
    cpu_s = time.process_time() - began_s
    took.sort()
    found = {name: counts[name] for name in ("cycles", "errors")}
    middle, late = took[len(took) // 2], took[len(took) * 99 // 100]
    print(json.dumps({**found, "cpu_s": cpu_s, "p50_ms": 1000 * middle, "p99_ms": 1000 * late}))


asyncio.run(main())
