"""A console asked without a server, or served to a real browser: one for each module."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, sync_playwright

from pharox.console import Access, create_app

CHROMIUM = shutil.which("chromium")
"""Debian's, as scripts/setup-system installs it."""

BASE = "http://localhost"


def everything(_: object) -> Access:
    return Access.act(actor="ada")


class Client:
    """Asks an application as a browser would, without a server."""

    def __init__(self, app: Any, base_url: str = BASE) -> None:
        self._app, self._base_url = app, base_url

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("POST", path, **options)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=self._base_url) as client:
                return await client.request(method, path, **options)

        # Playwright keeps a loop in the thread of the tests.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, answer()).result()


@contextmanager
def served(app: Any, **options: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine, and yield its URL."""
    config = uvicorn.Config(
        app, port=0, log_level="error", timeout_graceful_shutdown=1, lifespan="off", **options
    )
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser; it takes seconds to start."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def client_of() -> Callable[[Any], Client]:
    """Make a client that may do everything, of a console over a storage."""
    return lambda storage: Client(create_app(storage, authorize=everything))
