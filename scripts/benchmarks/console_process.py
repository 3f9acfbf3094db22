"""The console as a process of its own, asked over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil  # type: ignore[import-untyped]

_PATIENCE_S = 60


class ServedConsole:
    """``pharox console`` for a ledger, for a block. ``client`` asks it."""

    client: httpx.Client

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> Self:
        port = _free_port()
        program = Path(sys.executable).with_name("pharox")
        self._process = subprocess.Popen(
            [str(program), "console", "--port", str(port)],
            env={**os.environ, "PHAROX_DATABASE_URL": self._url},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_S)
        until = time.monotonic() + _PATIENCE_S
        while not self._answers() and time.monotonic() < until:
            time.sleep(0.1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(_PATIENCE_S)

    def asked(self, path: str) -> tuple[int, float]:
        """Ask for a page; return its status and the milliseconds until it was there."""
        began = time.perf_counter()
        answer = self.client.get(path)
        return answer.status_code, 1000 * (time.perf_counter() - began)

    def processor_s(self) -> float:
        """Return the processor time that its process has taken."""
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    @contextmanager
    def watched(self, paths: Iterable[str]) -> Iterator[None]:
        """Keep streams open for a block, as open pages do; it begins when all have answered."""
        with ExitStack() as until_the_end:
            for path in paths:
                answer = until_the_end.enter_context(self.client.stream("GET", path))
                threading.Thread(target=_read_on, args=(answer, ready := threading.Event())).start()
                ready.wait(_PATIENCE_S)
            yield

    def _answers(self) -> bool:
        try:
            return self.client.get("/login").status_code > 0
        except httpx.TransportError:
            return False


def _read_on(answer: httpx.Response, ready: threading.Event) -> None:
    """Read a stream until it is closed."""
    try:
        for _ in answer.iter_raw():
            ready.set()
    except (httpx.HTTPError, httpx.StreamError, OSError):
        ready.set()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
