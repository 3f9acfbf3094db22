"""Thousands of proxies: one process answers at every address of 127.0.0.0/8.

It answers requests for plain HTTP itself, without a target, so that only the client is measured. On
its other ports it falls silent.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from uuid import UUID

from pydantic import AnyHttpUrl

from pharox import HealthCheckOptions, Proxy, ProxyProtocol, ProxyStatus

TARGET = "http://target.test/x"
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nanswered"
_ANSWERS = {
    "good": _ANSWER,
    "connect": b"",
    "headers": _ANSWER[:20],
    "body": _ANSWER[:-4],
}
"""The part of the answer that is sent, by the stage at which a proxy falls silent."""
SILENT_STAGES = ("connect", "headers", "body")

Ports = dict[str, int]
"""The port of each stage, on every address of 127.0.0.0/8."""

_PATIENCE_S = 30


@contextmanager
def serving() -> Iterator[Ports]:
    """Run the proxies in a process of their own for a block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    try:
        if not ours.poll(_PATIENCE_S):
            raise TimeoutError("the proxies do not start")
        yield ours.recv()
    finally:
        server.terminate()
        server.join()


def address(number: int) -> str:
    """Return a loopback address for a proxy, unique for each number below 62,500."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def proxy(number: int, port: int, pool_id: UUID) -> Proxy:
    """Return a proxy with its own address."""
    return Proxy(
        host=address(number),
        port=port,
        protocol=ProxyProtocol.HTTP,
        pool_id=pool_id,
        status=ProxyStatus.ACTIVE,
    )


def options(timeout_s: float = 5) -> HealthCheckOptions:
    """Return the options for checking these proxies."""
    return HealthCheckOptions(target_url=AnyHttpUrl(TARGET), timeout=timeout_s)


class _Answering(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._asked = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._asked = (self._asked + data).split(b"\r\n\r\n")
        self._transport.write(self._answer * len(requests))


def _serve(pipe: Any) -> None:
    asyncio.run(_answer_all(pipe))


async def _answer_all(pipe: Any) -> None:
    loop = asyncio.get_running_loop()
    ports: Ports = {}
    servers = []
    for stage, answer in _ANSWERS.items():
        server = await loop.create_server(partial(_Answering, answer), "0.0.0.0", 0, backlog=4096)
        ports[stage] = server.sockets[0].getsockname()[1]
        servers.append(server)
    pipe.send(ports)
    await asyncio.gather(*(server.serve_forever() for server in servers))
