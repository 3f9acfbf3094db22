"""The web application of the tests of ASGI workers: it answers what its path says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import tests.gunicorn.application as counting

Send = Callable[[dict[str, Any]], Awaitable[None]]


async def application(
    scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send
) -> None:
    """Answer with this worker's pid, and the status that is the path's last part."""
    if scope["type"] != "http":
        return
    path = scope["path"]
    os.write(counting._noted, f"{path}\n".encode())
    counting.HITS.labels(path).inc()
    if path == "/error":
        raise ValueError("the application failed")
    if path == "/silent":
        return
    if path == "/never":
        await asyncio.Event().wait()
    status = path.rpartition("/")[2]
    body = str(os.getpid()).encode()
    head = {"type": "http.response.start", "status": int(status) if status.isdigit() else 200}
    await send({**head, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body[:2], "more_body": True})
    await send({"type": "http.response.body", "body": body[2:]})
