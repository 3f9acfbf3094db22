"""A real uvicorn in a thread, for the applications of a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import uvicorn

from tests.ledger.following import until


@contextmanager
def uvicorn_serving(application: Any) -> Iterator[httpx.Client]:
    """Serve an application for a block, with a client of it. It is shut down in the end."""
    config = uvicorn.Config(application, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)

    def run() -> None:
        with suppress(SystemExit):  # if it cannot start
            server.run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "it did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        options: Any = {"trust_env": False, "timeout": 60, "headers": {"connection": "close"}}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", **options) as web:
            yield web
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
