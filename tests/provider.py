"""A provider of proxy lists on loopback, which answers what a test tells it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer. ``etag`` is sent, and asked for again it is 304."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    cut: int = 0
    """How many bytes of the announced length are not sent."""


@dataclass(frozen=True)
class Asked:
    """One request: its path with the query, and its headers in lower case."""

    path: str
    headers: Mapping[str, str]


class Provider:
    """What is answered, by path; paths that are not named answer 404."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.hold: threading.Event | None = None
        """If set, no answer is sent before this."""
        self.arrived = threading.Event()

    def reset(self) -> None:
        """Forget all answers and requests."""
        self.answers, self.asked, self.hold = {}, [], None
        self.arrived.clear()

    def url(self, path: str = "/list", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def lists(self, lines: Sequence[str], path: str = "/list", **more: Any) -> None:
        """Answer with a list, one entry a line."""
        self.answers[path] = Answer("".join(f"{line}\n" for line in lines).encode(), **more)


@contextmanager
def running_provider() -> Iterator[Provider]:
    """Serve for a block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            provider.asked.append(Asked(self.path, headers))
            provider.arrived.set()
            if provider.hold is not None:
                provider.hold.wait(30)
            answer = provider.answers.get(self.path, Answer(b"nothing here", 404))
            if answer.etag is not None and headers.get("if-none-match") == answer.etag:
                answer = Answer(status=304, etag=answer.etag)
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if answer.etag is not None:
                self.send_header("ETag", answer.etag)
            self.send_header("Content-Length", str(len(answer.body) + answer.cut))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = Provider(server.server_address[1])
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield provider
        server.shutdown()
        serving.join()
